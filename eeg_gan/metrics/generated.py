"""Every figure of a set of generated pictures, from what a detector sees in them and in real ones.

Real pictures are counted once each, however many trials show them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eeg_gan.config import UserError
from eeg_gan.metrics import distribution, perceptual

SUBSETS, SUBSET = 50, 1000  # of KID
NEAR = 0.05  # quantile of held-out pictures' distances to training below which a generated one counts as a copy
FITTED_ON = 10_000  # pictures, at most, that the linear probe is fitted on


@dataclass
class Seen:
    """What a detector sees in N pictures: float32 on the host."""

    features: np.ndarray  # [N, F]
    logits: np.ndarray  # [N, L]; L is 0 where the detector tells no classes apart
    labels: np.ndarray | None = None  # [N] class of the picture, or of the trial that it is drawn for
    conditions: np.ndarray | None = None  # [N] what it was drawn for; for real pictures their class
    pair_distances: np.ndarray | None = None  # [P] perceptual distances of pairs with one condition
    path_lengths: np.ndarray | None = None  # [P] of the generator, in the detector's distance

    def __len__(self) -> int:
        return len(self.features)

    def at(self, places: Sequence[int]) -> "Seen":
        """Some of the pictures, without distances."""
        parts = (self.features, self.logits, self.labels, self.conditions)
        return Seen(*(None if part is None else part[places] for part in parts))


@dataclass
class Sets:
    """Pictures that are judged, what they are held against, and what says the class."""

    fake: Seen
    real: Seen  # held-out pictures, each once
    train: Seen  # training pictures, each once
    predict: Callable[[Seen], np.ndarray] | None = None  # [N] classes
    accuracy: str = "class_accuracy"
    seed: int = 0


@dataclass
class Figure:
    """A number, or one per item of what a new experiment would draw again."""

    values: float | np.ndarray
    over: Literal["", "generated", "real", "condition", "path"] = ""

    n: int | None = None  # pictures, or classes, behind a number

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


Figures = dict[str, Figure]


def fid(sets: Sets) -> Figures:
    return {"fid": Figure(distribution.frechet(sets.real.features, sets.fake.features), n=len(sets.fake))}


def kid(sets: Sets) -> Figures:
    """To held-out pictures, and to training pictures: a generator that memorises is nearer to those."""
    pairs = {"kid": sets.real} | ({} if sets.fake is sets.real else {"kid_train": sets.train})
    found = {}
    for name, real in pairs.items():
        size = min(len(real), len(sets.fake), SUBSET)
        value, _ = distribution.kid(real.features, sets.fake.features, SUBSETS, size, sets.seed)
        found[name] = Figure(value, n=len(sets.fake))
    return found


def inception_score(sets: Sets) -> Figures:
    if sets.fake.logits.shape[1] < 2:
        return {}
    splits = 10 if len(sets.fake) >= 5000 else 1  # a small part cannot show all classes
    return {"inception_score": Figure(distribution.inception_score(sets.fake.logits, splits)[0], n=len(sets.fake))}


def precision_recall(sets: Sets) -> Figures:
    real, fake = sets.real.features, sets.fake.features
    if min(len(real), len(fake)) <= 3:
        return {}
    precise, recalled = distribution.inside(fake, real, 3)[0] > 0, distribution.inside(real, fake, 3)[0] > 0
    return {"precision": Figure(precise.astype(float), "generated"), "recall": Figure(recalled.astype(float), "real")}


def density_coverage(sets: Sets) -> Figures:
    if len(sets.real) <= 5:
        return {}
    per_fake, per_real = distribution.inside(sets.fake.features, sets.real.features, 5)
    return {"density": Figure(per_fake / 5, "generated"), "coverage": Figure((per_real > 0).astype(float), "real")}


def intra_fid(sets: Sets) -> Figures:
    """Mean over classes that have two pictures or more on both sides."""
    real, fake = sets.real, sets.fake
    if real.labels is None or fake.labels is None:
        return {}
    found = distribution.frechet_by_class(real.features, fake.features, real.labels, fake.labels)
    return {"intra_fid": Figure(float(np.mean(list(found.values()))), n=len(found))} if found else {}


def class_accuracy(sets: Sets) -> Figures:
    if sets.predict is None or sets.fake.labels is None:
        return {}
    right = sets.predict(sets.fake) == sets.fake.labels
    return {sets.accuracy: Figure(right.astype(float), "generated")}


def diversity(sets: Sets) -> Figures:
    """Distances of pictures drawn for one condition, in features and, where there are maps, place by place."""
    found = {}
    if sets.fake.conditions is not None:
        values = perceptual.diversity(sets.fake.features, sets.fake.conditions)
        found |= {"diversity": Figure(values, "condition")} if len(values) else {}
    if sets.fake.pair_distances is not None and len(sets.fake.pair_distances):
        found["perceptual_diversity"] = Figure(sets.fake.pair_distances, "condition")
    return found


def nearest(sets: Sets) -> Figures:
    """How far the nearest training picture is, and how many are nearer than 5 % of held-out pictures are."""
    far = distribution.nearest(sets.fake.features, sets.train.features)
    usual = far if sets.fake is sets.real else distribution.nearest(sets.real.features, sets.train.features)
    copies = (far < np.quantile(usual, NEAR)).astype(float)
    return {"nearest_train": Figure(far, "generated"), "copies": Figure(copies, "generated")}


def ppl(sets: Sets) -> Figures:
    """Mean without the lowest and the highest 1 %, as published."""
    lengths = sets.fake.path_lengths
    if lengths is None:
        return {}
    low, high = np.quantile(lengths, [0.01, 0.99])
    return {"ppl": Figure(lengths[(lengths >= low) & (lengths <= high)], "path")}


METRICS = {
    "fid": fid,
    "kid": kid,
    "inception_score": inception_score,
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
    "ppl": ppl,
    "intra_fid": intra_fid,
    "class_accuracy": class_accuracy,
    "diversity": diversity,
    "nearest": nearest,
}
MetricName = Literal[
    "fid",
    "kid",
    "inception_score",
    "precision_recall",
    "density_coverage",
    "ppl",
    "intra_fid",
    "class_accuracy",
    "diversity",
    "nearest",
]
OF_TRAINING = ("fid", "kid", "precision_recall", "density_coverage", "intra_fid")  # of held-out ones: the rest
UNITS = {  # of what is not a bare number
    **dict.fromkeys(("precision", "recall", "coverage", "class_accuracy", "probe_accuracy", "copies"), "0 to 1"),
    **dict.fromkeys(("diversity", "nearest_train"), "distance"),
    **dict.fromkeys(("fid", "intra_fid", "perceptual_diversity"), "squared distance"),
    "inception_score": "classes",
    "ppl": "squared distance per path",
}
HIGHER = ("inception_score", "precision", "recall", "density", "coverage", "class_accuracy", "probe_accuracy")
LOWER = ("kid", "fid", "intra_fid", "ppl")


def figures(names: Sequence[str], sets: Sets) -> Figures:
    """The asked figures of the generated pictures; what the detector or so few pictures cannot tell is left out."""
    found: Figures = {}
    for name in names:
        found |= METRICS[name](sets)
    return found


def ceilings(names: Sequence[str], sets: Sets, sample: Sequence[int]) -> Figures:
    """The same for real pictures: distances of a `sample` of training to held-out ones, the rest of held-out ones.

    Their diversity is within a class, as one condition has one real picture; they are copies of none by definition.
    """
    seen = replace(sets, fake=sets.train.at(sample))
    held_out = replace(sets, fake=replace(sets.real, conditions=sets.real.labels))
    held_out.real = held_out.fake
    found = figures([name for name in names if name in OF_TRAINING], seen)
    found |= figures([name for name in names if name not in OF_TRAINING], held_out)
    return {name: figure for name, figure in found.items() if name not in ("kid_train", "copies")}


def linear_probe(train: Seen, n_classes: int) -> Callable[[Seen], np.ndarray]:
    """A classifier of features, fitted on real training pictures: for detectors without logits of these classes."""
    assert train.labels is not None
    places = np.arange(len(train)) if len(train) <= FITTED_ON else np.arange(FITTED_ON) * len(train) // FITTED_ON
    known = np.unique(train.labels[places])
    if len(known) < 2:
        raise UserError(f"training pictures show {len(known)} of {n_classes} classes; class accuracy needs two")
    scale = StandardScaler().fit(train.features[places])
    model = LogisticRegression(C=0.01, max_iter=300).fit(scale.transform(train.features[places]), train.labels[places])
    return lambda seen: model.predict(scale.transform(seen.features))
