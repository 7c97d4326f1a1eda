"""Means of gradients over processes by our own hand, for networks whose steps DDP's hooks do not survive.

Gradients lie in flat buffers of a fixed order, which is the same on every rank: each rank reduces each buffer once a
step, whatever its backward has reached. On the last micro-batch a buffer goes out as soon as its gradients are there,
while backward runs on. A parameter that a phase leaves out (R1 does not reach the last bias, path lengths not the
colours) has the gradient zero, with one process too.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eeg_gan.distributed import world_size
from eeg_gan.training.guard import Guard


class Buckets:
    """Flat buffers of about `mb` MiB that hold the gradients of all parameters that learn, last layers first."""

    def __init__(self, parameters: Iterable[nn.Parameter], mb: float, overlap: bool):
        learning = [p for p in parameters if p.requires_grad]
        self.groups = list(_grouped(learning[::-1], int(mb * 2**20)))
        self.flats = [
            torch.zeros(sum(p.numel() for p in own), dtype=own[0].dtype, device=own[0].device) for own in self.groups
        ]
        self.views = [_views(flat, own) for flat, own in zip(self.flats, self.groups, strict=True)]
        self.works: list[dist.Work] = []
        self.missing: list[int] | None = None  # gradients that each buffer waits for; None: nothing goes out by itself
        if overlap:
            for number, own in enumerate(self.groups):
                for p in own:
                    p.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))

    @property
    def bytes(self) -> int:
        return sum(flat.numel() * flat.element_size() for flat in self.flats)

    def zero(self) -> None:
        """Before the first backward of a step: all gradients are zeros inside the buffers."""
        for flat, own, views in zip(self.flats, self.groups, self.views, strict=True):
            flat.zero_()
            for p, view in zip(own, views, strict=True):
                p.grad = view

    def arm(self) -> None:
        """Before the last backward of a step."""
        self.missing = [len(own) for own in self.groups]

    def finish(self) -> None:
        """After the last backward: every buffer holds the mean over ranks."""
        self.missing = None
        while len(self.works) < len(self.flats):
            self._send()
        for work, flat in zip(self.works, self.flats, strict=True):
            work.wait()
            flat /= world_size()
        self.works = []

    def _arrived(self, number: int) -> None:
        if self.missing is None:
            return
        self.missing[number] -= 1
        while len(self.works) < len(self.flats) and self.missing[len(self.works)] == 0:
            self._send()

    def _send(self) -> None:
        """The next buffer in order; a collective must not overtake another, or ranks would add up different layers."""
        self.works.append(dist.all_reduce(self.flats[len(self.works)], async_op=True))


class Averaged:
    """Backward and steps of one network and its optimiser, gradients being means over ranks."""

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        clip_norm: float | None = None,
        bucket_mb: float = 25,
        overlap: bool | None = None,
    ):
        self.network, self.optimiser, self.clip_norm = network, optimiser, clip_norm
        self.bucket_mb, self.overlap = bucket_mb, overlap
        self.buckets: Buckets | None = None

    def zero(self) -> None:
        if world_size() == 1:
            self.optimiser.zero_grad(set_to_none=True)
            return
        if self.buckets is None:  # now it is known which parameters learn
            parameters = list(self.network.parameters())
            overlap = parameters[0].is_cuda if self.overlap is None else self.overlap
            self.buckets = Buckets(parameters, self.bucket_mb, overlap)
        self.buckets.zero()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of a micro-batch; `last` is the one before `step`."""
        if self.buckets is not None and last:
            self.buckets.arm()
        loss.backward()

    def step(self, guard: Guard, kind: str) -> Tensor:
        """Averages, clips, and moves the weights unless the gradient is not finite; returns its norm."""
        if self.buckets is not None:
            self.buckets.finish()
        for p in self.network.parameters():
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)
        return guard.step(self.optimiser, kind, self.clip_norm)

    def whole(self) -> torch.optim.Optimizer:
        """The optimiser with the state of all parameters, for a checkpoint."""
        return self.optimiser

    def reload(self) -> None:
        """After weights and optimiser were loaded again."""


def _grouped(parameters: list[nn.Parameter], limit: int) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of one type and device, of no more than `limit` bytes together, or one alone."""
    group: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        own = p.numel() * p.element_size()
        if group and (size + own > limit or (p.dtype, p.device) != (group[0].dtype, group[0].device)):
            yield group
            group, size = [], 0
        group.append(p)
        size += own
    if group:
        yield group


def _views(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
