"""Memory of a CPU that is given back and asked for again with every step costs a page fault each 4 kB."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in malloc.h
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Lets glibc's malloc keep what a step frees for the next step; False where the C library or the user decides.

    By default each tensor over 32 MB is mapped anew and the kernel zeroes each of its pages at first touch: a third of
    the time of an LSTM's step over long trials. The peak stays; what lies below it is not given back between steps.
    """
    if any(name in os.environ for name in OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    # Older versions take no more than 32 MB; what is set alone would leave the other at its start, far too low.
    mapped = mallopt(MMAP_THRESHOLD, 2**30) or mallopt(MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(TRIM_THRESHOLD, 2**31 - 1))
