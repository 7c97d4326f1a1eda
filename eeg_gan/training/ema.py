"""The average of a network's weights over training, with a half-life counted in images."""

import torch
from torch import nn


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, beta: float) -> None:
    """average = beta * average + (1 - beta) * model for parameters; buffers are copied."""
    mine, theirs = list(average.parameters()), [p.detach() for p in model.parameters()]
    assert [p.shape for p in mine] == [p.shape for p in theirs], "the average belongs to another network"
    torch._foreach_lerp_(mine, theirs, 1 - beta)
    for copy, buffer in zip(average.buffers(), model.buffers(), strict=True):
        copy.copy_(buffer)


def beta_at(images: int, batch: int, half_life_images: float, ramp: float | None = None) -> float:
    """The decay of one batch; with `ramp`, the half-life is at most that fraction of the images seen so far."""
    if half_life_images < 0:
        raise ValueError(f"a half-life counts images and is not negative; got {half_life_images}")
    half_life = half_life_images if ramp is None else min(half_life_images, images * ramp)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0
