"""Writes down a plan below its run directory and hands it to SLURM."""

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from eeg_gan.config import UserError
from eeg_gan.slurm import script, snapshot
from eeg_gan.slurm.job import Job
from eeg_gan.slurm.plan import Plan, Stage

LIST = "jobs.jsonl"


class Submission:
    """The files of one submission: run_dir/slurm/0001 and so on, beside the copies of the code."""

    def __init__(self, plan: Plan):
        self.plan, self.home = plan, plan.home
        script.check_path(self.home)
        for stage in plan.stages:
            script.check_mounts(stage.facts, self.mounts)
        self.folder = self.home / f"{_next_number(self.home):04d}"

    @property
    def mounts(self) -> tuple[str, ...]:
        return (str(self.home), str(Path(self.plan.folder, self.plan.run_dir)), self.plan.folder)

    def write(self) -> Path:
        """Snapshot of code, configs and environment; returns the folder of the code."""
        with _writing(self.home):
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.home.chmod(0o700)
            self.folder.mkdir(mode=0o700)
            code = snapshot.take(self.home)
            (self.folder / "environment.json").write_text(json.dumps(snapshot.environment(), indent=1))
            for stage in self.plan.stages:
                for number, task in enumerate(stage.tasks):
                    self.config(stage, number).write_text(yaml.safe_dump(task.config, sort_keys=False, width=120))
        return code

    def config(self, stage: Stage, number: int) -> Path:
        """The resolved config of a task, which its job reads: an edited YAML does not reach a job that waits."""
        return self.folder / f"{stage.file}-{number:03d}.yaml"

    def argv(self, stage: Stage, number: int) -> list[str]:
        return [stage.verb, str(self.config(stage, number))]

    def text(self, stage: Stage, code: Path) -> str:
        return script.text(stage, self.folder, code, self.mounts)

    def record(self, stage: Stage, job: str, **more: Any) -> None:
        """One line of jobs.jsonl: what `status`, `cancel` and `collect` know of a job."""
        tasks = [{"label": task.label, "words": task.words, "run_dir": task.run_dir} for task in stage.tasks]
        line = {"submission": self.folder.name, "job": job, "stage": stage.name, "verb": stage.verb, "file": stage.file}
        line |= {"tasks": tasks}
        line |= {"folder": self.plan.folder, "processes": stage.facts.processes, "time": time.time(), **more}
        with open(self.home / LIST, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def submit(submission: Submission) -> list[str]:
    """Submits every stage, each behind the one before it; returns the job ids."""
    code, jobs = submission.write(), []
    for stage in submission.plan.stages:
        path = submission.folder / f"{stage.file}.sh"
        path.write_text(submission.text(stage, code))
        pickles = [_job_file(submission, stage, number) for number in range(len(stage.tasks))]
        try:
            job = _sbatch(path, dependency(stage, jobs[-1]) if jobs else [])
        except UserError:
            if jobs:  # half a chain is of no use
                subprocess.run(["scancel", *jobs], capture_output=True, timeout=120)
            raise
        for number, pickle in enumerate(pickles):  # a job that starts before this waits for its file
            name = f"{job}_{number}" if len(pickles) > 1 else job
            os.replace(pickle, submission.folder / f"{name}_submitted.pkl")
        submission.record(stage, job)
        jobs.append(job)
    return jobs


def dependency(stage: Stage, job: str) -> list[str]:
    """Of an array, task i waits for task i; a stage whose forerunner failed is taken from the queue."""
    kind = "aftercorr" if len(stage.tasks) > 1 else "afterok"
    return [f"--dependency={kind}:{job}", "--kill-on-invalid-dep=yes"]


def _job_file(submission: Submission, stage: Stage, number: int) -> Path:
    from submitit.helpers import DelayedSubmission

    delayed = DelayedSubmission(Job(submission.argv(stage, number), submission.plan.folder))
    delayed.set_timeout(stage.facts.time_min, stage.facts.max_timeouts)
    path = submission.folder / f"{uuid.uuid4().hex}.pkl"
    delayed.dump(path)
    return path


def _sbatch(path: Path, words: list[str]) -> str:
    """The id of the new job. The script is named relatively: SLURM must not meet the folder's name in its header."""
    try:
        found = subprocess.run(
            ["sbatch", "--parsable", *words, f"./{path.name}"],
            cwd=path.parent,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except FileNotFoundError:
        raise UserError(
            "sbatch is not here: submit from a login node of the cluster, or leave SLURM out with --local (--dry-run "
            "shows what would be submitted)"
        ) from None
    if found.returncode:
        raise UserError(
            f"SLURM refused {path}: {' '.join(found.stderr.split())}; mend the cluster's YAML and try again"
        )
    return found.stdout.strip().splitlines()[-1].split(";")[0]


def _next_number(home: Path) -> int:
    taken = [int(path.name) for path in home.glob("[0-9][0-9][0-9][0-9]") if path.is_dir()]
    return max(taken, default=0) + 1


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{home} cannot be written: {error.strerror or error}; choose a run_dir on a disk that all nodes share"
        ) from None
