"""Work in processes of its own beside this one: independent stages on a core each, or the ranks of one stage.

Small networks keep one core busy with Python and small tensors, so that two processes of one thread each do about twice
what one process of two threads does.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eeg_gan.config import UserError
from eeg_gan.training.preempt import Stopped

DONE, OURS, USERS, AGAIN = 0, 1, 2, 75  # exit codes, as of the command line
PATIENCE_S = 60.0  # for a process that was asked to stop
Work = tuple[Callable[[Any], None], Any]  # a function of a module, and its config
log = logging.getLogger("eeg_gan")


class Beside:
    """`with Beside([works, ...], "what") as side:` runs each list of works in a process; `side.join()` waits for all.

    A process has `threads` threads. With `ranks` they are the ranks of one job. Leaving the block early stops them.
    """

    def __init__(self, lists: Sequence[Sequence[Work]], what: str, threads: int = 1, ranks: bool = False):
        context = multiprocessing.get_context("spawn")  # a fork would inherit the threads' locks
        port = _free_port() if ranks else None
        self.what, self._asked_at = what, None
        self.processes = [
            context.Process(target=_run, args=(works, threads, _rank(i, len(lists), port) if ranks else {}))
            for i, works in enumerate(lists)
        ]

    def __enter__(self) -> "Beside":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ask_to_stop()
        for process in self.processes:
            while process.is_alive():
                process.join(0.1)
                self._kill_the_deaf()

    def join(self, asked: Callable[[], bool] = lambda: False) -> None:
        """Waits for all; raises Stopped when one was asked to stop, or this one was, and UserError when one failed."""
        while any(process.is_alive() for process in self.processes):
            if asked() or self._codes():
                self._ask_to_stop()
            for process in self.processes:
                process.join(0.1)
            self._kill_the_deaf()
        failed = self._codes() - {AGAIN, -signal.SIGTERM}
        if self._codes() and (asked() or not failed):
            raise Stopped(f"{self.what}: stopped; the same command goes on")
        if failed:
            raise UserError(
                f"{self.what} failed in a process of its own, which said why above; the same command goes on"
            )

    def _codes(self) -> set[int]:
        """How those that are over went, where that was not well."""
        return {process.exitcode for process in self.processes} - {None, DONE}

    def _ask_to_stop(self) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            for process in self.processes:
                if process.is_alive():
                    process.terminate()

    def _kill_the_deaf(self) -> None:
        if self._asked_at is not None and time.monotonic() - self._asked_at > PATIENCE_S:
            for process in self.processes:
                process.kill()


def _run(works: Sequence[Work], threads: int, environment: dict[str, str]) -> None:
    """The whole life of a process: its exit code says how it went."""
    os.environ.update(environment)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.stderr = _NoTerminal(sys.stderr)
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.propagate = False
    log.setLevel(logging.INFO if environment.get("RANK", "0") == "0" else logging.WARNING)
    torch.set_num_threads(threads)
    sys.exit(_outcome(works))


def _outcome(works: Sequence[Work]) -> int:
    try:
        for work, config in works:
            work(config)
    except (Stopped, KeyboardInterrupt):
        return AGAIN
    except UserError as error:
        log.error("eeg-gan: %s", error)
        return USERS
    except Exception:
        log.exception("eeg-gan: this is a mistake of the program, not yours; please report it with the lines below")
        return OURS
    return DONE


class _NoTerminal:
    """Standard error without the manners of a terminal: two progress bars would write over one another."""

    def __init__(self, stream: Any):
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _leave_with_parent() -> None:
    """Asks this process to stop once the one that started it is gone, however it went."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _rank(number: int, total: int, port: int) -> dict[str, str]:
    numbers = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": total, "LOCAL_WORLD_SIZE": total}
    return {key: str(value) for key, value in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
