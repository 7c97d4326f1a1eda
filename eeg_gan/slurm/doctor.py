"""`eeg-gan doctor --cluster NAME`: whether a cluster is what its file says, and what its nodes can do together."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.slurm import snapshot
from eeg_gan.slurm.cluster import Cluster, Facts
from eeg_gan.slurm.script import check_path

PROBE_S = 900  # in the queue and in the job
SIGNS = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "note": "[yellow]note[/]"}


def run(name: str, words: list[str]) -> int:
    """Prints a table; the exit code is 2 where something is missing. `words` are facts, and run_dir=FOLDER."""
    folders = [word.partition("=")[2] for word in words if word.startswith("run_dir=")]
    facts = Facts(name, [word for word in words if not word.startswith("run_dir=")])
    Finding = cli.stage("doctor").Finding
    table, bad = Table("", "what", "fact", "cure", title=f"cluster {facts.name}", title_justify="left"), False
    for what, state, fact, cure in examine(facts.common, Path(folders[-1] if folders else "runs")):
        finding = Finding(what, state, fact, cure)
        bad = bad or finding.state == "missing"
        table.add_row(SIGNS[finding.state], *map(escape, (finding.what, finding.fact, finding.cure)))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return cli.USERS if bad else cli.DONE


def examine(facts: Cluster, folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """what, ok | missing | note, fact, cure."""
    absent = [
        name for name in ("sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel") if shutil.which(name) is None
    ]
    if absent:
        yield "SLURM", "missing", f"no {', '.join(absent)} here", "run this on a login node of the cluster"
        return
    settings = _settings()
    if not settings:
        yield "SLURM", "missing", "the controller does not answer", "ask whoever runs the cluster; `scontrol ping`"
        return
    yield "SLURM", "ok", f"{settings.get('SLURM_VERSION', '?')}, cluster {settings.get('ClusterName', '?')}", ""
    yield from _accounts(settings)
    partition = _partition(facts.partition)
    if not partition:
        named = facts.partition or "default"
        have = ", ".join(sorted(set(_lines("sinfo", "-h", "-o", "%R"))))
        yield "partition", "missing", f"there is no partition {named!r}", f"partition is one of {have}"
        return
    yield from _limits(facts, partition)
    yield from _signals(facts, settings, partition)
    yield from _probe(facts, folder)


def _accounts(settings: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    kept = settings.get("AccountingStorageType", "")
    if kept.endswith("none") or shutil.which("sacct") is None:
        yield "accounts", "note", "none: jobs that have left the queue are unknown to `status`", ""
    else:
        yield "accounts", "ok", kept, ""


def _limits(facts: Cluster, partition: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    name, most = partition["PartitionName"], minutes(partition.get("MaxTime", "UNLIMITED"))
    if most is not None and facts.time_min > most:
        yield "time_min", "missing", f"{facts.time_min} minutes, but {name} allows {most:g}", f"time_min={most:g}"
    else:
        yield "partition", "ok", f"{name}, {partition.get('TotalNodes')} nodes, limit {partition.get('MaxTime')}", ""
    if facts.nodes > int(partition.get("TotalNodes", "0")):
        have = partition.get("TotalNodes")
        yield "nodes", "missing", f"{facts.nodes} are asked for, {name} has {have}", f"nodes={have}"
    gpus = _gpus(name, facts.gpu_type)
    if facts.gpus_per_node > gpus:
        kind = f" of type {facts.gpu_type}" if facts.gpu_type else ""
        yield "GPUs", "missing", f"{facts.gpus_per_node} per node, {name} has {gpus}{kind}", f"gpus_per_node={gpus}"
    command = ["sbatch", "--test-only", *_options(facts), "--wrap", "true"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if found.returncode:
        cure = "change what it names: partition, account, qos, nodes, gpus_per_node, mem_gb"
        yield "a job like this", "missing", " ".join(found.stderr.split()), cure
    else:
        yield "a job like this", "ok", "SLURM would take it", ""


def _signals(
    facts: Cluster, settings: dict[str, str], partition: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    if settings.get("JobRequeue") == "0":
        yield "requeue", "note", "off by default here; jobs ask for it themselves", ""
    preempted = partition.get("PreemptMode", "OFF")
    if preempted in ("OFF", "", "(null)"):
        yield "preemption", "ok", f"jobs of {partition['PartitionName']} are not preempted", ""
    elif preempted != "REQUEUE":
        yield "preemption", "note", f"{preempted}: SLURM itself does not put a preempted job back", "submit it again"
    else:
        grace, told = int(partition.get("GraceTime", "0")), settings.get("SlurmctldParameters", "")
        how = "USR2" if "preempt_send_user_signal" in told else "SIGTERM"
        cure = "" if grace >= 30 else "ask for a longer GraceTime; or lower checkpoint_every, so that little is lost"
        yield "preemption", "ok" if grace >= 30 else "note", f"requeue, {grace} s to save after {how}", cure
    kill = int(re.sub(r"\D", "", settings.get("KillWait", "30")) or 30)
    cure = "" if kill >= 30 else "a cancelled run may be cut off while it saves; checkpoints stay whole"
    yield "scancel", "ok" if kill >= 30 else "note", f"{kill} s to save", cure
    if settings.get("ProctrackType", "").endswith("linuxproc"):
        yield "processes", "note", "no control groups: memory limits are not enforced", ""


def _probe(facts: Cluster, folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """A job over the nodes that reads and writes the folder, adds up numbers, and sends itself the signal."""
    try:
        check_path(folder.absolute())
        folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".doctor-", dir=folder.absolute()))
    except (OSError, UserError) as error:
        yield "run_dir", "missing", str(error), "choose another run_dir"
        return
    try:
        token = uuid.uuid4().hex
        (place / "token").write_text(token)
        code = snapshot.take(place)
        said = _run_probe(facts, place, code)
        found = [json.loads(path.read_text()) for path in sorted(place.glob("found-*.json"))]
        yield from judge(facts, found, token, said)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run_probe(facts: Cluster, place: Path, code: Path) -> str:
    python = facts.python or sys.executable
    inner = [python, "-u", "-m", "eeg_gan.slurm.probe", str(place)]
    lines = ["export SUBMITIT_EXECUTOR=slurm", *(f"export {n}={shlex.quote(v)}" for n, v in facts.env.items())]
    lines += [*facts.setup, f"cd -- {shlex.quote(str(code))}", "exec " + shlex.join(inner)]
    command = ["srun", *_options(facts), "--time=15", "--kill-on-bad-exit=1", "--quit-on-interrupt", *facts.srun]
    try:
        found = subprocess.run(
            [*command, "bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=PROBE_S, cwd=place
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_S} s: the queue is long, or the nodes do not reach one another"
    return " ".join(found.stderr.split())[-300:] if found.returncode else ""


def judge(facts: Cluster, found: list[dict], token: str, said: str) -> Iterator[tuple[str, str, str, str]]:
    """What the processes of the probe wrote."""
    count, nodes = facts.processes, sorted({own["node"] for own in found})
    if not found:
        yield "job over the nodes", "missing", said or "it left nothing", "is run_dir on a disk that all nodes share?"
        return
    if len(found) == count and all(own["token"] == token and own["sees"] == count for own in found):
        yield "shared folder", "ok", f"{count} processes on {', '.join(nodes)} read and write it", ""
    else:
        wrong = next((own for own in found if own["token"] != token), found[0])
        fact = f"{len(found)} of {count} processes wrote into it; {wrong['node']} sees {wrong['sees']} of them"
        yield "shared folder", "missing", fact, "choose a run_dir on a disk that all nodes share"
    if errors := [own for own in found if "error" in own]:
        yield "all-reduce", "missing", f"{errors[0]['node']}: {errors[0]['error']}", "python=, setup= or the network"
    elif any(own["sum"] != count * (count - 1) / 2 for own in found):
        yield "all-reduce", "missing", f"the sum of ranks is {found[0]['sum']}", "ask whoever runs the cluster"
    else:
        rate = f", {min(own['gb_per_s'] for own in found):.2f} GB/s of a buffer" if count > 1 else ""
        yield "all-reduce", "ok", f"{count} processes on {len(nodes)} nodes{rate}", ""
    if len(versions := {own.get("torch") for own in found}) > 1:
        yield (
            "torch",
            "missing",
            f"different versions: {', '.join(map(str, versions))}",
            "the same python= on all nodes",
        )
    if any(own.get("gpus", 0) < facts.gpus_per_node for own in found):
        yield (
            "GPUs",
            "missing",
            f"torch sees {found[0].get('gpus', 0)} of {facts.gpus_per_node}",
            "a CUDA build of torch",
        )
    deaf = [own["node"] for own in found if not own["signal"]]
    cure = "runs cannot be told to save before their limit: ask whoever runs the cluster" if deaf else ""
    fact = f"did not reach {', '.join(deaf)}" if deaf else "reaches every process"
    yield "signal USR2", "missing" if deaf else "ok", fact, cure


def minutes(text: str) -> float | None:
    """SLURM's [days-]hours:minutes:seconds; None where there is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, rest, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + rest + seconds / 60


