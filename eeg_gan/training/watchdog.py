"""No rank is lost in silence: one that fails, dies or hangs ends all of them, and its number and stage are said.

A thread on each rank writes a sign of life into the store of the process group every BEAT_S seconds. Each rank watches
the next one's, rank 0 also whether anybody gets on, and all of them an alarm, which holds the line that is said and
the exit code. Processes leave by os._exit then: taking apart a process group that has lost a rank can abort or hang.
EEG_GAN_RANK_TIMEOUT_S says after how many seconds in which no rank gets on the job counts as hung.
"""

import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from eeg_gan.config import UserError
from eeg_gan.distributed import rank, world_size

BEAT_S = 2.0
SILENT_S = 60.0  # without a sign of life: long, as a busy machine may let a thread wait
TIMEOUT_S = 1800.0
OURS, USERS, AGAIN = 1, 2, 75
PACKAGE = str(Path(__file__).parents[1])
log = logging.getLogger("eeg_gan")
_numbers = itertools.count()
_current: "Watchdog | None" = None


class RankLost(Exception):
    """Another rank failed, died or hangs; this one leaves with its `exit_code`, and silently if the line was said."""

    def __init__(self, line: str, exit_code: int = OURS, said: bool = False):
        super().__init__(line)
        self.exit_code, self.said = exit_code, said


