"""Batches in an order that is a function of (seed, position): the same after a restart and on any number of ranks."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.batches import Batch, collate
from eeg_gan.data.shards import Shards
from eeg_gan.data.stream import StreamConfig
from eeg_gan.distributed import seed_at

__all__ = ["Batch", "LoaderConfig", "Partners", "Reader", "balanced_at", "collate", "shuffled_at"]


@dataclass(frozen=True)
class LoaderConfig:
    """Where batches come from."""

    index: str  # index.json that prepare wrote
    cache_mb: int = 1024  # memory for decoded images; 0 decodes anew each time
    workers: int = 0  # threads that decode (stream: processes); 0 decodes in the thread that asks
    verify: Literal["digest", "size"] = "digest"  # how shards are checked when opened
    mode: Literal["local", "stream"] = "local"  # stream: training shards are read in sequence, also from afar
    stream: StreamConfig = StreamConfig()  # where from, and what is done about failures

    def __post_init__(self):
        for name in ("cache_mb", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative, got {getattr(self, name)}; 0 turns it off")


def shuffled_at(seed: int, n: int, position: int, batch: int) -> np.ndarray:
    """Indices [batch] of the items at `position` and after in an endless stream of per-epoch permutations of n."""
    assert n > 0, "there is nothing to shuffle"
    places = np.arange(position, position + batch)
    epochs = {int(epoch): _epoch(seed, int(epoch), n) for epoch in np.unique(places // n)}
    return np.array([epochs[int(place // n)][place % n] for place in places], dtype=np.int64)


def balanced_at(
    labels: np.ndarray, seed: int, position: int, classes_per_batch: int, trials_per_class: int
) -> np.ndarray:
    """Indices [P * K] of the batch at `position` (items drawn so far): P different classes, K trials of each.

    Every run of as many batches as there are classes shows each class P times; each class walks through permutations
    of its trials, so that all are used equally often, and none twice in a batch where the class has K of them.
    """
    members = _members_of(np.asarray(labels, dtype=np.int64).tobytes())
    n_classes, size = len(members), classes_per_batch * trials_per_class
    if classes_per_batch > n_classes:
        raise UserError(
            f"a batch of {classes_per_batch} classes cannot be drawn from {n_classes}; lower classes_per_batch"
        )
    assert position % size == 0, f"position {position} lies inside a batch of {size}"
    tour, step = divmod(position // size, n_classes)
    drawn = _tour(seed, tour, n_classes, classes_per_batch)
    indices = []
    for c in drawn[step]:
        visit = tour * classes_per_batch + int((drawn[:step] == c).sum())  # how often this class was drawn before
        indices.append(members[c][_trials_at(seed, int(c), len(members[c]), visit, trials_per_class)])
    return np.concatenate(indices)


class Partners:
    """Another trial of the same kind for each trial; `kinds` [N] numbers the kind of every trial."""

    def __init__(self, kinds: np.ndarray):
        _, self.kinds, self.sizes = np.unique(kinds, return_inverse=True, return_counts=True)
        self.order = np.argsort(self.kinds, kind="stable")
        self.starts = self.sizes.cumsum() - self.sizes
        self.places = np.empty(len(self.order), dtype=np.int64)
        self.places[self.order] = np.arange(len(self.order)) - self.starts[self.kinds[self.order]]

    def of(self, trials: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """[b] one for each of `trials` [b], drawn evenly from the others of its kind; itself where it is alone."""
        size, start = (a[self.kinds[trials]] for a in (self.sizes, self.starts))
        step = 1 + (torch.rand(len(trials), generator=generator, dtype=torch.float64).numpy() * (size - 1)).astype(int)
        return self.order[start + (self.places[trials] + step) % size]


def _tour(seed: int, tour: int, n_classes: int, per_batch: int) -> np.ndarray:
    """Classes [n_classes batches, per_batch]: rows hold different classes, each column holds every class once."""
    order = _permutation(seed, "loader.classes", tour, n_classes)
    starts = _permutation(seed, "loader.starts", tour, n_classes)
    shifts = _permutation(seed, "loader.shifts", tour, n_classes)[:per_batch]
    return order[(starts[:, None] + shifts) % n_classes]


def _trials_at(seed: int, c: int, n: int, visit: int, k: int) -> np.ndarray:
    """The k places, of n, that the class shows at a visit; a permutation serves until its visits would repeat."""
    visits = np.lcm(n, k) // k
    order = _permutation(seed, f"loader.class.{c}", visit // int(visits), n)
    return order[(visit % visits * k + np.arange(k)) % n]


@functools.lru_cache(maxsize=4)  # as long as the data: no more than the present epochs are kept
def _epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    return _permutation.__wrapped__(seed, "loader.epoch", epoch, n)


@functools.lru_cache(maxsize=4096)
def _permutation(seed: int, purpose: str, number: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed_at(seed, purpose, number)).permutation(n)


@functools.lru_cache(maxsize=8)
def _members_of(labels: bytes) -> list[np.ndarray]:
    array = np.frombuffer(labels, dtype=np.int64)
    return [np.flatnonzero(array == label) for label in np.unique(array)]


class Reader:
    """Batches of one split of local shards.

    Arrays are copied out of memory maps; compressed images are decoded, and kept up to `cache_mb`.
    """

    def __init__(self, shards: Shards, split: str, cache_mb: int = 1024, workers: int = 0):
        self.shards, self.split, self.n = shards, split, shards.n(split)
        self.labels = shards.labels(split)
        self.subjects = sorted({meta["subject"] or "" for s in shards.opened for meta in shards.metas(s)})
        numbers = {subject: number for number, subject in enumerate(self.subjects)}
        self._subject = np.array([numbers[meta["subject"] or ""] for meta in shards.metas(split)], dtype=np.int64)
        self.mapped = shards.mapped(split, cache_mb * 2**20)
        self._pool = ThreadPoolExecutor(workers) if workers else None

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """eeg float32 [b, C, T], image uint8 [b, 3, H, W] where there are images, label, subject, index long [b].

        subject counts in `subjects`, the sorted names of all opened splits.
        """
        wanted = np.array(indices, dtype=np.int64)
        eeg, image = self.mapped.batch(wanted, self._pool)
        batch = {name: torch.from_numpy(a[wanted]) for name, a in (("label", self.labels), ("subject", self._subject))}
        return {"eeg": eeg, **batch, "index": torch.from_numpy(wanted)} | ({} if image is None else {"image": image})

    def in_order(self, batch: int) -> Iterator[Batch]:
        """The whole split once, in the order of the index; the last batch may be smaller."""
        return self.prefetched(range(i, min(i + batch, self.n)) for i in range(0, self.n, batch))

    def prefetched(self, batches: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """`batch` of each, the next one being read in the background while this one is used."""
        with ThreadPoolExecutor(1) as background:
            waiting = None
            for indices in batches:
                coming = background.submit(self.batch, indices)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()

    def eeg_all(self) -> Tensor:
        """[N, C, T] float32 of the whole split, in the order of the index."""
        return torch.cat([batch["eeg"] for batch in self.in_order(256)])
