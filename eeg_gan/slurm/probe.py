"""Runs in every process of a job of `doctor --cluster`: says what this place is like, one JSON line per process.

    python -m eeg_gan.slurm.probe FOLDER

FOLDER holds a file `token` that the submitting machine wrote.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SIGNAL_S, ANSWER_S = 30, 60
SIZE = 4_000_000  # float32 numbers in the sum that is timed: 16 MB


def main(folder: Path) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    found = {"rank": rank, "node": os.environ.get("SLURMD_NODENAME", "?")}
    found["token"] = _read(folder / "token")
    _write(folder / f"here-{rank}", found["node"])
    found |= _together(rank)
    found["sees"] = _others(folder, int(os.environ.get("SLURM_NTASKS", "1")))
    if rank == 0:
        command = ["scancel", "--signal=USR2", os.environ["SLURM_JOB_ID"]]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, timeout=SIGNAL_S, capture_output=True)
    end = time.monotonic() + SIGNAL_S
    while not heard and time.monotonic() < end:
        time.sleep(0.1)
    found["signal"] = bool(heard)
    _write(folder / f"found-{rank}.json", json.dumps(found))


def _together(rank: int) -> dict:
    """All processes add up their ranks, by the network that training would use."""
    try:
        import torch
        import torch.distributed as dist

        from eeg_gan.slurm.job import export_ranks

        gpu = torch.cuda.is_available()
        facts = {"torch": torch.__version__, "gpus": torch.cuda.device_count() if gpu else 0}
        export_ranks()
        if "RANK" not in os.environ:
            return {**facts, "sum": 0.0, "processes": 1}
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
        dist.init_process_group("nccl" if gpu else "gloo")
        value = torch.full((SIZE,), float(rank), device=device)
        dist.all_reduce(value)
        total, began = float(value[0]), time.perf_counter()
        dist.all_reduce(value)
        float(value[0])  # waits for the GPU
        seconds = time.perf_counter() - began
        count = dist.get_world_size()
        dist.destroy_process_group()
        return {**facts, "sum": total, "processes": count, "gb_per_s": 4 * SIZE / seconds / 1e9}
    except Exception as error:  # is the finding
        return {"error": f"{type(error).__name__}: {error}"}


def _others(folder: Path, count: int) -> int:
    """How many processes' files show up here: network file systems may be late."""
    end = time.monotonic() + ANSWER_S
    while (seen := len(list(folder.glob("here-*")))) < count and time.monotonic() < end:
        time.sleep(0.2)
    return seen


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
