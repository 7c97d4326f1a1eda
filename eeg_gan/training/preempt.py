"""Being asked to stop: a signal or the time limit raises a flag; the loop saves at the next step and leaves with 75.

The time limit is EEG_GAN_TIME_LIMIT_S seconds from the start of the command, or SLURM's end of the job
(SLURM_JOB_END_TIME). Where a launcher (submitit) had set handlers of its own, ours stand above them: after all ranks
have saved, rank 0 alone calls the handler of the signal that came, which asks SLURM for a requeue.
"""

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from eeg_gan.config import UserError
from eeg_gan.distributed import barrier, is_main, max_over_ranks

# Where ranks, or one after the other, were asked in several ways, the last of these counts.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SLURM_RESERVE_S = 60.0  # a job that is still there at its end is killed
log = logging.getLogger("eeg_gan")


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the same command goes on.

    Whoever catches it on behalf of the process says it, calls `hand_over` and leaves with `exit_code`.
    """

    exit_code = 75

    def hand_over(self) -> None:
        """Nothing, unless a launcher's handler stood below ours: see `watch`."""


class Flag:
    """Raised by a signal, or when the time is up; a second Ctrl-C interrupts at once.

    `deadline` is in seconds of time.monotonic().
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.signal: int | None = None
        self.deadline, self.at_deadline = deadline, int(signal.SIGUSR2)
        self._looked, self._longest = time.monotonic(), 0.0

    def agreed(self) -> bool:
        """True on every rank as soon as one rank was asked to stop; `signal` is then the same on all of them."""
        self._look_at_clock()
        asked = 0 if self.signal is None else SIGNALS.index(self.signal) + 1
        agreed = int(max_over_ranks(float(asked)))
        if agreed:
            self.signal = int(SIGNALS[agreed - 1])
        return agreed > 0

    def _look_at_clock(self) -> None:
        """Time is up when the longest stretch between two looks so far, a save among them, would pass the deadline."""
        now = time.monotonic()
        self._longest, self._looked = max(self._longest, now - self._looked), now
        if self.deadline is not None and self.signal is None and now + self._longest > self.deadline:
            self.signal = self.at_deadline
            log.warning("the time limit is near: saving at this step")

    def _raise(self, number: int, frame: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None or SIGNALS.index(number) > SIGNALS.index(self.signal):
            self.signal = number
        log.warning("%s received: saving at the next step", signal.Signals(number).name)


@contextlib.contextmanager
def watch() -> Iterator[Flag]:
    """A flag bound to the signals that ask a run to stop; the former handlers come back at the end.

    A `Stopped` that leaves the outermost watch knows in `hand_over` the handler that stood below ours.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Flag(_deadline())  # only the main thread may set handlers
        return
    flag = Flag()
    former = {number: signal.signal(number, flag._raise) for number in SIGNALS}
    outer = getattr(former[signal.SIGTERM], "__self__", None)
    outer = outer if isinstance(outer, Flag) else None
    launchers = {} if outer else {n: handler for n, handler in former.items() if _is_launchers(n, handler)}
    try:
        flag.deadline = outer.deadline if outer else _deadline()
        flag.at_deadline = outer.at_deadline if outer else max(launchers, key=SIGNALS.index, default=signal.SIGUSR2)
        yield flag
    except Stopped as stopped:
        if flag.signal in launchers:
            stopped.hand_over = functools.partial(_hand_over, launchers[flag.signal], flag.signal)
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if outer and flag.signal is not None:
            outer.signal = flag.signal  # asked too late for the inner stage: the one around it leaves instead


def _hand_over(handler: Callable[[int, object], object], number: int) -> None:
    """Rank 0 calls the launcher's handler, which may end the process; the others wait until it has done so.

    A task that left before might end the whole job before it is put back into the queue.
    """
    if is_main():
        handler(number, None)
    with contextlib.suppress(RuntimeError):  # rank 0 has left
        barrier()


def _is_launchers(number: int, handler: object) -> bool:
    return number != signal.SIGINT and callable(handler) and not isinstance(handler, signal.Handlers)


def _deadline() -> float | None:
    """The earlier of both limits, in seconds of time.monotonic()."""
    now, limits = time.monotonic(), []
    own, end = os.environ.get("EEG_GAN_TIME_LIMIT_S"), os.environ.get("SLURM_JOB_END_TIME")
    if own:
        limits.append(now + _seconds("EEG_GAN_TIME_LIMIT_S", own))
    if end:
        left = _seconds("SLURM_JOB_END_TIME", end) - time.time()
        if left > 0:  # else it is that of an older job, whose environment was inherited
            limits.append(now + left - SLURM_RESERVE_S)
    return min(limits, default=None)


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name}={text!r} is not a number of seconds; correct it, or unset it") from None
