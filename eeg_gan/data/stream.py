"""Shards read in sequence, from paths, `pipe:` commands or URLs, through webdataset: for data larger than the disk.

Shards are shuffled each epoch and divided among ranks and workers; samples are shuffled in a window. The order is
approximately random, depends on the number of ranks and workers, and is resumed at the start of an epoch. A stream
never ends, so no rank waits for another that has smaller shards; where it does end, all ranks have as many batches.
"""

import functools
import http.client
import itertools
import logging
import signal
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from eeg_gan.config import UserError
from eeg_gan.data.batches import Batch, collate
from eeg_gan.data.decoding import decode, read_json
from eeg_gan.data.shards import Shards
from eeg_gan.data.trial import Sample
from eeg_gan.data.writing import Form
from eeg_gan.distributed import any_rank, max_over_ranks, rank, seed_at, world_size

log = logging.getLogger("eeg_gan")
TIMEOUT_S = 60  # of a connection that says nothing
S3 = "aws s3 cp --only-show-errors '{url}' -"


@dataclass(frozen=True)
class StreamConfig:
    """How shards are streamed; read where loader.mode is stream."""

    url: str | None = None  # what precedes a shard's file of the index, or holds {file}: null is the index's folder
    shuffle: int = 1000  # samples in the window that is shuffled, of each worker
    resample: bool = False  # draw shards with replacement instead of each once an epoch
    retries: int = 3  # how often a shard is opened again after a failure, from where it broke
    retry_s: float = 1.0  # wait before the first retry; doubles with each
    skip_failed: bool = False  # go on without a shard that failed after all retries, with a warning, instead of ending

    def __post_init__(self):
        for name in ("shuffle", "retries", "retry_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is 0 or more; got {getattr(self, name)}")


@dataclass(frozen=True)
class Listed:
    """A shard, the keys that it must hold and the members of each sample."""

    url: str
    keys: tuple[str, ...]
    members: tuple[str, ...]


class ShardError(Exception):
    """A shard that cannot be read to its end."""


def listed(shards: Shards, split: str, config: StreamConfig) -> list[Listed]:
    """The shards of a split at the place that the config names."""
    prefix = config.url or str(shards.path.parent)
    place = prefix if "{file}" in prefix else f"{prefix.rstrip('/')}/{{file}}"
    members = ("json", *shards.form.members)
    return [
        Listed(place.replace("{file}", shard["file"]), tuple(sample["key"] for sample in shard["samples"]), members)
        for shard in shards.index["splits"][split]
    ]


def samples(shard: Listed, config: StreamConfig) -> Iterator[dict[str, Any]]:
    """The raw samples of one shard, each once: after a failure it is read again from where it broke."""
    given = 0
    for attempt in range(config.retries + 1):
        try:
            for raw in itertools.islice(_checked(shard), given, None):
                given += 1
                yield raw
            return
        except (ShardError, OSError) as error:
            if attempt == config.retries:
                return _give_up(shard, given, error, config)
            log.warning("%s: %s after %d samples; retry %d of %d", shard.url, error, given, attempt + 1, config.retries)
            time.sleep(config.retry_s * 2**attempt)


def _give_up(shard: Listed, given: int, error: Exception, config: StreamConfig) -> None:
    fact = f"{shard.url}: {error}, after {given} of {len(shard.keys)} samples and {config.retries} retries"
    if not config.skip_failed:
        raise UserError(f"{fact}; repair it or its address (loader.stream.url), or set loader.stream.skip_failed")
    log.warning("%s; its other samples are left out of this epoch", fact)


def _checked(shard: Listed) -> Iterator[dict[str, Any]]:
    """The samples of one reading, compared with what the index lists."""
    from webdataset import tariterators

    number = 0
    with open_url(shard.url) as stream:
        try:
            members = ({**file, "__url__": shard.url} for file in tariterators.tar_file_iterator(stream))
            for raw in tariterators.group_by_keys(members):
                _check_sample(shard, raw, number)
                number += 1
                yield raw
            while stream.read(2**20):  # a transfer that was cut shows at its end
                pass
        except (tarfile.TarError, EOFError, ValueError, http.client.HTTPException) as error:
            raise ShardError(f"the shard is damaged or was cut off ({error})") from None
    if number < len(shard.keys):
        raise ShardError(f"the shard ends early: expected sample {shard.keys[number]}")


