"""From raw trials to what networks see: reference, filter, notch, resample, baseline, crop, then scaling."""

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from scipy import signal

from eeg_gan import config as configs
from eeg_gan.config import UserError
from eeg_gan.data.card import Card

# C electrode, T time sample

ORDER = 4  # of the Butterworth filters; run forwards and backwards, so twice that in effect
NOTCH_Q = 30.0  # centre over width: 50 Hz loses about 1.7 Hz
KEPT_VALUES = 200_000  # per channel, from which the robust statistics are taken
IQR_OF_NORMAL = 1.3489795  # so that a robust unit is a standard deviation of Gaussian data
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreprocessConfig:
    """What is done to every trial."""

    highpass_hz: float | None = None  # lower edge of the pass band; null leaves slow drifts in
    lowpass_hz: float | None = None  # upper edge of the pass band
    notch: bool = False  # remove the mains frequency that the card names (line_hz)
    resample_hz: float | None = None  # new sampling rate
    crop_s: tuple[float, float] | None = None  # kept seconds relative to the stimulus, [start, stop); null keeps all
    baseline: bool = False  # subtract each channel's mean before the stimulus
    reference: Literal["average", "none"] = "none"  # average: subtract the mean over channels
    scale: Literal["robust", "zscore", "legacy_max", "none"] = "robust"  # the first two: per channel, fitted on train
    clip: float | None = 20.0  # largest absolute value after scaling; null clips nothing

    def __post_init__(self):
        for name in ("highpass_hz", "lowpass_hz", "resample_hz", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}; write null to leave it out")
        if self.highpass_hz and self.lowpass_hz and self.highpass_hz >= self.lowpass_hz:
            raise ValueError(
                f"highpass_hz {self.highpass_hz} is not below lowpass_hz {self.lowpass_hz}, so nothing would pass; "
                "the pass band lies between them"
            )
        if self.crop_s is not None and not self.crop_s[0] < self.crop_s[1]:
            raise ValueError(f"crop_s is [start, stop] in seconds with start below stop; got {list(self.crop_s)}")


def check(config: PreprocessConfig, card: Card) -> None:
    """Refuses what cannot be done at the card's sampling rate, before any trial is read."""
    limit = card.sfreq / 2
    for name, value in (("highpass_hz", config.highpass_hz), ("lowpass_hz", config.lowpass_hz)):
        if value is not None and value >= limit:
            raise UserError(
                f"preprocess.{name} is {value:g} Hz, but {card.sfreq:g} Hz recordings hold frequencies below {limit:g} "
                "Hz only; lower it or write null"
            )
    if config.resample_hz and config.lowpass_hz and config.lowpass_hz >= config.resample_hz / 2:
        raise UserError(
            f"preprocess.lowpass_hz is {config.lowpass_hz:g} Hz, but preprocess.resample_hz {config.resample_hz:g} "
            f"keeps frequencies below {config.resample_hz / 2:g} Hz only; lower lowpass_hz or raise resample_hz"
        )
    if config.notch and not (card.line_hz and card.line_hz < limit):
        known = f"{card.line_hz:g} Hz, above half the sampling rate" if card.line_hz else "unknown"
        raise UserError(
            f"preprocess.notch is on, but the card's line_hz is {known}; write line_hz: 50 or 60 in the card, "
            "or preprocess.notch=false"
        )
    if config.baseline and card.tmin_s >= 0:
        raise UserError(
            f"preprocess.baseline is on, but trials start at {card.tmin_s:g} s, so nothing precedes the stimulus; "
            "write preprocess.baseline=false"
        )
    if config.reference == "average" and len(card.ch_names) < 2:
        raise UserError("preprocess.reference=average leaves nothing of one channel; write preprocess.reference=none")


def filter_trial(
    eeg: np.ndarray, sfreq: float, tmin_s: float, config: PreprocessConfig, card: Card
) -> tuple[np.ndarray, float, float]:
    """One raw trial [C, T] -> (eeg [C, T'] float32, its rate in Hz, time of its first sample in s).

    The order is: average reference, band pass (Butterworth, forwards and backwards, mirrored at the ends: no phase
    shift), notch (likewise), polyphase resampling, baseline, crop. Scaling comes after, see `apply_scale`.
    """
    check(config, card)
    x = eeg.astype(np.float64)
    if config.reference == "average":
        x = x - x.mean(axis=0)
    x = _band_pass(x, sfreq, config)
    if config.notch:
        x = _zero_phase(_notch(card.line_hz, sfreq), x)
    if config.resample_hz and config.resample_hz != sfreq:
        ratio = Fraction(config.resample_hz / sfreq).limit_denominator(10_000)
        x = signal.resample_poly(x, ratio.numerator, ratio.denominator, axis=1, padtype="line")
        sfreq = sfreq * ratio.numerator / ratio.denominator
    if config.baseline:
        x = x - x[:, : max(1, round(-tmin_s * sfreq))].mean(axis=1, keepdims=True)
    x, tmin_s = _crop(x, sfreq, tmin_s, config)
    return x.astype(np.float32), sfreq, tmin_s


