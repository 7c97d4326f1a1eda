"""The same plan without SLURM: the same snapshot, configs, folders, processes and logs, on this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from eeg_gan import cli
from eeg_gan.slurm import script
from eeg_gan.slurm.job import RANKS
from eeg_gan.slurm.plan import Stage
from eeg_gan.slurm.submit import Submission

POLL_S, GRACE_S = 0.1, 60.0  # a process that is asked to stop may save for so long
console = Console(stderr=True)


def run(submission: Submission, parallelism: int = 1) -> int:
    """All stages in order, `parallelism` tasks of each at a time; returns the exit code of the first that failed."""
    code = submission.write()
    for stage in submission.plan.stages:
        submission.record(stage, "local")
        with ThreadPoolExecutor(parallelism) as pool:
            codes = list(pool.map(lambda i, s=stage: _task(submission, s, i, code), range(len(stage.tasks))))
        if bad := next(filter(None, codes), 0):
            return bad
    return 0


def _task(submission: Submission, stage: Stage, number: int, code: Path) -> int:
    """The processes of one task; the first that fails takes the others with it, as srun does."""
    argv = [str(code / script.RUN), submission.plan.folder, "--", *submission.argv(stage, number)]
    logs = [submission.folder / f"local_{stage.file}-{number:03d}_{rank}.log" for rank in range(stage.facts.processes)]
    began, processes = time.monotonic(), []
    for path, environment in zip(logs, _environments(stage), strict=True):
        with open(path, "ab") as log:
            command = [stage.facts.python or sys.executable, "-u", *argv]
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    try:
        found = _wait(processes)
    except BaseException:  # Ctrl-C reaches the processes too, and they save
        _end(processes)
        raise
    said = "done" if found == 0 else f"left with exit code {found}; what it said is in {logs[0]}"
    name = f"{stage.name} {stage.tasks[number].label}".strip()
    console.print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", markup=False, highlight=False, soft_wrap=True)
    return found


def _environments(stage: Stage) -> list[dict[str, str]]:
    facts = stage.facts
    common = {name: value for name, value in os.environ.items() if name not in RANKS}
    common |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(facts.cpus_per_task)), **facts.env}
    if facts.scratch is not None:
        common["EEG_GAN_SCRATCH"] = facts.scratch
    count = facts.processes
    if count == 1:
        return [common]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**common, **meeting, **sizes, **own} for own in ranks]


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        if bad := next((code for code in codes if code), None):
            _end(processes, at_once=bad != cli.AGAIN)
            return bad if bad > 0 else 128 - bad  # a signal, as a shell counts it
        if None not in codes:
            return 0
        time.sleep(POLL_S)


def _end(processes: Sequence[subprocess.Popen], at_once: bool = False) -> None:
    """Asks those that still run to stop, and ends them where they do not."""
    end = time.monotonic() + (0 if at_once else GRACE_S)
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(POLL_S)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
