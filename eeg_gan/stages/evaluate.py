"""Every metric, with 95 % intervals, chance, and the same figure for real images and for shuffled EEG.

Labels of the test split are read here and in audit alone. Classifiers are fitted on the training split; intervals are
bootstrapped over stimuli, because trials of one picture are not independent, or over recordings where nobody saw the
pictures.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.shards import Shards
from eeg_gan.metrics.detectors import DetectorConfig
from eeg_gan.metrics.generated import METRICS, MetricName
from eeg_gan.metrics.probes import PROBES, Probe
from eeg_gan.metrics.statistics import bootstrap_mean, record
from eeg_gan.stages import evaluate_features, evaluate_images, evaluate_retrieval
from eeg_gan.stages.loading import load_features, open_shards
from eeg_gan.training import checkpoint, runtime

Metrics = dict[str, dict]


@dataclass(frozen=True)
class Config:
    run_dir: str  # where metrics.json goes
    loader: LoaderConfig  # the shards
    features: str | None = None  # run_dir of embed on stage 1: clustering and classification
    against: str | None = None  # run_dir of embed on another encoder: by how much `features` are better, trial by trial
    finetuned: str | None = None  # run_dir of encode with loss=cross_entropy: what its own classifier says
    encoder: str | None = None  # run_dir of what made `features`: which electrodes and which bands they rest on
    probes: tuple[Probe, ...] = tuple(PROBES)  # classifiers that are fitted on training features
    align: str | None = None  # run_dir of align: retrieval
    aligned_features: str | None = None  # run_dir of embed on align
    image2eeg_features: str | None = None  # run_dir of embed on image2eeg, with the features it learned from above
    generated: str | None = None  # run_dir of generate with the trials' own EEG
    generated_shuffled: str | None = None  # run_dir of generate with condition: shuffled, the control
    generated_image2eeg: str | None = None  # run_dir of generate on features of image2eeg
    detector: DetectorConfig | None = None  # what judges images; its name is part of each metric's name
    detector_class_names: tuple[str, ...] | None = (
        None  # class of each logit; null: CIFAR-10's (resnet56), the data's (classifier)
    )
    metrics: tuple[MetricName, ...] = tuple(METRICS)  # which figures of generated images
    lda: bool = True  # shrinkage LDA on the EEG itself, the score to beat
    time_resolved: bool = True  # with lda: the same in each 50 ms of the trial, for the report's curve
    folds: int = 5  # of held-out trials, where all their classes are unseen in training
    permutations: int = 1000  # shuffled labels behind each p; 0 leaves p out
    ablation_trials: int = 600  # with `encoder`: how many held-out trials are spoilt and encoded again
    split: Literal["val", "test"] = "test"  # what is judged
    seed: int = 0  # of k-means and of the bootstrap

    def __post_init__(self):
        if self.generated and self.detector is None:
            raise ValueError("judging generated images needs a detector; set detector.name and detector.weights")
        if bool(self.align) != bool(self.aligned_features):
            raise ValueError("align and aligned_features belong together; give both or neither")
        if self.features is None and (self.against or self.finetuned or self.encoder):
            raise ValueError("against, finetuned and encoder are read beside features; name those too")
        if self.folds < 2 or self.permutations < 0 or self.ablation_trials < 2:
            raise ValueError("folds and ablation_trials are 2 or more, permutations 0 or more")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more; got seed={self.seed}")


@dataclass
class Context:
    """The opened data and what is collected for the report."""

    config: Config
    rt: runtime.Runtime
    shards: Shards
    details: dict[str, Tensor] = field(default_factory=dict)
    subjects: dict[str, dict] = field(default_factory=dict)  # metric -> subject -> record

    def reader(self, split: str) -> Reader:
        return Reader(self.shards, split, self.config.loader.cache_mb, self.config.loader.workers)

    def features(self, run_dir: str) -> Features:
        return load_features(run_dir, self.shards.split_digest, self.config.loader.index)

    def units(self) -> list[str]:
        """What intervals are bootstrapped over: the picture that trials share; the recording where nobody saw any."""
        metas = self.shards.metas(self.config.split)
        if self.shards.card.pairing != "class":
            return [m["stimulus"] or m["recording"] or m["key"] for m in metas]
        return [f"{m['subject']}/{m['recording']}" if m["recording"] else m["subject"] or m["key"] for m in metas]

    def mean(self, values: np.ndarray, chance: float | None, groups=None) -> dict:
        value, low, high = bootstrap_mean(values, self.units() if groups is None else groups, seed=self.config.seed)
        return record(value, low, high, chance, len(values))


def run(config: Config) -> None:
    with runtime.start("evaluate", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", config.split))
        rt.inputs(_files(config), shards=shards.digest)
        rt.reads(("train", config.split))
        rt.start_log()
        rt.confounded(shards.confounded)
        context, metrics = Context(config, rt, shards), {}
        retrieving = (evaluate_retrieval.aligned, evaluate_retrieval.predicted)
        parts = (evaluate_features.stage1, evaluate_features.lda, *retrieving, evaluate_images.images)
        with rt.bar(len(parts)) as bar:
            for done, part in enumerate(parts, 1):
                metrics |= part(context)
                bar.update(done)
                rt.check_stop()
        if rt.main:
            _write(context, metrics)
        known = {name: m["value"] for name, m in metrics.items() if m["value"] is not None}
        rt.log.scalars(0, {f"{name} ({config.split})": value for name, value in known.items()})
        rt.finish("; ".join(f"{name} {m['value']:.3f}" for name, m in metrics.items() if name in HEADLINE))


HEADLINE = ("encode/kmeans_accuracy", "encode/knn_accuracy", "align/retrieval_top1", "generate/class_accuracy")


def _files(config: Config) -> list[Path]:
    """The small files that say whether what is judged has changed."""
    embedded = (config.features, config.aligned_features, config.image2eeg_features, config.against)
    features = [Path(run_dir) / "features.json" for run_dir in embedded if run_dir]
    runs = (config.generated, config.generated_shuffled, config.generated_image2eeg)
    networks = (config.align, config.finetuned, config.encoder)
    chosen = [checkpoint.chosen(run_dir).path / "state.json" for run_dir in networks if run_dir]
    return [Path(config.loader.index), *features, *chosen, *(Path(r) / "manifest.json" for r in runs if r)]


def _write(context: Context, metrics: Metrics) -> None:
    """metrics.json, and per-trial details for the report."""
    if context.shards.confounded:
        metrics = {name: {**metric, "confounded": True} for name, metric in metrics.items()}
    checkpoint.write_json(context.rt.run_dir / "metrics.json", metrics)
    if context.subjects:
        checkpoint.write_json(context.rt.run_dir / "subjects.json", context.subjects)
    if context.details:
        checkpoint.save_tensors(context.rt.run_dir / "details.safetensors", context.details)