def fit_scale(trials: Iterable[np.ndarray], config: PreprocessConfig) -> dict[str, Any]:
    """The scaling's statistics from filtered trials [C, T]; give it those of the training split only.

    robust: median and IQR / 1.349 per channel, of at most 200,000 time samples: each time sample draws a fixed
    pseudo-random priority, and those of lowest priority are kept, so memory is bounded and the result reproducible.
    zscore: exact mean and standard deviation per channel. legacy_max and none need no statistics.
    """
    return scale_of([statistics(trials, config)] if needs_fit(config) else [], config)


def needs_fit(config: PreprocessConfig) -> bool:
    return config.scale not in ("legacy_max", "none")


def statistics(
    trials: Iterable[np.ndarray], config: PreprocessConfig, first: int = 0, total: int | None = None
) -> dict[str, np.ndarray]:
    """What some consecutive training trials, from the `first` of `total` on, contribute to `scale_of`: a few arrays."""
    return _robust(trials, first, total) if config.scale == "robust" else _moments(trials)


def scale_of(parts: Iterable[dict[str, np.ndarray]], config: PreprocessConfig) -> dict[str, Any]:
    """The scaling's statistics from those of consecutive parts of the training split, in order."""
    if not needs_fit(config):
        return {"kind": config.scale}
    whole = functools.reduce(_join_robust if config.scale == "robust" else _join_moments, parts)
    n_trials = int(whole["trials"])
    assert n_trials, "no training trials to fit the scale on"
    center, spread = (_quartiles if config.scale == "robust" else _deviation)(whole)
    flat = np.flatnonzero(~(spread > 1e-12)).tolist()
    if flat:
        log.warning("channels %s are flat in the training split; they are centred, not scaled", flat)
    spread[flat] = 1.0
    return {
        "kind": config.scale,
        "center": center.tolist(),
        "spread": spread.tolist(),
        "flat_channels": flat,
        "train_trials": n_trials,
    }


def apply_scale(eeg: np.ndarray, scale: dict[str, Any], config: PreprocessConfig) -> np.ndarray:
    """A filtered trial [C, T] scaled and clipped, float32.

    legacy_max is 2x / max - 1 with the maximum over the whole trial; where that is not positive, max |x| stands in.
    """
    assert scale["kind"] == config.scale, f"statistics of {scale['kind']} cannot serve scale={config.scale}"
    x = eeg.astype(np.float64)
    if config.scale in ("robust", "zscore"):
        x = (x - np.array(scale["center"])[:, None]) / np.array(scale["spread"])[:, None]
    elif config.scale == "legacy_max":
        top = x.max()
        x = 2 * x / (top if top > 0 else np.abs(x).max() or 1.0) - 1
    if config.clip is not None:
        x = x.clip(-config.clip, config.clip)
    return x.astype(np.float32)


def describe(config: PreprocessConfig, scale: dict[str, Any]) -> dict[str, Any]:
    """What index.json records: enough to do the same to a new raw trial."""
    return {"config": configs.to_dict(config), "scale": scale}


def from_description(description: dict[str, Any]) -> tuple[PreprocessConfig, dict[str, Any]]:
    """The inverse of `describe`."""
    return configs.from_dict(PreprocessConfig, description["config"], "preprocessing"), description["scale"]


def _band_pass(x: np.ndarray, sfreq: float, config: PreprocessConfig) -> np.ndarray:
    if config.highpass_hz and config.lowpass_hz:
        edges, kind = (config.highpass_hz, config.lowpass_hz), "bandpass"
    elif config.highpass_hz or config.lowpass_hz:
        edges, kind = config.highpass_hz or config.lowpass_hz, "highpass" if config.highpass_hz else "lowpass"
    else:
        return x
    return _zero_phase(_butterworth(edges, kind, sfreq), x)


@functools.lru_cache(maxsize=16)  # every trial asks for the same
def _butterworth(edges: float | tuple[float, float], kind: str, sfreq: float) -> np.ndarray:
    return signal.butter(ORDER, edges, kind, fs=sfreq, output="sos")


