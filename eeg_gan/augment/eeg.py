"""Augmentation of EEG [B, C, T] by pure functions of an explicit generator.

Each draws for `total` trials of the global batch and applies the `part` that x is, so that 1 and N processes see the
same trials. Generators live on the CPU; x may live anywhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EEGAugmentConfig:
    shift: int = 0  # samples; each trial moves by up to this many either way, zeros move in
    noise: float = 0.0  # standard deviation of added Gaussian noise, in units of the (scaled) EEG
    drop: float = 0.0  # probability that an electrode is silent for a trial
    scale: float = 0.0  # each trial's amplitude is multiplied by 2^N(0, scale)
    mask: int = 0  # samples; a stretch of up to this length is silenced in each trial

    def __post_init__(self):
        for key in ("shift", "noise", "scale", "mask"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} is a size, so it must be 0 (off) or more; got {getattr(self, key)}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a probability, so it must lie in [0, 1); got {self.drop}")


def draw_and_apply(
    x: Tensor, generator: torch.Generator, config: EEGAugmentConfig, part: slice | None = None, total: int | None = None
) -> Tensor:
    """x [B, C, T], which is the `part` of a global batch of `total` trials, with every configured change."""
    part, total = _whole(x, part, total)
    if config.shift:
        x = time_shift(x, generator, config.shift, part, total)
    if config.scale:
        x = amplitude_scale(x, generator, config.scale, part, total)
    if config.noise:
        x = gaussian_noise(x, generator, config.noise, part, total)
    if config.mask:
        x = time_mask(x, generator, config.mask, part, total)
    if config.drop:
        x = channel_dropout(x, generator, config.drop, part, total)
    return x


def blend(x: Tensor, partner: Tensor, generator: torch.Generator, most: float, part: slice, total: int) -> Tensor:
    """(x + a y) / |(1, a)| for trials x and partners y [B, C, T] that share what is to be learnt, a in [0, most].

    What both trials share adds up and the noise does not, so the mean signal-to-noise of a batch rises.
    """
    a = most * torch.rand(total, 1, 1, generator=generator)[part].to(x)
    return (x + a * partner) / (1 + a * a).sqrt()


def time_shift(
    x: Tensor, generator: torch.Generator, most: int, part: slice | None = None, total: int | None = None
) -> Tensor:
    """Each trial later or earlier by up to `most` samples; zeros fill the gap."""
    part, total = _whole(x, part, total)
    shift = torch.randint(-most, most + 1, (total,), generator=generator)[part].to(x.device)
    source = torch.arange(x.shape[2], device=x.device) - shift[:, None]
    inside = (source >= 0) & (source < x.shape[2])
    moved = x.gather(2, source.clamp(0, x.shape[2] - 1)[:, None].expand_as(x))
    return moved * inside[:, None]


def gaussian_noise(
    x: Tensor, generator: torch.Generator, sigma: float, part: slice | None = None, total: int | None = None
) -> Tensor:
    """White noise of standard deviation `sigma` on every sample."""
    part, total = _whole(x, part, total)
    seeds = torch.randint(2**62, (total,), generator=generator)[part]  # one per trial: only the own part is drawn
    noise = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return x + sigma * torch.stack(noise).to(x)


def channel_dropout(
    x: Tensor, generator: torch.Generator, probability: float, part: slice | None = None, total: int | None = None
) -> Tensor:
    """Each electrode of each trial silent with `probability`; the others keep their amplitude."""
    part, total = _whole(x, part, total)
    kept = torch.rand(total, x.shape[1], generator=generator)[part] >= probability
    return x * kept.unsqueeze(2).to(x)


def amplitude_scale(
    x: Tensor, generator: torch.Generator, sigma: float, part: slice | None = None, total: int | None = None
) -> Tensor:
    """Each trial times 2^N(0, sigma)."""
    part, total = _whole(x, part, total)
    gain = torch.randn(total, generator=generator)[part] * sigma
    return x * torch.exp2(gain)[:, None, None].to(x)


def time_mask(
    x: Tensor, generator: torch.Generator, most: int, part: slice | None = None, total: int | None = None
) -> Tensor:
    """A stretch of 0 to `most` samples silent in each trial, at any place where it fits."""
    part, total = _whole(x, part, total)
    length = torch.randint(min(most, x.shape[2]) + 1, (total,), generator=generator)
    start = (torch.rand(total, generator=generator) * (x.shape[2] - length + 1)).long()
    length, start = length[part, None].to(x.device), start[part, None].to(x.device)
    time = torch.arange(x.shape[2], device=x.device)[None]
    return x * ((time < start) | (time >= start + length)).unsqueeze(1)


def _whole(x: Tensor, part: slice | None, total: int | None) -> tuple[slice, int]:
    part, total = slice(0, len(x)) if part is None else part, len(x) if total is None else total
    assert len(range(*part.indices(total))) == len(x), f"{len(x)} trials are not {part} of {total}"
    return part, total
