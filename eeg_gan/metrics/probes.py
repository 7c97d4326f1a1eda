"""Classifiers that are fitted on frozen features: each gives the class of every judged sample."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from eeg_gan.config import UserError
from eeg_gan.metrics.embedding import check_classes, knn_predict

# N fitted sample, M judged sample, D feature

Probe = Literal["knn", "svm", "svm_rbf", "logistic"]
LARGEST = 6000  # samples that the RBF machine is fitted on: its time grows with their square


def svm(z_ND: np.ndarray, y: np.ndarray, z_MD: np.ndarray) -> np.ndarray:
    """A linear support vector machine, one class against the rest, C = 1."""
    return LinearSVC(dual="auto", max_iter=10000, random_state=0).fit(z_ND, y).predict(z_MD)


def svm_rbf(z_ND: np.ndarray, y: np.ndarray, z_MD: np.ndarray) -> np.ndarray:
    """A support vector machine with a Gaussian kernel, C = 1, its width by the features' variance.

    Of more than `LARGEST` samples an even draw is taken, without which it would take hours.
    """
    if len(z_ND) > LARGEST:
        own = np.random.default_rng(0).choice(len(z_ND), LARGEST, replace=False)
        z_ND, y = z_ND[own], y[own]
    return SVC(C=1.0, gamma="scale", cache_size=500).fit(z_ND, y).predict(z_MD)


def logistic_model(z_ND: np.ndarray, y: np.ndarray):
    """Multinomial logistic regression on standardised features, the usual linear probe; fitted."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(z_ND, y)


def logistic(z_ND: np.ndarray, y: np.ndarray, z_MD: np.ndarray) -> np.ndarray:
    return logistic_model(z_ND, y).predict(z_MD)


PROBES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "knn": knn_predict,
    "svm": svm,
    "svm_rbf": svm_rbf,
    "logistic": logistic,
}


def predicted(name: str, z_ND: np.ndarray, y: np.ndarray, z_MD: np.ndarray) -> np.ndarray:
    """The class [M] of each row of z_MD by the probe `name`, fitted on z_ND with classes y [N]."""
    check_classes(y)
    return PROBES[name](z_ND, y, z_MD)


def folds_of(groups: Sequence, labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """The fold [N] of each sample; samples of one group share a fold, and the groups of each class are spread evenly.

    A group that holds several classes counts for that of its first sample.
    """
    names, first, of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    if len(names) < n:
        raise UserError(f"{n} folds need {n} groups (pictures or recordings) or more, but there are {len(names)}")
    fold, rng, at = np.empty(len(names), dtype=np.int64), np.random.default_rng(seed), 0
    for label in np.unique(labels[first]):
        own = rng.permutation(np.flatnonzero(labels[first] == label))
        fold[own] = (at + np.arange(len(own))) % n
        at += len(own)
    return fold[of]


def predicted_in_folds(name: str, z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The class [N] of each row by the probe fitted on the other folds: for classes that training has not seen."""
    found = np.empty(len(y), dtype=np.asarray(y).dtype)
    for fold in np.unique(folds):
        own = folds == fold
        found[own] = predicted(name, z[~own], y[~own], z[own])
    return found
