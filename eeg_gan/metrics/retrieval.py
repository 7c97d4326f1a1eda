"""Retrieval of the seen image from EEG, and back. All values come per query: intervals can be taken over stimuli.

Figures of a smaller gallery are exact expectations over all draws of distractors, not a seeded draw of some.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import hypergeom

TIE = 1e-9  # cosines closer than this are a tie, and a tie counts against us: a collapsed embedding earns nothing
CHUNK = 1024  # queries at a time


def ranks(query: np.ndarray, gallery: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How many gallery items [M, D] are as close (cosine) to each query [N, D] as its item `target` [N]; best 0."""
    everything = np.zeros(len(gallery), dtype=np.int64)
    return within_class_ranks(query, gallery, target, everything)[0]


def within_class_ranks(
    query: np.ndarray, gallery: np.ndarray, target: np.ndarray, gallery_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the target among the gallery items of its own class, and their number; both [N].

    Beyond chance (`chance_top_k` of the numbers), the EEG tells more of the picture than its class.
    """
    query, gallery = _unit(query), _unit(gallery)
    target, gallery_labels = np.asarray(target), np.asarray(gallery_labels)
    rank, size = np.empty(len(query), dtype=np.int64), np.empty(len(query), dtype=np.int64)
    for start in range(0, len(query), CHUNK):
        part = slice(start, start + CHUNK)
        similar = query[part] @ gallery.T
        own = np.take_along_axis(similar, target[part, None], axis=1)
        rival = gallery_labels[None] == gallery_labels[target[part], None]
        size[part] = rival.sum(1)
        rank[part] = (rival & ~(similar < own - TIE)).sum(1) - 1  # `not below` also holds for NaN; itself is taken off
    return rank, size


def class_ranks(
    query: np.ndarray, gallery: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray
) -> tuple[np.ndarray, int]:
    """How many other classes have an item as close to each query [N, D] as the best of its own class; and their number.

    A class whose query has no item of its class in the gallery comes last.
    """
    classes, member = np.unique(gallery_labels, return_inverse=True)
    order = np.argsort(member, kind="stable")
    starts = np.searchsorted(member[order], np.arange(len(classes)))
    own = np.searchsorted(classes, labels).clip(0, len(classes) - 1)
    present = classes[own] == np.asarray(labels)
    query, gallery = _unit(query), _unit(gallery)[order]
    rank = np.empty(len(query), dtype=np.int64)
    for start in range(0, len(query), CHUNK):
        part = slice(start, start + CHUNK)
        best = np.maximum.reduceat(query[part] @ gallery.T, starts, axis=1)
        mine = np.take_along_axis(best, own[part, None], axis=1)
        rank[part] = (~(best < mine - TIE)).sum(1) - 1
    return np.where(present, rank, len(classes)), len(classes)


def ranks_of_answers(query: np.ndarray, answers: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each answer [N, D], how many answers of other queries are as close to its own query, `owner` [N] of [M, D].

    Several trials answer one picture; each is looked for in turn while its siblings are left out, so that one item is
    right and chance is one over the second array, the number of items.
    """
    query, answers, owner = _unit(query), _unit(answers), np.asarray(owner)
    rank, size = np.empty(len(answers), dtype=np.int64), np.empty(len(answers), dtype=np.int64)
    for start in range(0, len(answers), CHUNK):
        part = slice(start, start + CHUNK)
        similar = query[owner[part]] @ answers.T
        own = (query[owner[part]] * answers[part]).sum(1, keepdims=True)
        rival = owner[None] != owner[part, None]
        rank[part], size[part] = (rival & ~(similar < own - TIE)).sum(1), rival.sum(1) + 1
    return rank, size


def k_way(rank: np.ndarray, size: int | np.ndarray, k: int, top: int = 1) -> np.ndarray:
    """The chance [N] that the target is among the first `top` of itself and k - 1 others drawn from its gallery.

    Of the size - 1 others, `rank` are as close as the target; how many of them are drawn is hypergeometric.
    """
    return hypergeom.cdf(top - 1, np.asarray(size) - 1, rank, k - 1)


def repetitions(names: Sequence, count: int | None, seed: int) -> list[np.ndarray]:
    """Disjoint groups of `count` trials with one name, drawn by the seed; None takes all trials of each name.

    Names with fewer trials than `count`, or with one trial, have no group.
    """
    _, member = np.unique(np.asarray(names), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(member))
    order = order[np.argsort(member[order], kind="stable")]
    found = []
    for own in np.split(order, np.flatnonzero(np.diff(member[order])) + 1):
        size = len(own) if count is None else count
        if len(own) >= max(size, 2):
            found += np.split(own[: len(own) // size * size], len(own) // size)
    return found


def top_k(rank: np.ndarray, k: int) -> np.ndarray:
    """Which queries [N] have their target among the first k."""
    return np.asarray(rank) < k


def chance_top_k(size: np.ndarray, k: int) -> np.ndarray:
    """What guessing gives each query [N] whose gallery holds `size` items."""
    return np.minimum(k / np.asarray(size, dtype=np.float64), 1.0)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
