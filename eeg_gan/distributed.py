"""What must be the same on any number of processes: ranks, gathers with gradient, and computed randomness."""

import os
import zlib

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from eeg_gan.config import UserError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Rank 0, told from the launcher's environment before the process group exists."""
    return rank() == 0 if dist.is_initialized() else int(os.environ.get("RANK", "0")) == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def part() -> bool:
    """Takes the process group apart once all ranks have come here; False where one does not come."""
    try:
        barrier()
        dist.destroy_process_group()
    except RuntimeError:
        return False
    return True


def own_part(total: int) -> slice:
    """The slice of a global batch of `total` items that this rank works on; ranks take consecutive parts."""
    parts = world_size()
    if total % parts:
        raise UserError(f"a global batch of {total} does not divide by {parts} processes; choose a multiple of {parts}")
    return slice(rank() * total // parts, (rank() + 1) * total // parts)


def generator_at(seed: int, purpose: str, position: int) -> torch.Generator:
    """The random stream of one purpose for one global batch; the same after a restart and on any number of ranks.

    Draw for the global batch, then take `own_part`. `position` is the number of images already consumed.
    """
    return torch.Generator().manual_seed(seed_at(seed, purpose, position))


def seed_at(seed: int, purpose: str, position: int) -> int:
    """A 64-bit seed computed from (seed, purpose, position); for libraries that draw by themselves."""
    if seed < 0:
        raise UserError(f"seed={seed}: a seed is 0 or more")
    high, low = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), position]).generate_state(2)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


def gather(x: Tensor) -> Tensor:
    """[b, ...] of every rank joined to [b * ranks, ...] in order of rank, with gradient.

    The backward sums what all ranks ask of this part; with a loss computed alike on each rank and gradients of the
    weights averaged over ranks, the result is the gradient of one process on the joined batch.
    """
    return _Gather.apply(x) if world_size() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[own_part(len(grad))]


def sum_over_ranks(x: Tensor) -> Tensor:
    """The elementwise sum over ranks, without gradient; a new tensor."""
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    return sum_over_ranks(x) / world_size()


def average_gradients(parameters) -> None:
    """Replaces each `.grad` by its mean over ranks, through one flat buffer (exact for R1-only phases, unlike DDP)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not grads:
        return
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def max_over_ranks(value: float) -> float:
    if world_size() == 1:
        return value
    largest = torch.tensor(float(value))
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


def from_main(values: dict[str, float]) -> dict[str, float]:
    """The figures of rank 0 on every rank, so that all decide alike where a library is not bit-exact."""
    if world_size() == 1:
        return values
    shared = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return dict(zip(values, shared.tolist(), strict=True))


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one."""
    return bool(max_over_ranks(float(flag)))
