"""Being asked to stop: a signal raises a flag; the loop saves at the next step and leaves with exit code 75."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from eeg_gan.distributed import any_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
log = logging.getLogger("eeg_gan")


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the same command goes on."""


class Flag:
    """Raised by a signal; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def agreed(self) -> bool:
        """True on every rank as soon as one rank was asked to stop."""
        return any_rank(self.signal is not None)

    def _raise(self, number: int, frame: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        log.warning("%s received: saving at the next step", signal.Signals(number).name)


@contextlib.contextmanager
def watch() -> Iterator[Flag]:
    """A flag bound to the signals that ask a run to stop; the former handlers come back at the end."""
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # only the main thread may set handlers
        return
    former = {number: signal.signal(number, flag._raise) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Flag) and flag.signal is not None:
                outer.signal = flag.signal  # asked too late for the inner stage: the one around it leaves instead
