"""Trials per second and peak memory of `prepare`: 128 x 440 EEG, 128-pixel images, each shown six times.

    python tests/bench/prepare.py [--trials 2000 20000] [--rate-trials 600] [--folder DIR] [--json FILE]

The rate is that of one core (`workers=0`). Each measurement runs in a process of its own, whose peak memory is
compared with that of the same process before it opens the data.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

CHANNELS, TIMES, PIXELS, SHOWN = 128, 440, 128, 6


class Source:
    """As many trials as asked for, out of 64 that are really there: what is measured is `prepare`, not its source."""

    def __init__(self, n_trials: int):
        import numpy as np
        from PIL import Image

        from eeg_gan.data.card import Card
        from eeg_gan.data.trial import complete

        random = np.random.default_rng(0)
        names = tuple(f"E{i}" for i in range(CHANNELS))
        self.card = Card("bench", 1000.0, names, "event-randomised", tuple(map(str, range(40))), "CC0", pairing="trial")
        self.eegs = random.normal(size=(64, CHANNELS, TIMES)).astype(np.float32) * 10
        small = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(32)]
        grain = random.integers(-6, 7, (PIXELS, PIXELS, 3))
        self.images = [
            (np.asarray(s.resize((PIXELS, PIXELS))).astype(int) + grain).clip(0, 255).astype(np.uint8) for s in small
        ]
        pictures = -(-n_trials // SHOWN)
        self.trials = [
            complete({"key": f"t{i:07d}", "label": i % 40, "subject": f"s{i % 6}", "stimulus": f"p{i % pictures}"})
            for i in range(n_trials)
        ]

    def eeg(self, i: int):
        return self.eegs[i % 64].copy()

    def image_key(self, i: int) -> str:
        return self.trials[i]["stimulus"]

    def image(self, i: int):
        import numpy as np

        return np.roll(self.images[i % 32], i, axis=1)


def measure(n_trials: int, filtered: bool, run_dir: str) -> dict:
    """Runs in a process of its own."""
    from eeg_gan.config import load
    from eeg_gan.stages import prepare

    source = Source(n_trials)
    prepare.SOURCES["simulated"] = lambda config: source
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    words = ["source.name=simulated", f"run_dir={run_dir}", "dtype=float16", "split.by=stimulus"]
    words += ["preprocess.highpass_hz=5", "preprocess.lowpass_hz=95"] if filtered else []
    prepare.run(load(prepare.Config, None, words))
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    core_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "trials": n_trials,
        "filter": filtered,
        "trials_per_s": n_trials / wall,
        "trials_per_core_s": n_trials / core_s,
        "peak_mb": after.ru_maxrss / 1024,
        "start_mb": before.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[2000, 20000], help="sizes for the memory")
    parser.add_argument("--rate-trials", type=int, default=600, help="trials over which the rates are measured")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where shards are written, and deleted again")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run_dir = os.path.join(options.folder, f"bench-prepare-{os.getpid()}")
    try:
        if options.one:
            found = measure(int(options.one[0]), options.one[1] == "1", run_dir)
            print(json.dumps(found), flush=True)
            return
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    rows = []
    for n_trials, filtered in [(options.rate_trials, 1), (options.rate_trials, 0), *((n, 0) for n in options.trials)]:
        command = [sys.executable, __file__, "--folder", options.folder, "--one", str(n_trials), str(filtered)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        rows.append(json.loads(found.stdout.splitlines()[-1]))
        print(
            "{trials} trials, filter {filter!s:5}: {trials_per_s:.1f} trials/s ({trials_per_core_s:.1f} per core-s), "
            "peak {peak_mb:.0f} MB, of which {start_mb:.0f} MB before".format(**rows[-1]),
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
    main()
