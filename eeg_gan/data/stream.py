"""Shards read in sequence, from paths, `pipe:` commands or URLs, through webdataset: for data larger than the disk.

Shards are shuffled each epoch and divided among ranks and workers; samples are shuffled in a window. The order is
approximately random, depends on the number of ranks and workers, and is resumed at the start of an epoch. A stream
never ends, so no rank waits for another that has smaller shards; where it does end, all ranks have as many batches.

webdataset opens and shuffles; samples are cut out of the bytes at the places that the index lists and compared with
its CRC-32, so that no damaged sample is trained on.
"""

import atexit
import functools
import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from eeg_gan.config import UserError
from eeg_gan.data.batches import Batch, collate
from eeg_gan.data.decoding import read_array, read_image, read_json
from eeg_gan.data.opening import ShardError, end_commands, open_url
from eeg_gan.data.shards import Shards
from eeg_gan.data.tar import BLOCK, CURE
from eeg_gan.data.trial import Sample
from eeg_gan.data.verifying import checked
from eeg_gan.data.writing import Form
from eeg_gan.distributed import any_rank, max_over_ranks, rank, seed_at, world_size

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class StreamConfig:
    """How shards are streamed; read where loader.mode is stream."""

    url: str | None = None  # what precedes a shard's file of the index, or holds {file}: null is the index's folder
    shuffle: int = 1000  # samples in the window that is shuffled, of each worker
    resample: bool = False  # draw shards with replacement instead of each once an epoch
    retries: int = 3  # how often a shard is opened again after a failure, from where it broke
    retry_s: float = 1.0  # wait before the first retry; doubles with each
    timeout_s: float = 60.0  # a server or command that sends nothing for so long has failed
    skip_failed: bool = False  # go on without a shard that failed after all retries, with a warning, instead of ending

    def __post_init__(self):
        for name in ("shuffle", "retries", "retry_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is 0 or more; got {getattr(self, name)}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is above 0 seconds; got {self.timeout_s}")


@dataclass(frozen=True)
class Listed:
    """A shard as the index lists it, and where it is read from."""

    url: str
    samples: tuple[dict[str, Any], ...]  # key, offset, size and crc32 of each
    members: tuple[str, ...]  # of each sample, beside its json
    sha256: str


def listed(shards: Shards, split: str, config: StreamConfig) -> list[Listed]:
    """The shards of a split at the place that the config names."""
    prefix = config.url or str(shards.path.parent)
    place = prefix if "{file}" in prefix else f"{prefix.rstrip('/')}/{{file}}"
    return [
        Listed(place.replace("{file}", shard["file"]), tuple(shard["samples"]), shards.form.members, shard["sha256"])
        for shard in shards.index["splits"][split]
    ]


def samples(shard: Listed, config: StreamConfig) -> Iterator[dict[str, Any]]:
    """The raw samples of one shard, each once: after a failure it is read again from where it broke."""
    given = 0
    for attempt in range(config.retries + 1):
        try:
            for raw in itertools.islice(_checked(shard, config.timeout_s), given, None):
                given += 1
                yield raw
            return
        except (ShardError, OSError) as error:
            if attempt == config.retries:
                return _give_up(shard, given, error, config)
            log.warning("%s: %s after %d samples; retry %d of %d", shard.url, error, given, attempt + 1, config.retries)
            time.sleep(config.retry_s * 2**attempt)


def _give_up(shard: Listed, given: int, error: Exception, config: StreamConfig) -> None:
    fact = f"{shard.url}: {error}, after {given} of {len(shard.samples)} samples and {config.retries} retries"
    if not config.skip_failed:
        raise UserError(f"{fact}; repair it or its address (loader.stream.url), or set loader.stream.skip_failed")
    log.warning("%s; its other samples are left out of this epoch", fact)


