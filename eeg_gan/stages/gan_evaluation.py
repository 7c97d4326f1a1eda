"""What the averaged generator is worth on validation trials, measured while it trains and without touching training.

Every draw comes from streams of its own, the same at each evaluation, so that a curve shows the generator and not the
draw. Fakes come in pairs of one condition; pairs walk through random orders of the validation trials, so that 50,000
fakes use each as often as drawing at random would on average. Real pictures are counted once each.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.data.loader import Reader
from eeg_gan.distributed import from_main, generator_at
from eeg_gan.metrics import generated
from eeg_gan.metrics.detectors import DetectorConfig
from eeg_gan.metrics.generated import MetricName, Seen
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.judging import Judge, cache_folder, class_pairs, draws, look_at_real, path_lengths
from eeg_gan.stages.loading import spread, to_uint8, unique_images
from eeg_gan.training.inference import evaluating

PATHS = 10_000  # most paths of a perceptual path length
FAMILY = {"precision": "precision_recall", "recall": "precision_recall"} | dict.fromkeys(
    ("density", "coverage"), "density_coverage"
)
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class GanEvaluationConfig:
    """Figures of the averaged generator on validation trials, beside those of real held-out pictures."""

    every: int | None = None  # images between two evaluations; null: none
    n_images: int = 10_000  # fakes of each evaluation, two per condition; published figures have 50,000
    detector: DetectorConfig | None = None  # what judges images; its name is part of each metric's name
    detector_class_names: tuple[str, ...] | None = None  # class of each logit; null: CIFAR-10's, or the data's
    metrics: tuple[MetricName, ...] = (
        "fid",
        "kid",
        "precision_recall",
        "density_coverage",
        "class_accuracy",
        "diversity",
        "nearest",
    )  # which figures are computed
    select: (
        Literal[
            "kid",
            "fid",
            "intra_fid",
            "inception_score",
            "precision",
            "recall",
            "density",
            "coverage",
            "ppl",
            "class_accuracy",
            "probe_accuracy",
        ]
        | None
    ) = "kid"  # what the best checkpoint is best in, which other stages read; null: they read the newest
    batch: int = 64  # fakes at a time
    cache: str | None = None  # folder that keeps features of real pictures; null: detector-cache beside the run

    def __post_init__(self):
        if self.every is None:
            return
        if self.detector is None:
            raise ValueError("an evaluation needs a judge; set evaluate.detector.name and its weights")
        if self.every < 1 or self.batch < 1 or self.n_images < 4 or self.n_images % 2:
            raise ValueError("every and batch are 1 or more; n_images is even, 4 or more")
        if self.detector.name == "inception" and "ppl" in self.metrics:
            raise ValueError(
                "ppl measures small steps, which the inception detector rounds to uint8; take ppl out of metrics, or "
                "another detector"
            )
        family = {"probe_accuracy": "class_accuracy"} | FAMILY
        if self.select is not None and family.get(self.select, self.select) not in self.metrics:
            raise ValueError(f"select={self.select} is not among metrics={list(self.metrics)}; add it, or select=null")


class GanEvaluation:
    """Judges the generator of one run; made once, before training, so that what is missing is said at once."""

    def __init__(self, config: Any, train: Reader, val: Reader, known: Features, device: torch.device):
        assert config.evaluate.detector is not None
        self.config, self.seed, self.device = config.evaluate, config.seed, device
        self.c, self.labels = known.rows(val.shards.keys("val")), val.labels
        own, projected = config.evaluate, config.discriminator.projected
        if projected is not None and own.detector.model == projected.tower.model:
            log.warning("the detector is what the discriminator looks through: its figures flatter this run")
        self.judge = Judge(own.detector, own.detector_class_names, val.shards.card.class_names, device)
        folder = cache_folder(own.cache, config.run_dir)
        train, real = (look_at_real(self.judge, reader, folder) for reader in (train, val))
        self.sets = self.judge.sets(real, train, self.seed)
        self.trials = order(self.seed, len(self.c), own.n_images)
        ceilings = self._ceilings(real, val)
        self.ceilings = self._tagged(ceilings, " of real pictures")
        line = ", ".join(f"{name} {value:.3g}" for name, value in ceilings.items())
        log.info("%d validation trials of %d pictures, which score %s", len(self.c), len(real), line)

    def figures(self, g: Generator) -> tuple[dict[str, float], dict[str, float]]:
        """Means by name, equal on every rank; and the rows of the log, with real pictures' beside them."""
        with evaluating(g), torch.no_grad():
            fake = self._look_at_fakes(g)
            if "ppl" in self.config.metrics:
                paths = self.c[self.trials[:PATHS]]
                fake.path_lengths = path_lengths(self.judge, g, paths, self.seed, self.config.batch)
        self.sets.fake = fake
        found = generated.figures(self.config.metrics, self.sets)
        means = from_main({name: figure.mean for name, figure in found.items()})
        self._check_select(list(means))
        return means, self._tagged(means) | self.ceilings

    def _check_select(self, known: list[str]) -> None:
        select = self.config.select
        if select is not None and select not in known:
            raise UserError(
                f"evaluate.select={select}, but the detector {self.judge.name} gives {', '.join(known)} on these data; "
                "select one of them, or null"
            )

    def better(self, figures: dict[str, float], best: dict | None) -> bool:
        """Whether these figures are the best so far in what is selected."""
        select = self.config.select
        if select is None:
            return False
        if best is None:
            return True
        return figures[select] > best[select] if select in generated.HIGHER else figures[select] < best[select]

    def pictures(self, g: Generator, numbers: list[int]) -> Tensor:
        """uint8 [B, C, H, W]; a fake depends on its number alone, so any layout of processes gives the same."""
        z, c = draws(self.seed, "evaluate-z", numbers, g.z_dim), self.c[self.trials[numbers]]
        return to_uint8(g(z.to(self.device), c.to(self.device), noise="const"))

    def _look_at_fakes(self, g: Generator) -> Seen:
        config = self.config
        seen = self.judge.look(lambda i: self.pictures(g, i), config.n_images, config.batch)
        seen.conditions, seen.labels = self.trials, self.labels[self.trials]
        if "diversity" in config.metrics:
            pairs = [(i, i + 1) for i in range(0, min(config.n_images, 2000), 2)]
            seen.pair_distances = self.judge.pair_distances(lambda i: self.pictures(g, i), pairs, config.batch)
        return seen

    def _ceilings(self, real: Seen, reader: Reader) -> dict[str, float]:
        if "diversity" in self.config.metrics:
            first = unique_images(reader.shards, reader.split)[0]
            real.pair_distances = self.judge.pair_distances(
                lambda i: reader.batch([first[k] for k in i])["image"], class_pairs(real.labels)
            )
        sample = spread(len(self.sets.train), self.config.n_images)
        found = generated.ceilings(self.config.metrics, self.sets, sample)
        return from_main({name: figure.mean for name, figure in found.items()})

    def _tagged(self, values: dict[str, float], of: str = "") -> dict[str, float]:
        units = generated.UNITS
        return {f"val/{name}[{self.judge.name}]{of} ({units.get(name, '1')})": value for name, value in values.items()}


def order(seed: int, trials: int, n: int) -> np.ndarray:
    """[n] the validation trial of every fake: pairs of one trial, in one random order of all trials after another."""
    passes = -(-n // (2 * trials))
    shuffled = [torch.randperm(trials, generator=generator_at(seed, "evaluate-trials", i)) for i in range(passes)]
    return torch.cat(shuffled).repeat_interleave(2)[:n].numpy()
