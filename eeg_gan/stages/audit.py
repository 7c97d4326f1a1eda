"""Looks for leaks and confounds in prepared shards: overlaps, duplicates, labels that the time alone gives away."""

import logging
from dataclasses import dataclass

import torch

from eeg_gan.data import audit
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.distributed import generator_at
from eeg_gan.metrics.embedding import lda_baseline
from eeg_gan.metrics.statistics import wilson
from eeg_gan.stages.loading import open_shards
from eeg_gan.training import checkpoint, runtime

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    run_dir: str  # where audit.json goes
    loader: LoaderConfig  # the shards to audit, test split included
    permutations: int = 2000  # shufflings behind each p-value; 1000 at least, for p < .001 to be reachable
    seed: int = 0  # of the shufflings

    def __post_init__(self):
        if self.permutations < 1000:
            raise ValueError(
                f"permutations must be 1000 or more, or p < .001 cannot be reached; got {self.permutations}"
            )


def run(config: Config) -> None:
    with runtime.start("audit", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val", "test"))
        rt.inputs([config.loader.index], shards=shards.digest)
        rt.start_log()
        rt.reads(("train", "val", "test"))
        readers = {
            split: Reader(shards, split, config.loader.cache_mb, config.loader.workers)
            for split in ("train", "val", "test")
        }
        with rt.bar(3) as bar:
            eeg = {split: reader.eeg_all().numpy() for split, reader in readers.items()}
            bar.update(1)
            rt.check_stop()
            digests = {split: [audit.eeg_digest(x) for x in own] for split, own in eeg.items()}
            metas = {split: shards.metas(split) for split in readers}
            length_s = shards.n_times / shards.preprocessing["sfreq"]
            policy, seed = shards.split_policy, config.seed
            found = audit.report(metas, shards.card, policy, length_s, seed, digests, config.permutations)
            bar.update(2)
            rt.check_stop()
            found["shuffled_labels"] = shuffled_labels(eeg, readers, seed)
            bar.update(3)
        found["counts"] = {split: reader.n for split, reader in readers.items()}
        found["split_policy"], found["design"] = shards.split_policy, shards.card.design
        if rt.main:
            checkpoint.write_json(rt.run_dir / "audit.json", found)
            for reason in found["reasons"]:
                log.warning("audit: %s", reason)
        controls = {name: found[name] for name in ("time_control", "shuffled_labels") if found[name] is not None}
        known = {name: control["value"] for name, control in controls.items() if control["value"] is not None}
        rt.log.scalars(0, {f"{name} (accuracy)": value for name, value in known.items()})
        rt.finish(found["verdict"] + _about_time(found["time_control"]))


def _about_time(control: dict | None) -> str:
    if control is None or control["value"] is None:
        return ""
    return f"; time alone decodes {control['value']:.3f}, chance {control['chance']:.3f}"


def shuffled_labels(eeg: dict, readers: dict[str, Reader], seed: int) -> dict:
    """Shrinkage LDA fitted on shuffled training labels: what a decoder scores where there is nothing to decode."""
    y_train, y_test = readers["train"].labels, readers["test"].labels
    order = generator_at(seed, "audit-shuffle", 0)
    shuffled = y_train[torch.randperm(len(y_train), generator=order).numpy()]
    correct = lda_baseline(eeg["train"], shuffled, eeg["test"], y_test)
    value, low, high = wilson(int(correct.sum()), len(correct))
    return {"value": value, "low": low, "high": high, "chance": 1 / len(set(y_train.tolist())), "n": len(correct)}