def _checked(shard: Listed, timeout_s: float) -> Iterator[dict[str, Any]]:
    """The samples of one reading, compared with the index: by their CRC-32, or all at the end where it has none."""
    sha = None if all("crc32" in sample for sample in shard.samples) else hashlib.sha256()
    names = ("json", *shard.members)
    with open_url(shard.url, timeout_s) as stream:
        at = 0
        for sample in shard.samples:
            between, raw = stream.read(sample["offset"] - at), stream.read(sample["size"])
            at = sample["offset"] + sample["size"]
            if sha:
                sha.update(between + raw)
            try:
                parts = checked(raw, sample, shard.members, shard.url)
            except UserError as error:
                raise ShardError(str(error).removeprefix(f"{shard.url}, ").removesuffix(f"; {CURE}")) from None
            yield {"__key__": sample["key"], "__url__": shard.url, **dict(zip(names, parts, strict=True))}
        end = stream.read(2 * BLOCK + 1)
    if end != bytes(2 * BLOCK):
        raise ShardError(f"foreign: after its {len(shard.samples)} samples come other bytes than the end of a shard")
    if sha:
        sha.update(end)
        if sha.hexdigest() != shard.sha256:
            raise ShardError(f"SHA-256 is {sha.hexdigest()}, but index.json says {shard.sha256}: its bytes changed")


