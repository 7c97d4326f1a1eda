"""The words of the launcher: facts of the cluster, then `--`, then the words of `eeg-gan`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.slurm import board, local, submit
from eeg_gan.slurm.cluster import Facts
from eeg_gan.slurm.plan import Plan, arithmetic, make
from eeg_gan.slurm.submit import Submission

USAGE = """\
  %(prog)s --cluster NAME|FILE.yaml [fact=value ...] [--dry-run | --local] [--list FILE] \\
      -- VERB CONFIG.yaml [key=value ...]
  %(prog)s status|cancel RUN_DIR
  %(prog)s collect RUN_DIR [--output FILE.csv]"""
ABOUT = """\
Behind `--` are the words of eeg-gan. key=a,b,c means a task for each value (several such keys: for each combination),
in one job array, each with its own folder below run_dir; --list FILE has one task of key=value words per line.
`pipeline` becomes a chain of jobs, each waiting for the one before it. The same command again continues the runs."""
log = logging.getLogger("eeg_gan")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; {self.prog} --help shows the words")


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    cli.set_up_logging()
    try:
        if argv and argv[0] in ("status", "cancel", "collect"):
            return _look(list(argv))
        return _launch(list(argv))
    except UserError as error:
        cli.console.print(f"eeg-gan: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        return cli.USERS
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on")
        return cli.AGAIN


def _look(argv: list[str]) -> int:
    parser = Parser(prog=_name(), usage=USAGE % {"prog": _name()})
    parser.add_argument("what", choices=("status", "cancel", "collect"))
    parser.add_argument("run_dir")
    parser.add_argument("--output", help="the csv; without it the table is printed")
    words = parser.parse_args(argv)
    if words.what == "status":
        board.status(words.run_dir, Console(width=None if sys.stdout.isatty() else 200))
    elif words.what == "cancel":
        jobs = board.cancel(words.run_dir)
        log.info("%s", f"cancelled {' '.join(jobs)}" if jobs else "nothing of it waits or runs")
    elif words.output is None:
        board.collect(words.run_dir, sys.stdout)
    else:
        partial = Path(f"{words.output}.partial")
        with open(partial, "w", encoding="utf-8", newline="") as file:
            rows = board.collect(words.run_dir, file)
        os.replace(partial, words.output)
        log.info("%d rows in %s", rows, words.output)
    return cli.DONE


def _launch(argv: list[str]) -> int:
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = Parser(
        prog=_name(), usage=USAGE % {"prog": _name()}, description=ABOUT, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cluster", help="a file, or the name of one in configs/cluster")
    parser.add_argument("--dry-run", action="store_true", help="print scripts, configs and arithmetic; write nothing")
    parser.add_argument("--local", action="store_true", help="run it here, without SLURM")
    parser.add_argument("--list", help="a file with one task per line")
    parser.add_argument("--one-job", action="store_true", help="a pipeline as one job, not as a chain")
    parser.add_argument("facts", nargs="*", metavar="fact=value", help="over the cluster's file, such as nodes=2")
    words = parser.parse_intermixed_args(own)
    if not command:
        raise UserError("the verb is missing: -- VERB CONFIG.yaml [key=value ...] comes last; --help shows the words")
    if words.cluster is None and not words.local:
        raise UserError("--cluster NAME or FILE.yaml is missing; configs/cluster/example.yaml shows what belongs there")
    if any("=" not in fact for fact in words.facts):
        raise UserError(f"{' '.join(words.facts)!r}: a word before -- is fact=value, such as nodes=2")
    verb, path, rest = _split(command)
    facts = Facts(words.cluster, words.facts)
    plan = make(verb, path, rest, facts, words.list, words.one_job)
    if words.dry_run:
        return _print(plan)
    if words.local:  # one task after the other, unless parallelism is asked for here
        return local.run(Submission(plan), facts.common.parallelism if "parallelism" in facts.given else 1)
    return _submit(plan)


def _split(command: list[str]) -> tuple[str, str | None, list[str]]:
    verb, *rest = command
    path = rest.pop(0) if rest and ("=" not in rest[0] or os.path.exists(rest[0])) else None
    return verb, path, rest


def _print(plan: Plan) -> int:
    """Everything that would be submitted; nothing is written."""
    submission, before = Submission(plan), None
    say = sys.stdout.write
    for stage in plan.stages:
        say(f"# ---- {stage.name}\n")
        for line in arithmetic(stage):
            say(f"# {line}\n")
        if before is not None:
            say(f"# sbatch {' '.join(submit.dependency(stage, f'<id of {before}>'))}\n")
        say(submission.text(stage, submission.home / "code-DIGEST"))
        for number, task in enumerate(stage.tasks):
            if task.label:
                say(f"\n# task {number}: {' '.join(task.words)}  ->  {task.run_dir}\n")
        say(f"\n# {submission.config(stage, 0).name}, the resolved config{' of task 0' if task.label else ''}\n")
        say(yaml.safe_dump(stage.tasks[0].config, sort_keys=False, width=120) + "\n")
        before = stage.name
    return cli.DONE


def _submit(plan: Plan) -> int:
    submission = Submission(plan)
    _refuse_running(plan)
    jobs = submit.submit(submission)
    for stage, job in zip(plan.stages, jobs, strict=True):
        log.info("%-12s job %s: %s", stage.name, job, "; ".join(arithmetic(stage)[:2]))
    log.info("logs and scripts are in %s; `%s status %s` tells how it goes", submission.folder, _name(), plan.run_dir)
    return cli.DONE


def _refuse_running(plan: Plan) -> None:
    """Two jobs must not write into one run directory, and the second would fail only when its turn comes."""
    if not (plan.home / submit.LIST).exists():
        return
    wanted = {Path(plan.folder, task.run_dir) for stage in plan.stages for task in stage.tasks}
    if jobs := board.live([entry for entry in board.entries(str(plan.home.parent)) if entry.run_dir in wanted]):
        raise UserError(
            f"{plan.run_dir}: job {', '.join(jobs)} still waits or runs; wait for it, or end it with "
            f"`{_name()} cancel {plan.run_dir}`"
        )


def _name() -> str:
    return os.path.basename(sys.argv[0]) if sys.argv[0].endswith("slurm.py") else "python -m eeg_gan.slurm"
