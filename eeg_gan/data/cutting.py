"""The parts that a data set is prepared in: training trials filtered for the scale's statistics, and shards.

Each part is a function of the plan and the part alone, so it does not matter which process makes it, or when.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.data import preprocess
from eeg_gan.data.pictures import Pictures
from eeg_gan.data.preprocess import PreprocessConfig
from eeg_gan.data.sources import SOURCES, Source, SourceConfig
from eeg_gan.data.writing import Form, check_form, shard_name, write_shard

Tick = Callable[[], None]  # called after each trial; raises to stop


@dataclass(frozen=True)
class Plan:
    """What every part needs to know of the whole."""

    source: SourceConfig
    preprocess: PreprocessConfig
    form: Form
    image_size: int | None
    sfreq: float  # after the filter
    folder: str  # where parts are written
    train_trials: int


@dataclass(frozen=True)
class Fit:
    """Training trials of one shard, the first of which is number `first` of the split: what they say of the scale."""

    number: int
    first: int
    members: tuple[int, ...]

    @property
    def file(self) -> str:
        return fit_file(self.number)


@dataclass(frozen=True)
class Shard:
    split: str
    number: int
    members: tuple[int, ...]
    scale: dict[str, Any] = field(hash=False)

    @property
    def file(self) -> str:
        return shard_name(self.split, self.number)


Part = Fit | Shard


class Cut:
    """Makes parts, a trial at a time, so that memory stays bounded."""

    def __init__(self, plan: Plan, source: Source | None = None):
        self.plan, self.folder = plan, Path(plan.folder)
        self.source = source or SOURCES[plan.source.name](plan.source)
        self.pictures = Pictures(self.source, self.folder / "images", plan.image_size, plan.form.image_format)

    def make(self, part: Part, tick: Tick) -> dict[str, Any]:
        """Writes the part's file; returns {file, bytes, sha256, ...}."""
        return self._fit(part, tick) if isinstance(part, Fit) else self._shard(part, tick)

    def _fit(self, part: Fit, tick: Tick) -> dict[str, Any]:
        """The filtered trials wait in a file beside the statistics until their shard is made."""
        path, times = self.folder / part.file, []
        path.parent.mkdir(exist_ok=True)

        def filtered(file) -> Iterator[np.ndarray]:
            for i in part.members:
                eeg, tmin_s = self._filtered(i)
                check_form(self.source.trials[i]["key"], eeg, self.plan.form.image_shape, self.plan.form)
                np.save(file, eeg, allow_pickle=False)
                times.append(tmin_s)
                tick()
                yield eeg

        waiting = self._waiting(part.number)
        with waiting.open("wb") as file:
            found = preprocess.statistics(filtered(file), self.plan.preprocess, part.first, self.plan.train_trials)
        found = found | {"tmin_s": np.array(times), "eeg_sha256": np.array(file_sha256(waiting))}
        with open(f"{path}.partial", "wb") as file:
            np.savez(file, **found)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.partial", path)
        return {"file": part.file, "bytes": path.stat().st_size, "sha256": file_sha256(path)}

    def _shard(self, part: Shard, tick: Tick) -> dict[str, Any]:
        record = write_shard(self.folder, part.split, part.number, self._samples(part, tick), self.plan.form)
        if part.split == "train":
            self._waiting(part.number).unlink(missing_ok=True)
        return record

    def _samples(self, part: Shard, tick: Tick) -> Iterator[tuple]:
        for i, (eeg, tmin_s) in zip(part.members, self._eegs(part), strict=True):
            meta = {**self.source.trials[i], "sfreq": self.plan.sfreq, "tmin_s": tmin_s}
            scaled = preprocess.apply_scale(eeg, part.scale, self.plan.preprocess)
            yield meta["key"], scaled, self.pictures.of(i), meta
            tick()

    def _eegs(self, part: Shard) -> Iterator[tuple[np.ndarray, float]]:
        """Filtered trials with their starts: those that wait from the fit, where they are whole, else anew."""
        path, waiting = self.folder / fit_file(part.number), self._waiting(part.number)
        if part.split == "train" and path.exists() and waiting.exists():
            with np.load(path, allow_pickle=False) as found:
                times, sha256 = found["tmin_s"].tolist(), str(found["eeg_sha256"])
            if len(times) == len(part.members) and file_sha256(waiting) == sha256:
                with waiting.open("rb") as file:
                    yield from ((np.load(file, allow_pickle=False), tmin_s) for tmin_s in times)
                return
        yield from map(self._filtered, part.members)

    def _waiting(self, number: int) -> Path:
        """Filtered trials of a training shard between fit and writing."""
        return self.folder / f"{fit_file(number)}.eeg"

    def _filtered(self, i: int) -> tuple[np.ndarray, float]:
        eeg, _, tmin_s = filter_one(self.source, i, self.plan.preprocess)
        return eeg, tmin_s


def filter_one(source: Source, i: int, config: PreprocessConfig) -> tuple[np.ndarray, float, float]:
    """Trial `i` after the filter: EEG [C, T] float32, its rate in Hz, time of its first sample in s."""
    tmin_s = source.trials[i].get("tmin_s")
    start = source.card.tmin_s if tmin_s is None else tmin_s
    return preprocess.filter_trial(source.eeg(i), source.card.sfreq, start, config, source.card)


def fit_file(number: int) -> str:
    return f"fit/{number:06d}.npz"


def fit_parts(members: list[int], size: int) -> list[Fit]:
    return [Fit(n, n * size, tuple(members[n * size : (n + 1) * size])) for n in range(-(-len(members) // size))]


def shard_parts(split: str, members: list[int], size: int, scale: dict[str, Any]) -> list[Shard]:
    return [Shard(split, n, tuple(members[n * size : (n + 1) * size]), scale) for n in range(-(-len(members) // size))]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
