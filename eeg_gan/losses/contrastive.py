"""Contrast between two modalities over the global batch, by softmax (CLIP) or sigmoid (SigLIP).

The caller gathers over ranks first. Radford et al. 2021 and Zhai et al. 2023. Targets may be soft: trials that show one
picture, or one class, are no plain negatives of one another. open_clip's losses are the same with hard targets, and are
what the tests compare with.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = math.log(100)  # CLIP's bound on the log of the inverse temperature


@dataclass(frozen=True)
class ContrastiveConfig:
    kind: Literal["clip", "siglip"] = "clip"  # softmax over the batch, or each pair by itself
    temperature: float = 0.07  # at the start; CLIP's value (SigLIP's is 0.1)
    learn_temperature: bool = True  # false keeps it, and siglip's bias too
    bias: float = -10.0  # siglip: of every logit at the start, since nearly all pairs are negatives
    same_image: bool = True  # trials of one picture are no negatives of one another, but share the target
    same_class: float = 0.0  # the target of trials of one class beside 1 of the own picture; 0: they are negatives

    def __post_init__(self):
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature divides cosines, so it must lie in [0.01, 100]; got {self.temperature}")
        if not 0 <= self.same_class <= 1:
            raise ValueError(f"same_class is a target beside 1, so it must lie in [0, 1]; got {self.same_class}")


class LogitScale(nn.Module):
    """The learnable inverse temperature [1], at most 100, and siglip's bias behind it [2].

    Parameters have shape [1], as DeepSpeed rejects scalars.
    """

    def __init__(self, temperature: float = 0.07, learn: bool = True, bias: float | None = None):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(temperature)), requires_grad=learn)
        self.bias = None if bias is None else nn.Parameter(torch.full((1,), float(bias)), requires_grad=learn)

    def forward(self) -> Tensor:
        scale = _AtMost.apply(self.log_scale, LARGEST).exp()
        return scale if self.bias is None else torch.cat([scale, self.bias])


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


def logit_scale(config: ContrastiveConfig) -> LogitScale:
    """What the loss of this config learns beside the two networks."""
    bias = config.bias if config.kind == "siglip" else None
    return LogitScale(config.temperature, config.learn_temperature, bias)


def contrastive(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    config: ContrastiveConfig,
    shown: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """The configured loss of a [B, D] and b [B, D]; `shown` [B] numbers each row's picture, `label` [B] its class."""
    targets = soft_targets(shown if config.same_image else None, label, config.same_class, len(a), a.device)
    if config.kind == "siglip":
        return siglip_loss(a, b, scale[0], scale[1], targets)
    return clip_loss(a, b, scale, targets=targets)


def soft_targets(
    shown: Tensor | None, label: Tensor | None, same_class: float, size: int, device: torch.device
) -> Tensor | None:
    """[B, B] how much each pair belongs together, 0 to 1, the same both ways; None where only rows match."""
    if shown is None and not same_class:
        return None
    own = torch.eye(size, device=device) if shown is None else (shown[:, None] == shown[None]).float()
    if not same_class:
        return own
    assert label is not None, "same_class needs the classes of the batch"
    return own.maximum(same_class * (label[:, None] == label[None]).float())


def clip_loss(
    a: Tensor, b: Tensor, scale: Tensor | float, same: Tensor | None = None, targets: Tensor | None = None
) -> Tensor:
    """Mean of both directions' cross-entropy between a [B, D] and b [B, D], whose rows correspond.

    `same` [B] names what each row shows: rows with one name share the target equally instead of repelling one another.
    `targets` [B, B], symmetric, says how the target is shared otherwise; its rows are made to add to 1.
    """
    if same is not None:
        targets = (same[:, None] == same[None]).float()
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * _cosines(a, b)
        target = torch.arange(len(a), device=a.device)
        if targets is not None:
            target = targets / targets.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def siglip_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, targets: Tensor | None = None) -> Tensor:
    """Cross-entropy of each pair by itself, summed over pairs and divided by B (Zhai et al. 2023, equation 1).

    `targets` [B, B] are probabilities of belonging together; None is the identity.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * _cosines(a, b) + bias
        target = torch.eye(len(a), device=a.device) if targets is None else targets
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(a)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
