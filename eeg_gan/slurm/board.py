"""What became of submitted jobs: their states, their end, and a table of what they measured."""

import csv
import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from eeg_gan.config import UserError, read_yaml
from eeg_gan.slurm.submit import LIST

LIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "PREEMPTED")


@dataclass(frozen=True)
class Entry:
    """One task of one stage, with the last job that was submitted for it."""

    stage: str
    verb: str
    label: str
    words: tuple[str, ...]
    run_dir: Path
    job: str  # as SLURM names it, 17 or 17_3
    log: Path


def entries(run_dir: str) -> list[Entry]:
    """Every task that was ever submitted for a run directory, in order; a later submission replaces an earlier one."""
    home = Path(run_dir) / "slurm"
    try:
        lines = (home / LIST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{run_dir}: nothing was submitted from here ({home / LIST} is missing); give the run_dir"
        ) from None
    found: dict[tuple[str, str], Entry] = {}
    for line in map(json.loads, lines):
        array = len(line["tasks"]) > 1
        for number, task in enumerate(line["tasks"]):
            job = f"{line['job']}_{number}" if array else line["job"]
            name = f"local_{line['file']}-{number:03d}" if line["job"] == "local" else job
            place = Path(line["folder"], task["run_dir"])
            log = home / line["submission"] / f"{name}_0.log"
            entry = Entry(line["stage"], line["verb"], task["label"], tuple(task["words"]), place, job, log)
            found[line["stage"], task["label"]] = entry
    return list(found.values())


def status(run_dir: str, console: Console) -> None:
    found = entries(run_dir)
    states = slurm_states([entry.job for entry in found])
    table = Table("stage", "task", "job", "SLURM", "run", "log")
    for entry in found:
        table.add_row(entry.stage, entry.label, entry.job, states.get(entry.job, "-"), progress(entry), str(entry.log))
    console.print(table)


def cancel(run_dir: str) -> list[str]:
    """Ends what still waits or runs; returns the ids. A cancelled run saves first, if it is given time."""
    jobs = live(entries(run_dir))
    if jobs:
        _ask(["scancel", *jobs])
    return jobs


def live(found: Sequence[Entry]) -> list[str]:
    """Those jobs that wait or run."""
    states = slurm_states([entry.job for entry in found])
    return [entry.job for entry in found if states.get(entry.job, "").split(" ")[0] in LIVE]


def slurm_states(jobs: Sequence[str]) -> dict[str, str]:
    """State of each job by id, from the queue and, for those that have left it, from the accounts."""
    wanted = {job for job in jobs if job != "local"}
    if not wanted:
        return {}
    heads = ",".join(sorted({job.split("_")[0] for job in wanted}))
    known = {job: state for job, state in _accounts(heads) if job in wanted}
    for line in _ask(["squeue", "--noheader", "--array", f"--jobs={heads}", "--format=%i|%T|%r"], may_fail=True):
        job, state, reason = line.split("|", 2)
        known[job] = state if reason in ("None", "") or state == "RUNNING" else f"{state} ({reason})"
    return {job: state for job, state in known.items() if job in wanted}


def _accounts(heads: str) -> Iterator[tuple[str, str]]:
    from submitit.slurm.slurm import SlurmInfoWatcher

    lines = _ask(["sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", "-j", heads], may_fail=True)
    for job, facts in SlurmInfoWatcher(delay_s=0).read_info("\n".join(lines)).items():
        yield job, facts["State"]


def _ask(command: list[str], may_fail: bool = False) -> list[str]:
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not here: ask on a login node of the cluster") from None
    if found.returncode and not may_fail:
        raise UserError(f"{command[0]}: {' '.join(found.stderr.split())}")
    return found.stdout.splitlines() if found.returncode == 0 else []


def progress(entry: Entry) -> str:
    """done: headline; or how far the newest checkpoint or log row is."""
    record = _json(entry.run_dir / "run.json")
    images = _images(entry.run_dir)
    config = entry.run_dir / "config.yaml"
    total = read_yaml(config).get("total_images") if config.exists() else None
    if record.get("done"):
        return f"done: {record.get('headline', '')}"
    if images is None:
        return "begun" if record else "-"
    return f"{images} of {total} images" if total else f"{images} images"


def collect(run_dir: str, out: IO[str]) -> int:
    """A csv of what every task measured at last, one row each, the grid's keys as columns; returns the rows."""
    tasks: dict[str, list[Entry]] = {}
    for entry in entries(run_dir):
        tasks.setdefault(entry.label, []).append(entry)
    rows = [_row(stages) for stages in tasks.values()]
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(out, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return len(rows)


def _row(stages: Sequence[Entry]) -> dict[str, Any]:
    last, records = stages[-1], [_json(entry.run_dir / "run.json") for entry in stages]
    done = [bool(record.get("done")) for record in records]
    row: dict[str, Any] = {"task": last.label or last.run_dir.name, **dict(w.split("=", 1) for w in last.words)}
    row |= {"run_dir": str(last.run_dir.parent if len(stages) > 1 else last.run_dir), "job": last.job}
    row |= {"state": "done" if all(done) else "begun" if any(records) else "not begun"}
    row |= {"seconds": round(sum(record.get("seconds", 0.0) for record in records), 1)}
    for entry in stages:
        row |= measured(entry.run_dir, f"{entry.stage}: " if len(stages) > 1 else "")
    return row


def measured(run_dir: Path, prefix: str = "") -> dict[str, Any]:
    """The last row of the log, what the best checkpoint is best in, and every metric with its interval."""
    found: dict[str, Any] = {}
    for tag, value in _last_row(run_dir).items():
        found[prefix + tag] = value
    best = _json(run_dir / "best.json")
    if best:
        found |= {f"{prefix}best {best['metric']}": best["value"], f"{prefix}best checkpoint": best["checkpoint"]}
    for path in (run_dir / "metrics.json", *sorted(run_dir.glob("*/metrics.json"))):
        for name, entry in _json(path).items():
            if isinstance(entry, dict) and "value" in entry:
                kept = {"": entry["value"], " low": entry.get("low"), " high": entry.get("high")}
                found |= {name + suffix: value for suffix, value in kept.items() if value is not None}
    return found


def _last_row(run_dir: Path) -> dict[str, float]:
    """Each tag's last value; not every row has every tag."""
    found: dict[str, float] = {}
    path = run_dir / "stats.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found |= {tag: value for tag, value in json.loads(line).items() if math.isfinite(value)}
        except (json.JSONDecodeError, TypeError):
            break  # the last line of a run that is writing
    return found


def _images(run_dir: Path) -> int | None:
    seen = [int(path.name.rpartition("-")[2]) for path in run_dir.glob("checkpoint-*[0-9]")]
    row = _last_row(run_dir)
    seen += [int(row["images"])] if "images" in row else []
    return max(seen, default=None)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