def _options(facts: Cluster) -> list[str]:
    named = {"partition": facts.partition, "account": facts.account, "qos": facts.qos, "nodes": facts.nodes}
    named |= {"ntasks-per-node": facts.processes_per_node, "cpus-per-task": facts.cpus_per_task}
    named |= {"mem": None if facts.mem_gb is None else f"{round(facts.mem_gb * 1024)}M"}
    if facts.gpus_per_node:
        named["gpus-per-node"] = ":".join(filter(None, [facts.gpu_type, str(facts.gpus_per_node)]))
    named |= {name: value for name, value in facts.sbatch.items() if value is not False}
    return [f"--{n}" if value is True else f"--{n}={value}" for n, value in named.items() if value is not None]


def _settings() -> dict[str, str]:
    pairs = (line.split("=", 1) for line in _lines("scontrol", "show", "config") if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _partition(name: str | None) -> dict[str, str]:
    """Of a name, or of the default partition; empty where there is none."""
    for line in _lines("scontrol", "--oneliner", "show", "partition", *([name] if name else [])):
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if name or facts.get("Default") == "YES":
            return facts
    return {}


def _gpus(partition: str, kind: str | None) -> int:
    """The most GPUs that a node of a partition has."""
    counts = [0]
    for line in _lines("sinfo", "-h", "-p", partition, "-o", "%G"):
        for own, number in re.findall(r"gpu:(?:([A-Za-z][^:,(]*):)?(\d+)", line):
            counts += [int(number)] if kind is None or own == kind else []
    return max(counts)


def _lines(*command: str) -> list[str]:
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return found.stdout.splitlines() if found.returncode == 0 else []
