"""Every metric, with 95 % intervals, chance, and the same figure for real images and for shuffled EEG.

Labels of the test split are read here and in audit alone. Classifiers are fitted on the training split; intervals are
bootstrapped over stimuli, because trials of one picture are not independent, or over recordings where nobody saw the
pictures.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.shards import Shards
from eeg_gan.metrics import embedding
from eeg_gan.metrics.detectors import DetectorConfig
from eeg_gan.metrics.generated import METRICS, MetricName
from eeg_gan.metrics.statistics import bootstrap_mean, record
from eeg_gan.stages import evaluate_images, evaluate_retrieval
from eeg_gan.stages.loading import OF_LABELS, load_features, open_shards
from eeg_gan.training import checkpoint, runtime

Metrics = dict[str, dict]


@dataclass(frozen=True)
class Config:
    run_dir: str  # where metrics.json goes
    loader: LoaderConfig  # the shards
    features: str | None = None  # run_dir of embed on stage 1: clustering and classification
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
    split: Literal["val", "test"] = "test"  # what is judged
    seed: int = 0  # of k-means and of the bootstrap

    def __post_init__(self):
        if self.generated and self.detector is None:
            raise ValueError("judging generated images needs a detector; set detector.name and detector.weights")
        if bool(self.align) != bool(self.aligned_features):
            raise ValueError("align and aligned_features belong together; give both or neither")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more; got seed={self.seed}")


@dataclass
class Context:
    """The opened data and what is collected for the report."""

    config: Config
    rt: runtime.Runtime
    shards: Shards
    details: dict[str, Tensor] = field(default_factory=dict)

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
        parts = (stage1, lda, evaluate_retrieval.aligned, evaluate_retrieval.predicted, evaluate_images.images)
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


def stage1(context: Context) -> Metrics:
    """The paper's measures of the stage-1 feature: k-means, kNN, linear SVM."""
    config, shards = context.config, context.shards
    if config.features is None:
        return {}
    known = context.features(config.features)
    if known.meta.get("of") == OF_LABELS:
        raise UserError(
            f"{config.features} holds one-hot vectors of the classes that stage 1 is asked for; give the features "
            "of an encoder, or leave features out and judge what was generated"
        )
    z_train, z = (known.rows(shards.keys(split)).numpy() for split in ("train", config.split))
    y_train, y = (shards.labels(split) for split in ("train", config.split))
    classes = len(shards.card.class_names)
    chance = float(np.bincount(y).max() / len(y))
    predicted = embedding.knn_predict(z_train, y_train, z)
    right_knn = predicted == y
    clusters = embedding.clusters(z, len(set(y_train.tolist())), config.seed)
    nmi, ari = embedding.nmi_ari(clusters, y)
    context.details["knn_predicted"] = torch.from_numpy(predicted)
    context.details["labels"] = torch.from_numpy(y)
    return {
        "encode/kmeans_accuracy": context.mean(embedding.matched_accuracy(clusters, y)[1].astype(float), chance),
        "encode/knn_accuracy": context.mean(right_knn.astype(float), chance),
        "encode/knn_balanced_accuracy": record(embedding.balanced_accuracy(right_knn, y), chance=1 / classes, n=len(y)),
        "encode/svm_accuracy": context.mean(embedding.linear_svm(z_train, y_train, z, y).astype(float), chance),
        "encode/nmi": record(nmi, chance=0.0, n=len(y)),
        "encode/ari": record(ari, chance=0.0, n=len(y)),
    }


def lda(context: Context) -> Metrics:
    """Shrinkage LDA on the EEG itself, on the same split."""
    if not context.config.lda:
        return {}
    train, test = context.reader("train"), context.reader(context.config.split)
    right = embedding.lda_baseline(train.eeg_all().numpy(), train.labels, test.eeg_all().numpy(), test.labels)
    chance = float(np.bincount(test.labels).max() / test.n)
    return {
        "lda/accuracy": context.mean(right.astype(float), chance),
        "lda/balanced_accuracy": record(
            embedding.balanced_accuracy(right, test.labels), chance=1 / len(context.shards.card.class_names), n=test.n
        ),
    }


def _files(config: Config) -> list[Path]:
    """The small files that say whether what is judged has changed."""
    embedded = (config.features, config.aligned_features, config.image2eeg_features)
    features = [Path(run_dir) / "features.json" for run_dir in embedded if run_dir]
    runs = (config.generated, config.generated_shuffled, config.generated_image2eeg)
    aligner = [checkpoint.chosen(config.align).path / "state.json"] if config.align else []
    return [Path(config.loader.index), *features, *aligner, *(Path(r) / "manifest.json" for r in runs if r)]


def _write(context: Context, metrics: Metrics) -> None:
    """metrics.json, and per-trial details for the report."""
    if context.shards.confounded:
        metrics = {name: {**metric, "confounded": True} for name, metric in metrics.items()}
    checkpoint.write_json(context.rt.run_dir / "metrics.json", metrics)
    if context.details:
        checkpoint.save_tensors(context.rt.run_dir / "details.safetensors", context.details)