class Stream(IterableDataset):
    """Batches of what one rank reads, in the worker that asks; endless from `epoch` on.

    With `passes`, it has that many epochs, in each of which all ranks have as many batches; a rank with more samples
    leaves some out, other ones in each epoch.
    """

    def __init__(
        self,
        shards: list[Listed],
        form: Form,
        batch: int,
        seed: int,
        config: StreamConfig,
        epoch: int = 0,
        workers: int = 0,
        passes: int | None = None,
        subjects: list[str] | None = None,
    ):
        self.shards, self.form, self.batch, self.seed, self.config = shards, form, batch, seed, config
        self.epoch, self.workers, self.passes, self.subjects = epoch, workers, passes, subjects
        self.rank, self.ranks, self.readers = rank(), world_size(), world_size() * max(workers, 1)
        if len(shards) < self.readers:
            raise UserError(
                f"{len(shards)} shards cannot be divided among {self.ranks} ranks x {max(workers, 1)} workers; lower "
                f"loader.workers, or run prepare again with a smaller shard_samples, for {self.readers} shards or more"
            )

    def batches(self) -> Iterator[Batch]:
        """With the workers that the stream was made for, in processes of their own."""
        if not self.workers:
            yield from self
            return
        left, leave = multiprocessing.Pipe(duplex=False)  # what lies in it is seen by all workers, and read by none
        start = functools.partial(_start_worker, left=left, parent=os.getpid())
        end = functools.partial(leave.send, None)
        atexit.register(end)  # before multiprocessing waits for its processes
        try:
            for batch in DataLoader(self, batch_size=None, num_workers=self.workers, worker_init_fn=start):
                if "error" in batch:  # an exception would come with the traceback of its process
                    raise UserError(batch["error"])
                yield batch
        finally:
            atexit.unregister(end)
            end()

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        try:
            yield from self._of_worker(info.id if info else 0)
        except UserError as error:
            if info is None:
                raise
            yield {"error": str(error)}

    def _of_worker(self, worker: int) -> Iterator[Batch]:
        if self.passes is None:
            endless = (self._epoch(epoch, worker) for epoch in itertools.count(self.epoch))
            yield from self._batched(itertools.chain.from_iterable(endless))
            return
        for epoch in range(self.epoch, self.epoch + self.passes):
            again = itertools.repeat(epoch)  # a rank that lost a shard shows its others again, so that none waits
            samples = itertools.chain.from_iterable(self._epoch(e, worker) for e in again)
            yield from itertools.islice(self._batched(samples), self._length(epoch, worker))

    def _batched(self, samples: Iterator[Sample]) -> Iterator[Batch]:
        while some := list(itertools.islice(samples, self.batch)):
            yield collate(some, self.subjects) | {"key": [sample.key for sample in some]}

    def _epoch(self, epoch: int, worker: int) -> Iterator[Sample]:
        """Every sample of the own shards, shuffled in a window."""
        import webdataset as wds

        own, given = self._own(epoch, self.rank, worker), 0
        window = seed_at(self.seed, f"stream.window.{self.rank}.{worker}", epoch)
        steps = [wds.detshuffle(self.config.shuffle, seed=window)] if self.config.shuffle else []
        read = functools.partial(_all_samples, own, self.config)
        for sample in wds.DataPipeline(read, *steps, wds.map(functools.partial(decoded, form=self.form))):
            given += 1
            yield sample
        if not given:
            raise UserError(f"no sample could be read from {len(own)} shards, the first of which is {own[0].url}")

    def _own(self, epoch: int, of_rank: int, worker: int) -> list[Listed]:
        """The shards of one reader in an epoch: readers take turns in a permutation that all of them know."""
        random = np.random.default_rng(seed_at(self.seed, "stream.shards", epoch))
        n = len(self.shards)
        order = random.integers(n, size=n) if self.config.resample else random.permutation(n)
        return [self.shards[i] for i in order[of_rank + worker * self.ranks :: self.readers]]

    def _length(self, epoch: int, worker: int) -> int:
        """Batches that the worker of this number has on every rank."""
        sizes = [sum(len(s.samples) for s in self._own(epoch, r, worker)) for r in range(self.ranks)]
        return max(1, min(sizes) // self.batch)


def _all_samples(shards: list[Listed], config: StreamConfig) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from samples(shard, config)


def decoded(raw: dict[str, Any], form: Form) -> Sample:
    """A sample with its members as bytes, decoded; the EEG is of the stored type."""
    place = f"{raw['__url__']}, sample {raw['__key__']}"
    eeg = read_array(raw["eeg.npy"], form.eeg_shape, place)
    image = None if form.image_shape is None else read_image(raw[form.members[1]], form, place)
    return Sample(raw["__key__"], eeg, image, read_json(raw["json"], place))


class Held:
    """Samples of all parts of a streamed split, as many as fit into `cache_mb`: what evaluation looks at repeatedly."""

    def __init__(self, shards: list[Listed], form: Form, config: StreamConfig, cache_mb: int):
        most = max(1, cache_mb * 2**20 // (4 * int(np.prod(form.eeg_shape))))
        without_image = form._replace(image_shape=None)
        found = [decoded(raw, without_image) for raw in _first_of_each(shards, config, most)]
        self.n = len(found)
        if any_rank(max_over_ranks(self.n) != self.n or not found):
            raise UserError(f"{shards[0].url} and its neighbours gave {self.n} samples, on other ranks another number")
        self.eeg = torch.stack([torch.tensor(sample.eeg) for sample in found]).float()
        self.labels = np.array([sample.meta["label"] for sample in found], dtype=np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        wanted = np.array(indices, dtype=np.int64)
        return {"eeg": self.eeg[wanted], "label": torch.from_numpy(self.labels[wanted])}


def _first_of_each(shards: list[Listed], config: StreamConfig, most: int) -> Iterator[dict[str, Any]]:
    """`most` samples at most: the first ones of every shard, or of shards that are evenly spread."""
    if len(shards) > most:
        shards = [shards[i * len(shards) // most] for i in range(most)]
    left = most
    for number, shard in enumerate(shards):
        for raw in itertools.islice(samples(shard, config), -(-left // (len(shards) - number))):
            left -= 1
            yield raw


def _start_worker(_: int, left: Any, parent: int) -> None:
    """A scheduler signals the whole group: the process that trains decides, its readers go on until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_when_left, args=(left, parent), daemon=True).start()


def _end_when_left(left: Any, parent: int) -> None:
    """Ends a worker that nobody reads from any more, even where it waits for a server or a command."""
    while not left.poll(2) and os.getppid() == parent:
        pass
    time.sleep(1)  # most workers end by themselves
    end_commands()
    os._exit(0)
