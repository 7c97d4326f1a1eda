"""Augmentation of EEG [B, C, T] by pure functions of an explicit generator.

Each draws for `total` trials of the global batch and applies the `part` that x is, so that 1 and N processes see the
same trials. Generators live on the CPU; x may live anywhere.
"""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import special
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.distributed import gather

MIXING = ("Mixup", "SegmentationReconstruction")  # of braindecode: they need several trials, and get one at a time


@dataclass(frozen=True)
class EEGAugmentConfig:
    shift: int = 0  # samples; each trial moves by up to this many either way, zeros move in
    crop: int = 0  # samples; a window of this length is kept of each trial, anywhere in it
    crop_pad: bool = True  # zeros stand outside of the window; false shortens trials to it, for encoders of any length
    noise: float = 0.0  # standard deviation of added Gaussian noise, in units of the (scaled) EEG
    drop: float = 0.0  # probability that an electrode is silent for a trial
    scale: float = 0.0  # each trial's amplitude is multiplied by 2^N(0, scale)
    mask: int = 0  # samples; a stretch of up to this length is silenced in each trial
    band_stop: float = 0.0  # width of a band that each trial loses anywhere, as a fraction of all its frequencies
    mixup: float = 0.0  # each trial is mixed with another of the batch, by Beta(mixup, mixup); it keeps half or more
    zoo: dict[str, dict[str, Any]] = field(default_factory=dict)  # transforms of braindecode by name, with their keys

    def __post_init__(self):
        for key in ("shift", "crop", "noise", "scale", "mask", "mixup"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} is a size, so it must be 0 (off) or more; got {getattr(self, key)}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a probability, so it must lie in [0, 1); got {self.drop}")
        if not 0 <= self.band_stop < 1:
            raise ValueError(f"band_stop is a fraction of the spectrum, so it must lie in [0, 1); got {self.band_stop}")


def draw_and_apply(
    x: Tensor, generator: torch.Generator, config: EEGAugmentConfig, part: slice | None = None, total: int | None = None
) -> Tensor:
    """x [B, C, T], which is the `part` of a global batch of `total` trials, with every configured change.

    With crop_pad=false the result is [B, C, crop].
    """
    part, total = _whole(x, part, total)
    if config.mixup:
        x = mixup(x, generator, config.mixup, part, total)
    if config.shift:
        x = time_shift(x, generator, config.shift, part, total)
    if config.scale:
        x = amplitude_scale(x, generator, config.scale, part, total)
    if config.band_stop:
        x = band_stop(x, generator, config.band_stop, part, total)
    for name, keys in config.zoo.items():
        x = braindecode_transform(x, generator, name, keys, part, total)
    if config.noise:
        x = gaussian_noise(x, generator, config.noise, part, total)
    if config.mask:
        x = time_mask(x, generator, config.mask, part, total)
    if config.drop:
        x = channel_dropout(x, generator, config.drop, part, total)
    if config.crop:
        x = crop(x, generator, config.crop, config.crop_pad, part, total)
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


def crop(
    x: Tensor,
    generator: torch.Generator,
    length: int,
    pad: bool = True,
    part: slice | None = None,
    total: int | None = None,
) -> Tensor:
    """A window of `length` samples at any place of each trial: zeros around it, or [B, C, length] without `pad`."""
    part, total = _whole(x, part, total)
    n_times = x.shape[2]
    if length > n_times:
        raise UserError(f"augment.crop is {length} samples, but trials have {n_times}; lower it, or 0 turns it off")
    start = torch.randint(n_times - length + 1, (total,), generator=generator)[part, None].to(x.device)
    if not pad:
        place = start + torch.arange(length, device=x.device)
        return x.gather(2, place[:, None].expand(-1, x.shape[1], -1))
    time = torch.arange(n_times, device=x.device)[None]
    return x * ((time >= start) & (time < start + length)).unsqueeze(1)


def band_stop(
    x: Tensor, generator: torch.Generator, width: float, part: slice | None = None, total: int | None = None
) -> Tensor:
    """Each trial without a band of frequencies of `width` (1 is up to half the rate), its place uniform."""
    part, total = _whole(x, part, total)
    low = (torch.rand(total, generator=generator) * (1 - width))[part, None].to(x.device)
    spectrum = torch.fft.rfft(x.float(), dim=2)
    place = torch.linspace(0, 1, spectrum.shape[2], device=x.device)[None]
    kept = (place < low) | (place > low + width)
    return torch.fft.irfft(spectrum * kept.unsqueeze(1), n=x.shape[2], dim=2).to(x)


def mixup(
    x: Tensor, generator: torch.Generator, alpha: float, part: slice | None = None, total: int | None = None
) -> Tensor:
    """a x + (1 - a) y with another trial y of the global batch, a = max(b, 1 - b), b from Beta(alpha, alpha).

    Each trial keeps the larger share, so its label stays true (Zhang et al. 2018 mix labels too, which losses over
    pairs cannot take).
    """
    part, total = _whole(x, part, total)
    step = torch.randint(1, total, (1,), generator=generator) if total > 1 else torch.zeros(1, dtype=torch.long)
    partner = (torch.arange(total) + step)[part] % total  # nobody is mixed with itself
    uniform = torch.rand(total, generator=generator, dtype=torch.float64)[part].numpy()
    share = torch.from_numpy(special.betaincinv(alpha, alpha, uniform)).clamp(0, 1)
    share = torch.maximum(share, 1 - share)[:, None, None].to(x)
    whole = x if len(x) == total else gather(x)
    return share * x + (1 - share) * whole[partner.to(x.device)]


def braindecode_transform(
    x: Tensor,
    generator: torch.Generator,
    name: str,
    keys: dict[str, Any],
    part: slice | None = None,
    total: int | None = None,
) -> Tensor:
    """A transform of braindecode.augmentation by its name, seeded for each trial."""
    part, total = _whole(x, part, total)
    seeds = torch.randint(2**31, (total,), generator=generator)[part].tolist()
    make = _transform(name)
    try:
        changed = [make(**keys, random_state=seed)(trial[None]) for trial, seed in zip(x, seeds, strict=True)]
    except (TypeError, AssertionError) as error:
        raise UserError(f"augment.zoo.{name}: braindecode does not take these keys ({error}); see its page") from None
    if not all(isinstance(trial, Tensor) and trial.shape == x[:1].shape for trial in changed):
        raise UserError(f"augment.zoo.{name} changes labels or shapes, which has no place here; choose another")
    return torch.cat(changed).to(x)


def _transform(name: str) -> Callable[..., Any]:
    try:
        library = importlib.import_module("braindecode.augmentation")
    except ImportError as error:
        raise UserError(
            f"augment.zoo names {name}, a transform of braindecode, which cannot be imported ({error}); "
            "pip install 'eeg-gan[zoo]', or leave augment.zoo empty"
        ) from None
    known = [other for other in dir(library) if other[0].isupper()]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
        raise UserError(f"augment.zoo: braindecode has no transform {name}; {hint}")
    if name in MIXING:
        raise UserError(f"augment.zoo: {name} mixes trials with others, which has no place here; use augment.mixup")
    return getattr(library, name)


def _whole(x: Tensor, part: slice | None, total: int | None) -> tuple[slice, int]:
    part, total = slice(0, len(x)) if part is None else part, len(x) if total is None else total
    assert len(range(*part.indices(total))) == len(x), f"{len(x)} trials are not {part} of {total}"
    return part, total