def _check_sample(shard: Listed, raw: dict[str, Any], number: int) -> None:
    expected = shard.keys[number] if number < len(shard.keys) else "that there is none"
    if raw["__key__"] != expected:
        raise ShardError(f"foreign: sample {number} is {raw['__key__']}, but index.json says {expected}")
    missing = [name for name in shard.members if name not in raw]
    if missing:
        raise ShardError(f"sample {expected} lacks {', '.join(missing)}: the shard was cut off, or is another")


def open_url(url: str) -> IO[bytes]:
    """A stream of bytes: http(s) by Python, s3 by the aws command, everything else as webdataset opens it."""
    import webdataset

    if url.startswith(("http://", "https://")):
        try:
            return _Whole(urllib.request.urlopen(url, timeout=TIMEOUT_S))
        except urllib.error.HTTPError as error:
            raise ShardError(f"the server says {error.code} {error.reason}") from None
    if url.startswith("s3://"):
        url = "pipe:" + S3.format(url=url)
    try:
        return webdataset.gopen(url)
    except FileNotFoundError:
        raise ShardError("this shard is missing") from None


class _Whole:
    """An HTTP answer whose end is an error where fewer bytes came than were announced."""

    def __init__(self, answer: Any):
        self.answer = answer
        self.missing = int(answer.headers.get("Content-Length") or 0)

    def read(self, size: int = -1) -> bytes:
        part = self.answer.read(size)
        self.missing -= len(part)
        if not part and size != 0 and self.missing > 0:
            raise ShardError(f"the connection ended {self.missing} bytes before the end")
        return part

    def __enter__(self) -> "_Whole":
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()


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
        loader = DataLoader(self, batch_size=None, num_workers=self.workers, worker_init_fn=_leave_signals)
        for batch in loader:
            if "error" in batch:  # an exception would come with the traceback of its process
                raise UserError(batch["error"])
            yield batch

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
        sizes = [sum(len(s.keys) for s in self._own(epoch, r, worker)) for r in range(self.ranks)]
        return max(1, min(sizes) // self.batch)


def _all_samples(shards: list[Listed], config: StreamConfig) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from samples(shard, config)


def decoded(raw: dict[str, Any], form: Form) -> Sample:
    """A sample as webdataset gives it, with its members as bytes."""
    place = f"{raw['__url__']}, sample {raw['__key__']}"
    eeg, image = decode([raw[name] for name in form.members], form, place)
    return Sample(raw["__key__"], eeg, image, read_json(raw["json"], place))


class Held:
    """The first samples of streamed shards, as many as fit into `cache_mb`: what evaluation looks at repeatedly."""

    def __init__(self, shards: list[Listed], form: Form, config: StreamConfig, cache_mb: int):
        most = max(1, cache_mb * 2**20 // (4 * int(np.prod(form.eeg_shape))))
        without_image = form._replace(image_shape=None)
        found = [decoded(raw, without_image) for raw in itertools.islice(_all_samples(shards, config), most)]
        self.n = len(found)
        if any_rank(max_over_ranks(self.n) != self.n or not found):
            raise UserError(f"{shards[0].url} and its neighbours gave {self.n} samples, on other ranks another number")
        self.eeg = torch.from_numpy(np.stack([sample.eeg for sample in found]))
        self.labels = np.array([sample.meta["label"] for sample in found], dtype=np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        wanted = np.array(indices, dtype=np.int64)
        return {"eeg": self.eeg[wanted], "label": torch.from_numpy(self.labels[wanted])}


def _leave_signals(_: int) -> None:
    """A scheduler signals the whole group: the process that trains decides, its readers go on until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
