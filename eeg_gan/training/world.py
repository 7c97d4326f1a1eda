"""How many processes the launcher was asked for, so that fewer are an error and not a slower run that says nothing."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from eeg_gan.config import UserError, read_yaml
from eeg_gan.distributed import world_size

CURE = (
    "start with torchrun --standalone --nproc_per_node N -m eeg_gan ..., or accelerate launch --config_file and one of "
    "launch/accelerate/"
)


def check(running: int) -> None:
    """Refuses a start in which not all processes run together; `running` is what accelerate believes."""
    told = os.environ.get("WORLD_SIZE")
    asked = int(told) if told else 1
    if not (running == world_size() == asked):
        raise UserError(
            f"the launcher asked for {asked} processes, but {min(running, world_size())} run together; {CURE}"
        )
    if told:
        return
    asked = accelerate_asked(_command_of_parent())
    if asked > 1:
        raise UserError(
            f"accelerate launch was asked for {asked} processes but started one: with --cpu, or a file of "
            f"distributed_type MULTI_CPU, it does so without a word; {CURE}"
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks that know nothing of one another: WORLD_SIZE is not set, so each would train "
            "alone; use launch/slurm.py, or export RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each"
        )


@contextlib.contextmanager
def joining(timeout: timedelta) -> Iterator[None]:
    """Around the call in which the processes of this start meet: says why they did not."""
    try:
        yield
    except torch.distributed.DistError as error:
        said, world = str(error).splitlines()[0], os.environ.get("WORLD_SIZE")
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in said:
            raise UserError(
                f"the {world} processes of this start meet at {place}, but another program has that port; give the "
                "same command again, with another MASTER_PORT (--main_process_port of accelerate) where you chose it"
            ) from None
        raise UserError(
            f"the {world} processes that the launcher asked for did not come together at {place} within "
            f"{timeout.seconds} s ({said}); look for those that did not start"
        ) from None


def accelerate_asked(command: Sequence[str]) -> int:
    """The processes that a command line asks of accelerate's launcher; 1 where it is another command."""
    words = [Path(command[0]).name, *command[1:3]] if command else []
    if not any("accelerate" in word for word in words):
        return 1
    given = _option(command, "num_processes")
    if given is None:
        file = _option(command, "config_file")
        given = read_yaml(file).get("num_processes", 1) if file is not None and os.path.isfile(file) else 1
    return int(given)


def _option(command: Sequence[str], name: str) -> str | None:
    spellings = (f"--{name}", f"--{name.replace('_', '-')}")
    for place, word in enumerate(command):
        head, _, tail = word.partition("=")
        if head in spellings:
            return tail or (command[place + 1] if place + 1 < len(command) else None)
    return None


def _command_of_parent() -> list[str]:
    """The words of the process that started this one; none where the system does not tell (it is no Linux)."""
    try:
        found = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
    return found[1:] if Path(found[0]).name.startswith("python") else found
