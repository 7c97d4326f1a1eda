"""Symmetric InfoNCE between two modalities (CLIP), over the global batch; the caller gathers over ranks first."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = math.log(100)  # CLIP's bound on the log of the inverse temperature


@dataclass(frozen=True)
class ContrastiveConfig:
    temperature: float = 0.07  # at the start; CLIP's value
    learn_temperature: bool = True  # false keeps it
    same_image: bool = True  # trials of one picture are no negatives of one another, but share the target

    def __post_init__(self):
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature divides cosines, so it must lie in [0.01, 100]; got {self.temperature}")


class LogitScale(nn.Module):
    """The learnable inverse temperature, at most 100; its parameter has shape [1], as DeepSpeed rejects scalars."""

    def __init__(self, temperature: float = 0.07, learn: bool = True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(temperature)), requires_grad=learn)

    def forward(self) -> Tensor:
        return _AtMost.apply(self.log_scale, LARGEST).exp()


class _AtMost(torch.autograd.Function):
    """min(x, limit), whose gradient past the limit still lets x come back (clamp's would hold it there for ever)."""

    @staticmethod
    def forward(ctx, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limit = limit
        return x.clamp(max=limit)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return torch.where((x < ctx.limit) | (grad > 0), grad, torch.zeros_like(grad)), None


def clip_loss(a: Tensor, b: Tensor, scale: Tensor | float, same: Tensor | None = None) -> Tensor:
    """Mean of both directions' cross-entropy between a [B, D] and b [B, D], whose rows correspond.

    `same` [B] names what each row shows: rows with one name share the target equally instead of repelling one another.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * (F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T)
        if same is None:
            target = torch.arange(len(a), device=a.device)
        else:
            target = (same[:, None] == same[None]).float()
            target = target / target.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
