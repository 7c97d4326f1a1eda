"""A raw dataset, filtered, scaled by its training split, divided without leaks, paired with images, as shards."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from eeg_gan.config import to_dict
from eeg_gan.data import preprocess, splits
from eeg_gan.data.preprocess import PreprocessConfig
from eeg_gan.data.shards import write_shards
from eeg_gan.data.sources import SOURCES, Source, SourceConfig
from eeg_gan.data.splits import SplitConfig
from eeg_gan.data.trial import Sample
from eeg_gan.training import runtime
from eeg_gan.training.log import Bar

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    run_dir: str  # where train/, val/, test/ and index.json go
    source: SourceConfig = field(default_factory=SourceConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    image_size: int | None = None  # images are resized to this many pixels square; null keeps them
    shard_samples: int = 512  # trials per shard
    dtype: Literal["float32", "float16"] = "float32"  # of the stored EEG

    def __post_init__(self):
        if self.shard_samples < 1:
            raise ValueError(f"shard_samples must be 1 or more; got {self.shard_samples}")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is in pixels, so it is 1 or more, or null; got {self.image_size}")


def run(config: Config) -> None:
    with runtime.start("prepare", config) as rt:
        if rt.done:
            return
        rt.start_log()
        rt.on_main(lambda: _prepare(rt, config))
        described = ("dataset.yaml", "trials.csv") if config.source.name == "folder" else ()
        rt.inputs([f"{config.source.path}/{name}" for name in described] + [rt.run_dir / "index.json"])
        counts = rt.record.get("counts", {})
        rt.log.scalars(0, {f"trials/{split} (count)": n for split, n in counts.items()})
        rt.finish(", ".join(f"{n} {split}" for split, n in counts.items()) + " trials")


def _prepare(rt: runtime.Runtime, config: Config) -> None:
    source = SOURCES[config.source.name](config.source)
    preprocess.check(config.preprocess, source.card)
    assigned = splits.assign(source.trials, config.split, source.card)
    policy = splits.policy(source.trials, assigned, config.split, source.card)
    rt.confounded(policy["confounded"])
    if policy["confounded"]:
        log.warning("this division is confounded: %s", "; ".join(policy["reasons"]))
    members = {split: [i for i, own in enumerate(assigned) if own == split] for split in splits.SPLITS}
    with rt.bar(len(source.trials)) as bar, tempfile.TemporaryFile(dir=rt.run_dir) as scratch:
        cut = Cut(source, config, bar, rt, scratch)
        scale = preprocess.fit_scale(cut.filtered(members["train"]), config.preprocess)
        samples = {split: cut.samples(own, scale, split) for split, own in members.items() if own}
        about = {**preprocess.describe(config.preprocess, scale), "source": to_dict(config.source), **cut.timing()}
        write_shards(rt.run_dir, samples, config.shard_samples, source.card, about, policy, config.dtype)
    rt.record["counts"] = {split: len(own) for split, own in members.items()}


class Cut:
    """Filters and scales one trial at a time, so that memory stays bounded; counts what is done.

    The training trials are filtered first, for the statistics, and wait in a scratch file until they are scaled.
    """

    def __init__(self, source: Source, config: Config, bar: Bar, rt: runtime.Runtime, scratch: BinaryIO):
        self.source, self.config, self.bar, self.rt, self.scratch = source, config, bar, rt, scratch
        self.done, self.waiting = 0, dict[int, float]()  # trial -> tmin_s after the filter
        _, self.sfreq, self.tmin_s = self._filter(0)
        self.raw_samples = source.eeg(0).shape[1]  # what the filter ran over, for the audit's pre-stimulus control

    def filtered(self, members: list[int]) -> Iterator[np.ndarray]:
        for i in members:
            eeg, _, self.waiting[i] = self._filter(i)
            np.save(self.scratch, eeg, allow_pickle=False)
            self._count()
            yield eeg

    def samples(self, members: list[int], scale: dict, split: str) -> Iterator[Sample]:
        self.scratch.seek(0)
        for i in members:
            if i in self.waiting:  # in the order of the first pass
                eeg, tmin_s = np.load(self.scratch, allow_pickle=False), self.waiting[i]
            else:
                eeg, _, tmin_s = self._filter(i)
                self._count()
            meta = {**self.source.trials[i], "sfreq": self.sfreq, "tmin_s": tmin_s, "split": split}
            yield Sample(meta["key"], preprocess.apply_scale(eeg, scale, self.config.preprocess), self._image(i), meta)

    def timing(self) -> dict[str, float]:
        """Rate and start of what is written, and how long a trial was before the crop."""
        return {"sfreq": self.sfreq, "tmin_s": self.tmin_s, "raw_samples": self.raw_samples}

    def _count(self) -> None:
        self.done += 1
        self.bar.update(self.done)
        self.rt.check_stop_here()

    def _filter(self, i: int) -> tuple[np.ndarray, float, float]:
        card = self.source.card
        tmin_s = self.source.trials[i].get("tmin_s")
        start = card.tmin_s if tmin_s is None else tmin_s
        return preprocess.filter_trial(self.source.eeg(i), card.sfreq, start, self.config.preprocess, card)

    def _image(self, i: int) -> np.ndarray | None:
        image, size = self.source.image(i), self.config.image_size
        if image is None or size is None or image.shape[:2] == (size, size):
            return image
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