@functools.lru_cache(maxsize=16)
def _notch(line_hz: float, sfreq: float) -> np.ndarray:
    return signal.tf2sos(*signal.iirnotch(line_hz, NOTCH_Q, fs=sfreq))


def _zero_phase(sos: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Mirrors as much of the trial as there is: slow filters ring longer than scipy's default padding."""
    return signal.sosfiltfilt(sos, x, axis=1, padtype="even" if x.shape[1] > 1 else None, padlen=x.shape[1] - 1)


def _crop(x: np.ndarray, sfreq: float, tmin_s: float, config: PreprocessConfig) -> tuple[np.ndarray, float]:
    if config.crop_s is None:
        return x, tmin_s
    first, last = config.crop_s
    start = round((first - tmin_s) * sfreq)
    stop = start + round((last - first) * sfreq)  # so that the length does not depend on where the trial starts
    if start < 0 or stop > x.shape[1] or start == stop:
        raise UserError(
            f"preprocess.crop_s is {list(config.crop_s)} s, but trials reach from {tmin_s:g} to "
            f"{tmin_s + x.shape[1] / sfreq:g} s at {sfreq:g} Hz; choose a part of that, or null"
        )
    return x[:, start:stop], tmin_s + start / sfreq


def _robust(trials: Iterable[np.ndarray], first: int, total: int | None) -> dict[str, np.ndarray]:
    """The time samples of lowest priority; priorities are one stream over all trials, entered at trial `first`."""
    random, limit = None, 1.0
    kept, priorities, n_trials = [], [], 0
    for n_trials, eeg in enumerate(trials, start=1):  # noqa: B007
        length = eeg.shape[1]
        if random is None:
            random = np.random.Generator(np.random.PCG64(0).advance(first * length))  # a step per number
            while total is not None and total * length * limit > 2.1 * KEPT_VALUES:  # that much is surely too much
                limit /= 2
        priority = random.random(length)
        kept.append(eeg[:, priority < limit])
        priorities.append(priority[priority < limit])
        if sum(map(len, priorities)) > KEPT_VALUES:
            part = _thinned(np.concatenate(kept, axis=1), np.concatenate(priorities), limit)
            kept, priorities, limit = [part["kept"]], [part["priority"]], float(part["limit"])
    assert kept, "no training trials to fit the scale on"
    return {
        "kept": np.concatenate(kept, axis=1),
        "priority": np.concatenate(priorities),
        "limit": np.float64(limit),
        "trials": np.int64(n_trials),
    }


def _thinned(kept: np.ndarray, priority: np.ndarray, limit: float) -> dict[str, np.ndarray]:
    """Those below `limit`, which is halved until no more than KEPT_VALUES are."""
    while (priority < limit).sum() > KEPT_VALUES:
        limit /= 2
    return {
        "kept": kept[:, priority < limit],
        "priority": priority[priority < limit],
        "limit": np.float64(limit),
    }


def _join_robust(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same samples as if all trials had been looked at in one go."""
    kept, priority = np.concatenate([a["kept"], b["kept"]], axis=1), np.concatenate([a["priority"], b["priority"]])
    part = _thinned(kept, priority, min(float(a["limit"]), float(b["limit"])))
    return part | {"trials": a["trials"] + b["trials"]}


def _quartiles(part: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows = [np.percentile(row.astype(np.float64), [25, 50, 75]) for row in part["kept"]]  # one channel's copy at a time
    low, center, high = np.array(rows).T
    return center, (high - low) / IQR_OF_NORMAL


def _moments(trials: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Means and deviations merged trial by trial (Chan et al. 1979), which stays exact where sums of squares cancel."""
    parts = []
    for eeg in trials:
        x = eeg.astype(np.float64)
        mean = x.mean(axis=1)
        squares = ((x - mean[:, None]) ** 2).sum(axis=1)
        part = {"mean": mean, "squares": squares, "count": np.int64(x.shape[1]), "trials": np.int64(1)}
        parts = [_join_moments(parts[0], part) if parts else part]
    assert parts, "no training trials to fit the scale on"
    return parts[0]


def _join_moments(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    count, difference = a["count"] + b["count"], b["mean"] - a["mean"]
    return {
        "mean": a["mean"] + difference * b["count"] / count,
        "squares": a["squares"] + b["squares"] + difference**2 * a["count"] * b["count"] / count,
        "count": count,
        "trials": a["trials"] + b["trials"],
    }


def _deviation(part: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return part["mean"], np.sqrt(part["squares"] / part["count"])
