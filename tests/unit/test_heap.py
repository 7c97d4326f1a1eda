import os
import platform
import subprocess
import sys

import pytest

from eeg_gan.training import heap

FAULTS = """
import resource, sys
import numpy as np
from eeg_gan.training import heap
kept = heap.keep_freed() if sys.argv[1] == "kept" else False
np.ones(2**24, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    np.ones(2**24, np.float32)  # 64 MB
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word, **environment):
    command, own = [sys.executable, "-c", FAULTS, word], {k: v for k, v in os.environ.items() if k not in heap.OWN}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=own | environment)
    return tuple(map(int, run.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's, and this is another C library")
def test_a_freed_array_is_used_again_without_page_faults():
    kept, few = faults("kept")
    _, many = faults("given back")
    assert kept and many >= 8 * 32 and few < many / 8  # in pages of 2 MB, the largest, 64 MB are 32 faults


def test_thresholds_of_the_user_stay():
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == 0
