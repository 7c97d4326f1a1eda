"""Parts of a data set made in several processes, with a journal of what is finished, so that nothing is made twice."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from eeg_gan.config import UserError
from eeg_gan.data.cutting import Cut, Part, Plan, file_sha256
from eeg_gan.data.sources import Source

POLL_S = 0.2  # how often the wish to stop is looked at
Record = dict[str, Any]  # {file, bytes, sha256, ...} of a finished part


class Journal:
    """Finished parts by file, a JSON line each; a journal of another `identity` is deleted with all that it lists."""

    def __init__(self, folder: Path, identity: str):
        self.path, self.known = folder / "journal.jsonl", dict[str, Record]()
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        rows = [row for row in map(_row, lines) if row is not None]
        if not rows or rows[0].get("identity") != identity:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            rows = [{"identity": identity}]
        self.known = {row["file"]: row for row in rows[1:]}
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))  # without a line that was torn
        os.replace(partial, self.path)

    def add(self, record: Record) -> None:
        if self.known.get(record["file"]) == record:
            return
        self.known[record["file"]] = record
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Workers:
    """`make(parts)` gives their records in order; `tick(n)` is told of n more trials and raises to stop.

    Every process opens the source by itself. With 0 workers, all is made in this process.
    """

    def __init__(self, plan: Plan, source: Source, workers: int, journal: Journal, tick: Callable[[int], None]):
        self.plan, self.source, self.workers, self.journal, self.tick = plan, source, workers, journal, tick
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if not self.workers:
            self._here = Cut(self.plan, self.source)
            return self
        context = multiprocessing.get_context("forkserver")  # a fork of this process would copy torch's threads
        context.set_forkserver_preload([__name__])
        self._stop, self._count, self._told = context.Event(), context.Value("q", 0), 0
        start = (self.plan, self._stop, self._count)
        self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._stop.set()
            self._pool.shutdown(cancel_futures=True)

    def make(self, parts: Sequence[Part]) -> list[Record]:
        if self._pool is None:
            with threadpool_limits(1):  # sums of matrix products depend on the number of threads
                return [self._made_here(part) for part in parts]
        try:
            return self._made_there(parts)
        except BrokenProcessPool:
            self.tick(0)
            raise UserError(
                f"one of workers={self.workers} processes was killed, most often because memory ran out; lower "
                "workers and start the same command again: finished shards are kept"
            ) from None

    def _made_here(self, part: Part) -> Record:
        record = self.journal.known.get(part.file)
        if record is None or not is_whole(self._here.folder, record):
            record = self._here.make(part, lambda: self.tick(1))
        else:
            self.tick(len(part.members))
        self.journal.add(record)
        return record

    def _made_there(self, parts: Sequence[Part]) -> list[Record]:
        waiting: list[Future] = [self._pool.submit(_make, part, self.journal.known.get(part.file)) for part in parts]
        pending = set(waiting)
        while pending:
            done, pending = wait(pending, POLL_S, FIRST_COMPLETED)
            for future in done:
                self.journal.add(future.result())
            counted, self._told = self._count.value - self._told, self._count.value
            self.tick(counted)
        return [future.result() for future in waiting]


def is_whole(folder: Path, record: Record) -> bool:
    """Whether the file of a finished part still is what the journal says."""
    path = folder / record["file"]
    return path.is_file() and path.stat().st_size == record["bytes"] and file_sha256(path) == record["sha256"]


def _start(plan: Plan, stop: Any, count: Any) -> None:
    """In each worker, once."""
    global _cut, _tick
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the first process decides; it may have been sent to all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threadpool_limits(1)

    def tick(n: int) -> None:
        with count.get_lock():
            count.value += n
        if stop.is_set():
            raise InterruptedError("asked to stop")

    _cut, _tick = Cut(plan), tick


def _make(part: Part, known: Record | None) -> Record:
    if known is not None and is_whole(_cut.folder, known):
        _tick(len(part.members))
        return known
    return _cut.make(part, lambda: _tick(1))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _row(line: str) -> Record | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # the last line of a run that was killed while it wrote
