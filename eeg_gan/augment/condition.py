"""What keeps a generator from collapsing onto its conditions: they are moved, exchanged, dropped, or faded in.

Two thousand pictures under conditions that are nearly one per picture let both networks memorise. The cures: Gaussian
noise on the condition, the condition of another trial that saw the same picture, no condition at all for some samples,
and a start without conditions (Shahbazi et al. 2022, arXiv 2201.06578).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# N trial, B sample of the global batch, D feature


@dataclass(frozen=True)
class ConditionConfig:
    noise: float = 0.0  # Gaussian noise on conditions, as a fraction of their length, drawn anew each time
    swap: float = 0.0  # probability that a trial lends the condition of another one that saw the same picture
    drop: float = 0.0  # probability of no condition (the zero vector), which both networks then learn as well
    transition: tuple[int, int] | None = None  # images between which conditions fade in; null: there at once

    def __post_init__(self):
        for name in ("noise", "swap", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction, so it must lie in [0, 1]; got {getattr(self, name)}")
        if self.transition is not None and not 0 <= self.transition[0] < self.transition[1]:
            raise ValueError(f"transition is [start, end] in images with start below end; got {list(self.transition)}")


def weight_at(images: int, config: ConditionConfig) -> float:
    """The weight of the condition, from 0 at the start of the transition to 1 at its end."""
    if config.transition is None:
        return 1.0
    start, end = config.transition
    return min(max((images - start) / (end - start), 0.0), 1.0)


class Conditions:
    """The conditions of training trials, and their disturbed versions."""

    def __init__(self, features: Tensor, pictures: Sequence[int], config: ConditionConfig):
        """`features` [N, D], unit vectors; `pictures` [N] says which trials saw the same picture."""
        assert len(features) == len(pictures), f"{len(features)} features, {len(pictures)} pictures"
        self.features, self.config = features, config
        self.pictures = torch.as_tensor(pictures)
        self.by_picture = self.pictures.argsort(stable=True)
        self.sizes = torch.bincount(self.pictures)
        self.starts = self.sizes.cumsum(0) - self.sizes

    def __len__(self) -> int:
        return len(self.features)

    def of(self, trials: Tensor, generator: torch.Generator) -> Tensor:
        """[B, D] conditions of trials [B]; every draw takes the same numbers from the stream whatever the config is."""
        n, dim = len(trials), self.features.shape[1]
        swapped, which, dropped = torch.rand(3, n, generator=generator)
        noise = torch.randn(n, dim, generator=generator) / dim**0.5
        picture = self.pictures[trials]
        other = self.by_picture[self.starts[picture] + (which * self.sizes[picture]).long()]
        c = self.features[torch.where(swapped < self.config.swap, other, trials)]
        if self.config.noise:
            c = F.normalize(c + self.config.noise * noise, dim=1)
        return torch.where((dropped < self.config.drop)[:, None], 0.0, c)
