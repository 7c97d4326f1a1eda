"""Runs several commands one after the other in the processes that torchrun starts: they import torch once.

torchrun --standalone --nproc_per_node 2 tests/distributed/many.py JOBS.json, which holds [{name, words, code?}, ...];
each rank writes NAME-RANK.json beside it: the exit code, and the figures of every step.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from eeg_gan import cli
from eeg_gan.stages import gan
from eeg_gan.training import engine

STEPS: list = []


def run_all(folder: Path, jobs: dict, processes: int = 2) -> str:
    """Carries out {name: words or (words, exit code)} in one start of torchrun; returns what was said."""
    jobs = {name: job if isinstance(job, tuple) else (job, 0) for name, job in jobs.items()}
    listed = [{"name": name, "words": given, "code": code} for name, (given, code) in jobs.items()]
    (folder / "jobs.json").write_text(json.dumps(listed))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, __file__, str(folder / "jobs.json")], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def steps_of(folder: Path, name: str, rank: int = 0) -> list:
    return json.loads((folder / f"{name}-{rank}.json").read_text())["steps"]


def recorded(function, figure):
    """The function, which from now on leaves a figure of its call in STEPS."""

    def call(*arguments):
        found = function(*arguments)
        STEPS.append(figure(found, arguments))
        return found

    return call


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    for kind in (engine.Engine, engine.ShardedEngine):
        kind.step = recorded(kind.step, lambda loss, _: loss)
    gan.Means.add = recorded(gan.Means.add, lambda _, given: {tag: float(value) for tag, value in given[1].items()})
    for job in json.loads(jobs.read_text()):
        STEPS.clear()
        began = time.monotonic()
        code = cli.main(job["words"])
        said = {"code": code, "steps": STEPS, "seconds": round(time.monotonic() - began, 2)}
        (jobs.parent / f"{job['name']}-{os.environ['RANK']}.json").write_text(json.dumps(said))
        assert code == job.get("code", 0), f"{job['name']} left with {code}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
