"""What runs in each process of a job: the words of a command, in the folder where it was given.

A job file holds these words and that folder, nothing else.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from eeg_gan import cli

HELD = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}  # by run.py, until handlers are there
FIRST_PORT, PORTS = 12000, 20000
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Job:
    """Called by submitit in each process; the run goes on from its newest checkpoint, so that a restart is no other."""

    def __init__(self, argv: Sequence[str], folder: str):
        self.argv, self.folder = list(argv), folder

    def __call__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)  # submitit's handlers are set by now
        os.chdir(self.folder)
        export_ranks()
        _find_scontrol()
        with scratch():
            code = cli.main(self.argv)
        if code:
            cli.leave(code)  # not an exception, which submitit would call a crash

    def checkpoint(self):
        """What a requeued job runs; nothing is saved here, as only rank 0 gets here, within a signal's handler."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(self.argv, self.folder))

    __submitit_checkpoint__ = checkpoint  # the name that newer submitit asks for first


def main() -> None:
    """`run.py FOLDER` is a process of a job; `run.py FOLDER -- WORDS` one without SLURM, in that folder."""
    cli.settle_threads()
    folder, *words = sys.argv[1:]
    if not words:
        from submitit.core.submission import process_job

        return process_job(folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    os.chdir(folder)
    with scratch():
        code = cli.main(words[1:])
    cli.leave(code)


def export_ranks() -> None:
    """The variables that torch and accelerate read, from those of SLURM; one process is left without any."""
    from submitit.helpers import TorchDistributedEnvironment

    for name in RANKS:
        os.environ.pop(name, None)
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        os.environ["MASTER_PORT"] = str(meeting_port())
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def meeting_port() -> int:
    """Where the ranks of this start meet: another for each job and each restart of it.

    Below the ports that Linux gives to outgoing connections, 32768 and up: submitit's own choice is mostly among them,
    and now and then meets one. Jobs with neighbouring numbers may share a node.
    """
    job, restart = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return FIRST_PORT + (job + 1009 * restart) % PORTS


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Temporary files go to the node's own disk where the cluster has one; each process cleans up behind itself."""
    place = os.environ.get("EEG_GAN_SCRATCH")
    if not place:
        yield
        return
    name = f"eeg-gan-{os.environ.get('SLURM_JOB_ID', os.getpid())}-{os.environ.get('SLURM_PROCID', '0')}"
    own = os.path.join(os.path.expandvars(place), name)
    os.makedirs(own, mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = own
    try:
        yield
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _find_scontrol() -> None:
    """submitit requeues by `scontrol`; in a container there is none, so a mark asks the batch script to do it."""
    folder = os.environ.get("SUBMITIT_FOLDER")
    if folder and shutil.which("scontrol") is None:
        os.environ["PATH"] = f"{Path(__file__).parent / 'inside'}{os.pathsep}{os.environ.get('PATH', '')}"
