"""A raw dataset, filtered, scaled by its training split, divided without leaks, paired with images, as shards.

Memory does not grow with the data set but by its table of trials. What is finished waits in `.partial-shards`, with a
journal; a run that was stopped or killed makes only what is missing, and the bytes are those of an unbroken run.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.config import UserError, to_dict
from eeg_gan.data import card as cards
from eeg_gan.data import memory, preprocess, splits
from eeg_gan.data.cutting import Plan, filter_one, fit_parts, shard_parts
from eeg_gan.data.parallel import Journal, Workers
from eeg_gan.data.pictures import Pictures
from eeg_gan.data.preprocess import PreprocessConfig
from eeg_gan.data.shards import Shards, read_index
from eeg_gan.data.sources import SOURCES, Source, SourceConfig
from eeg_gan.data.splits import SplitConfig, digest
from eeg_gan.data.verifying import problems
from eeg_gan.data.writing import VERSION, Dtype, Form, ImageFormat, check_key, check_unique, index_of, keys_of, publish
from eeg_gan.training import runtime
from eeg_gan.training.checkpoint import file_digest
from eeg_gan.training.preempt import Stopped

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    run_dir: str  # where train/, val/, test/ and index.json go
    source: SourceConfig = field(default_factory=SourceConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    image_size: int | None = None  # images are resized to this many pixels square; null keeps them
    image_format: ImageFormat = "png"  # how images are stored; npy is larger and needs no decoding, jpg loses a little
    shard_samples: int = 512  # trials per shard
    dtype: Dtype = "float32"  # of the stored EEG
    workers: int = 0  # processes that filter and encode; 0: this one alone. The bytes do not depend on it

    def __post_init__(self):
        if self.shard_samples < 1:
            raise ValueError(f"shard_samples must be 1 or more; got {self.shard_samples}")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is in pixels, so it is 1 or more, or null; got {self.image_size}")
        if self.workers < 0:
            raise ValueError(f"workers is a number of processes, so it is 0 or more; got {self.workers}")


def run(config: Config) -> None:
    with runtime.start("prepare", config) as rt:
        rt.record.get("done", {})["workers"] = config.workers  # it changes nothing of the result
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
    _check_memory(source, config)
    preprocess.check(config.preprocess, source.card)
    _check_keys(source)
    assigned = splits.assign(source.trials, config.split, source.card)
    policy = splits.policy(source.trials, assigned, config.split, source.card)
    rt.confounded(policy["confounded"])
    if policy["confounded"]:
        log.warning("this division is confounded: %s", "; ".join(policy["reasons"]))
    members = {split: [i for i, own in enumerate(assigned) if own == split] for split in splits.SPLITS}
    partial = rt.run_dir / ".partial-shards"
    journal = Journal(partial, _identity(config, source, assigned))
    plan, timing = _plan(config, source, partial, len(members["train"]))
    fits = fit_parts(members["train"], config.shard_samples) if preprocess.needs_fit(config.preprocess) else []

    with rt.bar(len(source.trials) + sum(len(part.members) for part in fits)) as bar:
        workers = min(config.workers, -(-len(assigned) // config.shard_samples))  # no more than there are shards
        with Workers(plan, source, workers, journal, _Tick(rt, bar)) as work:
            scale = preprocess.scale_of(_statistics(partial, work.make(fits)), config.preprocess)
            parts = [p for s, m in members.items() for p in shard_parts(s, m, config.shard_samples, scale)]
            records = work.make(parts)
    listed = {split: [] for split, own in members.items() if own}
    for part, record in zip(parts, records, strict=True):
        listed[part.split].append(record)
    about = {**preprocess.describe(config.preprocess, scale), "source": to_dict(config.source), **timing}
    publish(rt.run_dir, partial, index_of(listed, source.card, about, policy, plan.form))
    shutil.rmtree(partial, ignore_errors=True)
    rt.record["counts"] = {split: len(own) for split, own in members.items()}


class _Tick:
    """Shows n more trials, and leaves when asked to."""

    def __init__(self, rt: runtime.Runtime, bar: Any):
        self.rt, self.bar, self.done = rt, bar, 0

    def __call__(self, n: int) -> None:
        self.done += n
        self.bar.update(self.done)
        if self.rt.flag.signal is not None:
            raise Stopped("prepare: stopped; finished shards are kept, and the same command makes the others")


def _check_memory(source: Source, config: Config) -> None:
    """Formats that can only be read whole are in each process, and in this one."""
    peak, copies = getattr(source, "peak_bytes", None) or 0, config.workers + 1
    cure = "lower workers, or use a machine with more" if config.workers else "use a machine with more"
    memory.check(peak * copies, f"source {config.source.name} in {copies} process{'es' * (copies > 1)}", cure)


def _check_keys(source: Source) -> None:
    keys = set[str]()
    for trial in source.trials:
        check_key(trial["key"])
        check_unique(trial["key"], keys)


def _plan(config: Config, source: Source, partial: Path, train_trials: int) -> tuple[Plan, dict[str, float]]:
    """The first trial says what all must look like; with the rate and start of what is written."""
    eeg, sfreq, tmin_s = filter_one(source, 0, config.preprocess)
    picture = Pictures(source, partial / "images", config.image_size, config.image_format).of(0)
    form = Form(eeg.shape, None if picture is None else picture.shape, config.dtype, config.image_format)
    plan = Plan(config.source, config.preprocess, form, config.image_size, sfreq, str(partial), train_trials)
    raw_samples = source.eeg(0).shape[1]  # what the filter ran over, for the audit's pre-stimulus control
    return plan, {"sfreq": sfreq, "tmin_s": tmin_s, "raw_samples": raw_samples}


def _identity(config: Config, source: Source, assigned: list[str]) -> str:
    """A digest of everything that the bytes of the shards depend on, but for the recordings themselves."""
    sha = hashlib.sha256(json.dumps([VERSION, to_dict(replace(config, run_dir="", workers=0))]).encode())
    sha.update(json.dumps(cards.to_dict(source.card)).encode())
    for trial, split in zip(source.trials, assigned, strict=True):
        sha.update(json.dumps([trial, split], default=str).encode())
    return sha.hexdigest()


def _statistics(partial: Path, records: list[dict]) -> Iterator[dict[str, np.ndarray]]:
    for record in records:
        with np.load(partial / record["file"], allow_pickle=False) as found:
            yield {name: found[name] for name in found if name not in ("tmin_s", "eeg_sha256")}


def verify(config: Config) -> None:
    """Reads every byte of a prepared data set again and names all that is not as index.json says."""
    folder = Path(config.run_dir)
    index, _ = read_index(folder / "index.json")
    form = Shards(folder / "index.json", (), verify="none").form
    found = _index_problems(folder, index)
    with ThreadPoolExecutor(max(1, config.workers)) as pool:
        for lines in pool.map(lambda split: list(problems(folder, index, split, form)), index["splits"]):
            found += lines
    for line in found:
        log.warning("%s", line)
    shards = [shard for listed in index["splits"].values() for shard in listed]
    n_samples = sum(len(shard["samples"]) for shard in shards)
    if found:
        raise UserError(
            f"{folder}: {len(found)} problem{'s' * (len(found) > 1)} in {len(shards)} shards, named above; "
            "run prepare again in an empty run_dir, or copy the named files again"
        )
    log.info("%s: %d shards with %d samples are as index.json says", folder, len(shards), n_samples)


def _index_problems(folder: Path, index: dict[str, Any]) -> list[str]:
    """What is wrong with index.json itself, by its own split digest and by the run's record."""
    found, path = [], folder / "index.json"
    division = digest(keys_of(index["splits"]))
    if division != index["split_policy"]["digest"]:
        found.append(f"{path}: its samples are not those of its split digest; they make {division}")
    if os.path.exists(folder / "run.json"):
        files = json.loads((folder / "run.json").read_text()).get("files", {})
        expected = next((sha for name, sha in files.items() if name.endswith("index.json")), None)
        if expected is not None and file_digest(path) != expected:
            found.append(f"{path}: foreign: SHA-256 is {file_digest(path)}, but run.json says {expected}")
    for name in sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name in splits.SPLITS):
        if name not in index["splits"]:
            found.append(f"{folder / name}: foreign: index.json lists no split {name}")
    return found