def timeout_s() -> float:
    text = os.environ.get("EEG_GAN_RANK_TIMEOUT_S", str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UserError(f"EEG_GAN_RANK_TIMEOUT_S={text!r} is not a number of seconds above 0; correct it, or unset it")
    return seconds


def of_collectives() -> timedelta:
    """After which a collective operation gives up; the watchdog acts before, and says which rank hangs."""
    return timedelta(seconds=timeout_s() + 120)


@contextlib.contextmanager
def over(stage: str) -> Iterator[None]:
    """Watches while a stage runs; a stage inside another one gives it its name."""
    global _current
    if world_size() == 1:
        yield
        return
    outer = _current
    dog = _current = outer or Watchdog(timeout_s())
    former, dog.stage = dog.stage, stage
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if outer is not None or getattr(error, "exit_code", None) == AGAIN:  # that one has been agreed
            raise
        cause = dog.told(error)
        if cause is error:
            raise
        raise cause from None
    finally:
        if outer is None:
            dog.stop()
            _current = None
        else:
            dog.stage = former


def got_on() -> None:
    """The stage has come a step further."""
    if _current is not None:
        _current.moved = time.monotonic()


class Watchdog(threading.Thread):
    def __init__(self, seconds: float):
        super().__init__(name="watchdog", daemon=True)
        self.timeout, self.stage, self.moved, self.beats = seconds, "", time.monotonic(), 0
        prefix = f"eeg_gan/{next(_numbers)}"
        shared = dist.distributed_c10d._get_default_store()
        self.store, self.mains = (dist.PrefixStore(prefix, shared.clone()) for _ in range(2))  # one for each thread
        self.leaving, self.alarmed, self.main_says = threading.Event(), False, False
        self._seen, self._seen_at = "", time.monotonic()
        self.start()

    def run(self) -> None:
        try:
            while not self.leaving.wait(BEAT_S):
                self._beat()
        except RuntimeError as error:
            if not self.leaving.is_set():
                self._end(f"rank 0 or the launcher died during {self.stage}: their store is gone ({_first(error)})")

    def stop(self) -> None:
        """The others need not wait for another sign of this rank."""
        self._silence()
        with contextlib.suppress(RuntimeError):
            if not self.alarmed:
                self.mains.set(f"life/{rank()}", "done")

    def _silence(self) -> None:
        self.leaving.set()
        self.join()

    def told(self, error: BaseException) -> BaseException:
        """Tells the other ranks of an error of this one, and waits until they know; what is to be raised here.

        An error of communication is the consequence of another rank's: then that one's is raised.
        """
        try:
            if isinstance(error, RuntimeError) and _is_of_communication(error):
                silent = self._silent(self.mains)
                if silent:
                    error = RankLost(f"rank {_listed(silent)} of {world_size()} died during {self.stage}; {CURE}")
            self._silence()
            line = str(error) or type(error).__name__
            code = getattr(error, "exit_code", USERS if isinstance(error, OSError) else OURS)
            text = line if isinstance(error, RankLost) else f"rank {rank()} of {world_size()} left {self.stage}: {line}"
            code = AGAIN if isinstance(error, KeyboardInterrupt) else code
            alarm = self._raise_alarm(self.mains, line, text, code)
        except RuntimeError as lost:
            return RankLost(f"rank 0 or the launcher died during {self.stage}: their store is gone ({_first(lost)})")
        same = alarm["line"] == line
        self._part(self.mains, same)
        if alarm["rank"] != rank() and not (same and rank() == 0):
            return RankLost(alarm["text"], alarm["code"], said=rank() != 0)
        return RankLost(line, code, said=True) if self.main_says else error

    def _beat(self) -> None:
        self.beats += 1
        place, waits = where(sys._current_frames().get(threading.main_thread().ident))
        idle = time.monotonic() - self.moved
        life = {"beat": self.beats, "idle": idle, "stage": self.stage, "place": place, "waits": waits}
        self.store.set(f"life/{rank()}", json.dumps(life))
        if self.store.check(["alarm"]):
            alarm = json.loads(self.store.get("alarm"))
            log.info("eeg-gan: %s", alarm["text"])  # the rank that raised it says it too; the main one does in any case
            self._part(self.store)
            self._exit(alarm["code"])
        self._watch_next()
        if rank() == 0 and idle > self.timeout:
            self._watch_progress()

    def _watch_next(self) -> None:
        other = (rank() + 1) % world_size()
        seen, now = _life(self.store, other), time.monotonic()
        if seen != self._seen or seen == "done":
            self._seen, self._seen_at = seen, now
        elif now - self._seen_at > min(SILENT_S, self.timeout):
            seconds = now - self._seen_at
            self._end(f"rank {other} of {world_size()} gave no sign of life for {seconds:.0f} s during {self.stage}: "
                      f"it died, or its machine hangs; {CURE}")  # fmt: skip

    def _watch_progress(self) -> None:
        """Only if nobody gets on: ranks may wait long for the work of one."""
        lives = {other: _life(self.store, other) for other in range(world_size())}
        alive = {other: json.loads(life) for other, life in lives.items() if life not in ("", "done")}
        if any(life["idle"] < self.timeout for life in alive.values()):
            return
        hung = [other for other, life in alive.items() if not life["waits"]] or sorted(alive)
        places = "; ".join(f"rank {r} is at {alive[r]['place']}" for r in hung[:4])
        self._end(
            f"rank {_listed(hung)} of {world_size()} hangs: for {self.timeout:.0f} s no rank got on with {self.stage} "
            f"({places}); {CURE}, EEG_GAN_RANK_TIMEOUT_S allows more time"
        )

    def _silent(self, store: dist.Store) -> list[int]:
        """Ranks that give no sign of life within a few beats."""
        others = [other for other in range(world_size()) if other != rank()]
        before = {other: _life(store, other) for other in others}
        time.sleep(3 * BEAT_S)
        return [other for other in others if before[other] != "done" and _life(store, other) == before[other]]

    def _end(self, line: str) -> None:
        """From the thread, as the main one waits in vain."""
        code = OURS
        with contextlib.suppress(RuntimeError):
            alarm = self._raise_alarm(self.store, line, line, OURS)
            line, code = alarm["text"], alarm["code"]
            self._part(self.store)
        log.error("eeg-gan: %s", line)
        self._exit(code)

    def _raise_alarm(self, store: dist.Store, line: str, text: str, code: int) -> dict:
        """The first one counts; `text` is what the others say of `line`."""
        alarm = {"rank": rank(), "line": line, "text": text, "code": code}
        if store.add("alarms", 1) == 1:
            store.set("alarm", json.dumps(alarm))
        return json.loads(store.get("alarm"))

    def _part(self, store: dist.Store, same: bool = False) -> None:
        """Waits until every rank that lives knows of the alarm; rank 0, with which the store may go, leaves last.

        Where rank 0 met the `same` error, it alone says it.
        """
        self.alarmed = True
        with contextlib.suppress(RuntimeError):
            if same and rank() == 0:
                store.set("main says", "")
            _meet(store, "know")
            self.main_says = rank() != 0 and store.check(["main says"])
            store.add("leave", 1)
            if rank() == 0:
                _meet(store, "leave", own=0)

    def _exit(self, code: int) -> None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


CURE = "the same command goes on from the last checkpoint"


def where(frame: FrameType | None) -> tuple[str, bool]:
    """`stages/gan.py:74 run` of the innermost own frame, and whether it waits there for other ranks."""
    waits = False
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(PACKAGE) and not path.endswith("eeg_gan/distributed.py"):
            return f"{os.path.relpath(path, PACKAGE)}:{frame.f_lineno} {name}", waits
        waits |= "torch/distributed" in path or name == "_engine_run_backward"  # where gradients meet
        frame = frame.f_back
    return "code outside eeg_gan", waits


def _meet(store: dist.Store, key: str, own: int = 1) -> None:
    """Until all ranks have come here, or for a few beats where one of them is dead."""
    there, end = int(store.add(key, own)), time.monotonic() + 5 * BEAT_S
    while there < world_size() and time.monotonic() < end:
        time.sleep(0.05)
        there = int(store.add(key, 0))


def _life(store: dist.Store, other: int) -> str:
    """A rank's last sign of life, "" before the first one."""
    key = f"life/{other}"
    return store.get(key).decode() if store.check([key]) else ""


def _is_of_communication(error: RuntimeError) -> bool:
    """Torch has no common class for what its backends raise when a peer is gone."""
    words = ("gloo", "nccl", "closed by peer", "connection", "broken pipe", "timed out", "socket")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
