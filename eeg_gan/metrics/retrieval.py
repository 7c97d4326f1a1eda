"""Retrieval of the seen image from EEG. All values come per query, so that intervals can be taken over stimuli."""

import numpy as np

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


def top_k(rank: np.ndarray, k: int) -> np.ndarray:
    """Which queries [N] have their target among the first k."""
    return np.asarray(rank) < k


def chance_top_k(size: np.ndarray, k: int) -> np.ndarray:
    """What guessing gives each query [N] whose gallery holds `size` items."""
    return np.minimum(k / np.asarray(size, dtype=np.float64), 1.0)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
