"""What moves weights: accelerate alone, or accelerate with DeepSpeed. A stage sees the same words of either:

net = engine.prepare(rt, model, optimiser)   after a checkpoint was loaded into both
net(*inputs)                                 forward
net.step(loss, lr, images)                   backward, mean over ranks, clipping, optimiser step
net.on_whole(function)                       function(model), the model whole and in float32 on every rank
with net.whole() as (model, optimiser)       both whole, for a checkpoint that any number of processes reads
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from eeg_gan.training import replicas, watchdog, world, zero
from eeg_gan.training.optim import set_learning_rate

T = TypeVar("T")


@dataclass(frozen=True)
class EngineConfig:
    """How the work is shared by processes; none of it changes what is learnt."""

    deepspeed: str | None = None  # a DeepSpeed config such as launch/deepspeed/zero2.json; null: accelerate alone
    check_every: int = 1000  # batches between two checks that all processes hold the same weights
    bucket_mb: float = 25.0  # gan: gradients that go out together
    overlap: bool | None = None  # gan: they go out while backward runs; null: on a GPU, where that costs no compute

    def __post_init__(self):
        if self.check_every < 1 or not self.bucket_mb > 0:
            raise ValueError("check_every counts batches, 1 or more; bucket_mb is above 0")


def accelerator(config: Any) -> Accelerator:
    """Joins the processes of this start; `config` is a stage's, with `engine` where it trains.

    Sums over ranks are taken of CPU tensors too, so each device gets its own backend.
    """
    zero.launcher_asks()  # read before accelerate writes the same variables
    AcceleratorState._reset_state(reset_partial_state=True)  # a pipeline's stages may want different engines
    if zero.asked(config) is not None and not hasattr(config, "g_optim"):
        return zero.accelerator(config)
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    timeout = watchdog.of_collectives()
    backend = {} if cpu else {"backend": "cuda:nccl,cpu:gloo"}
    with world.joining(timeout):
        return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout, **backend)])


def prepare(rt: Any, model: nn.Module, optimiser: torch.optim.Optimizer) -> "Engine":
    """The engine that the config asks for, around a model and its optimiser as a checkpoint left them."""
    kind = Engine if zero.asked(rt.config) is None else ShardedEngine
    return kind(rt, model, optimiser)


class Engine:
    """accelerate alone: DistributedDataParallel where there are several processes."""

    def __init__(self, rt: Any, model: nn.Module, optimiser: torch.optim.Optimizer):
        self.rt, self.accelerator, self.model, self.optimiser = rt, rt.accelerator, model, optimiser
        self.clip_norm, self.check_every, self.steps = rt.config.optim.clip_norm, rt.config.engine.check_every, 0
        self.net, self.wrapped = rt.accelerator.prepare(model, optimiser)

    def __call__(self, *inputs: Any) -> Any:
        return self.net(*inputs)

    def step(self, loss: Tensor, lr: float, images: int) -> float:
        """One optimiser step at the learning rate `lr`; returns the loss. `images` were seen before it."""
        set_learning_rate(self.wrapped, lr)
        self.wrapped.zero_grad()
        self.accelerator.backward(loss)
        self.rt.meter.gradients(self.rt.verb, self.net)
        if self.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        self.wrapped.step()
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.check(images)
        return float(loss.detach())

    def check(self, images: int) -> None:
        # Buffers are left out: batch statistics are each rank's own until DDP sends rank 0's before the next forward.
        replicas.check(dict(self.model.named_parameters()), images)

    @contextlib.contextmanager
    def whole(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
        yield self.model, self.optimiser

    def on_whole(self, function: Callable[[Any], T]) -> T:
        """function(model) on every rank."""
        with self.whole() as (model, _):
            return function(model)


class ShardedEngine(Engine):
    """accelerate's DeepSpeed plugin: optimiser state (ZeRO 1), gradients (2) and weights (3) in parts on the ranks."""

    def __init__(self, rt: Any, model: nn.Module, optimiser: torch.optim.Optimizer):
        self.rt, self.accelerator, self.model, self.device = rt, rt.accelerator, model, rt.device
        self.twin = zero.Twin(model, optimiser)
        self.half = zero.half_type(rt.accelerator)
        with zero.same_weights(model):
            self.net, self.wrapped = rt.accelerator.prepare(zero.Cast(model, self.half), optimiser)
        zero.check_engine(self.net, rt.accelerator.state.deepspeed_plugin.deepspeed_config)
        self.twin.give(self.net)

    def step(self, loss: Tensor, lr: float, images: int) -> float:
        set_learning_rate(self.wrapped, lr)
        self.accelerator.backward(loss)  # DeepSpeed averages, clips, steps and forgets the gradient in this call
        norm = self.net.get_global_grad_norm()
        self.rt.meter.add({f"gradient/{self.rt.verb} (norm)": torch.as_tensor(norm)} if norm is not None else {})
        return float(loss.detach())

    @contextlib.contextmanager
    def whole(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
        """A plain copy with the weights of now, on this rank's device while it is used."""
        self.twin.take(self.net)
        yield self.twin.model.to(self.device), self.twin.optimiser
        self.twin.model.cpu()
