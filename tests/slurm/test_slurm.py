"""The launcher on a real SLURM cluster: two nodes of this machine, brought up and ended by cluster.py.

`make test-slurm`. Jobs are polled with generous limits, as nothing here depends on how fast the machine is.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import cluster
import pytest
import torch
from conftest import ROOT, debug

from eeg_gan import cli
from eeg_gan.slurm import board
from eeg_gan.slurm import main as front
from eeg_gan.training import checkpoint
from eeg_gan.training.log import read_stats

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
FACTS = str(Path(__file__).with_name("two_nodes.yaml"))
LIMIT_S = 900  # for anything that a job does
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@pytest.fixture(scope="session")
def slurm():
    """The cluster; a job that is requeued is not held back for two minutes, as SLURM does to spare its nodes."""
    try:
        conf = cluster.up()
    except cluster.Unavailable as reason:
        pytest.skip(f"no SLURM cluster here: {reason}")
    stop = threading.Event()
    thread = threading.Thread(target=release, args=(stop,))
    thread.start()
    try:
        yield conf
    finally:
        stop.set()
        thread.join()
        cluster.down()


def release(stop):
    """Not at once: a job that starts in the second in which its credential was revoked is killed."""
    seen = {}
    while not stop.wait(1):
        lines = output("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines()
        held = {line.split(" ")[0] for line in lines if line.endswith("BeginTime")}
        seen = {job: seen.get(job, time.monotonic()) for job in held}
        for job, since in seen.items():
            if time.monotonic() - since > 4:
                output("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture(scope="session")
def folder(slurm, tmp_path_factory):
    """Prepared shards and features of an encoder without dropout."""
    path = tmp_path_factory.mktemp("slurm")
    index = f"loader.index={path}/prepare/index.json"
    for words in (
        ["prepare", debug("prepare")],
        ["encode", debug("encode"), index, "encoder.dropout=0", "total_images=32", "evaluate_every=32"],
        ["embed", debug("embed"), index, f"encoder={path}/encode"],
    ):
        assert cli.main([*words, f"run_dir={path}/{words[0]}"]) == 0
    return path


@pytest.fixture(scope="session")
def chain(folder):
    """The pipeline as it is given on a command line, from a folder with a name that needs quotes."""
    place = folder / "it's 50% a\\b $(test)"
    place.mkdir()
    launcher = [sys.executable, str(ROOT / "launch" / "slurm.py"), "--cluster", FACTS]
    subprocess.run(
        [*launcher, "--", "pipeline", debug("pipeline"), "run_dir=p"], check=True, cwd=place, timeout=LIMIT_S
    )
    return place / "p"


@pytest.fixture(scope="session")
def long_run(folder):
    """The words of a gan that takes most of a minute of a core of this machine, whether it is busy or not."""
    words = gan_words(folder)
    began = time.process_time()
    assert cli.main([*words, f"run_dir={folder}/speed", "total_images=256"]) == 0
    total = int(45 * 256 / (time.process_time() - began)) // 256 * 256
    return [*words, f"total_images={max(total, 1024)}", "checkpoint_every=100_000_000", "snapshot_every=512"]


def gan_words(folder):
    where = [f"loader.index={folder}/prepare/index.json", f"features={folder}/embed"]
    return ["gan", debug("gan"), *where, "augment.mode=none", "evaluate.every=null", "seed=3"]


@pytest.fixture(scope="session")
def unbroken(folder, long_run):
    """The job of the same run that nothing interrupts."""
    run_dir = folder / "unbroken"
    return run_dir, submit(run_dir, long_run, "nodes=2")


def total_of(words):
    return int(next(word for word in words if word.startswith("total_images=")).split("=")[1])


def submit(run_dir, words, *facts):
    """The id of the only job."""
    assert front.main(["--cluster", FACTS, *facts, "--", *words, f"run_dir={run_dir}"]) == 0
    return board.entries(str(run_dir))[-1].job.split("_")[0]


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout


def job_facts(job):
    return dict(word.split("=", 1) for word in output("scontrol", "-o", "show", "job", job).split() if "=" in word)


def wait(condition, what):
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {LIMIT_S} s for {what}"
        time.sleep(1)
    return found


def end_of(job):
    """The facts of a job that has ended."""
    return wait(lambda: (f := job_facts(job)).get("JobState") in ENDED and f, f"the end of job {job}")


def seconds_of(facts):
    """How long a job ran at last; it may have waited long for the nodes before."""
    began, ended = (datetime.fromisoformat(facts[name]) for name in ("StartTime", "EndTime"))
    return (ended - began).total_seconds()


def log_of(run_dir, rank=0):
    return "".join(path.read_text() for path in sorted(Path(run_dir).glob(f"slurm/*/*_{rank}.log")))


def assert_completed(run_dir, job):
    facts = end_of(job)
    assert facts["JobState"] == "COMPLETED", f"{facts['JobState']}\n{log_of(run_dir)[-3000:]}"
    return facts


def state_of(run_dir):
    """Everything that the newest checkpoint holds, as digests and JSON."""
    found = checkpoint.newest(run_dir)
    tensors = {name: checkpoint.tensors_digest(group) for name, group in found.tensors.items()}
    return found.images, tensors, {key: value for key, value in found.state.items() if key != "files"}


def assert_equal_to(unbroken, run_dir):
    """The same weights, optimisers and log as the run that nothing interrupted."""
    whole, job = unbroken
    assert_completed(whole, job)
    assert state_of(run_dir) == state_of(whole)
    assert [row["images"] for row in read_stats(run_dir)] == [row["images"] for row in read_stats(whole)]


def training(run_dir, job, rows=1):
    """The run has logged, so that it is in its loop; a job that has ended before is shown."""

    def logged():
        if (there := len(read_stats(run_dir)) >= rows) or job_facts(job).get("JobState") not in ENDED:
            return there
        raise AssertionError(f"job {job} ended before it logged\n{log_of(run_dir)[-3000:]}")

    return wait(logged, f"rows in the log of {run_dir}")


@pytest.mark.parametrize("verb", ["encode", "gan"])
def test_two_nodes_train_as_one_process(folder, chain, verb):
    index = f"loader.index={folder}/prepare/index.json"
    words = gan_words(folder) if verb == "gan" else ["encode", debug("encode"), index, "encoder.dropout=0", "seed=3"]
    words += ["total_images=32"] + (["evaluate_every=32"] if verb == "encode" else [])
    one, two = folder / f"{verb}-one", folder / f"{verb}-two"
    job = submit(two, words, "nodes=2")
    assert cli.main([*words, f"run_dir={one}"]) == 0
    facts = assert_completed(two, job)
    assert facts["NumNodes"] == "2" and facts["NodeList"] == "n[1-2]"
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    one, two = checkpoint.newest(one), checkpoint.newest(two)
    for name in ("encoder",) if verb == "encode" else ("g", "d", "average"):
        for key, value in one.tensors[name].items():
            torch.testing.assert_close(
                two.tensors[name][key], value, rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_an_array_of_four_tasks_is_collected(folder, capsys):
    index = f"loader.index={folder}/prepare/index.json"
    words = ["encode", debug("encode"), index, "optim.lr=1e-3,3e-3", "seed=0,1", "total_images=32"]
    run_dir = folder / "array"
    job = submit(run_dir, words, "parallelism=2")
    tasks = board.entries(str(run_dir))
    assert [task.job for task in tasks] == [f"{job}_{i}" for i in range(4)]
    for task in tasks:
        assert_completed(task.run_dir, task.job)
    assert front.main(["collect", str(run_dir), "--output", str(run_dir / "table.csv")]) == 0
    with open(run_dir / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["optim.lr"], row["seed"]) for row in rows] == [
        ("1e-3", "0"),
        ("1e-3", "1"),
        ("3e-3", "0"),
        ("3e-3", "1"),
    ]
    for row, task in zip(rows, tasks, strict=True):
        last = read_stats(task.run_dir)[-1]
        assert row["state"] == "done" and float(row["loss/train (1)"]) == last["loss/train (1)"]
    assert len({row["loss/train (1)"] for row in rows}) == 4
    assert front.main(["status", str(run_dir)]) == 0
    assert capsys.readouterr().out.count("COMPLETED") == 4


def test_a_job_over_its_time_limit_goes_on_to_the_same_end(folder, long_run, unbroken):
    run_dir = folder / "limit"
    job = submit(run_dir, long_run, "nodes=2", "time_min=1", "signal_lead_s=45")
    wait(lambda: job_facts(job).get("Restarts", "0") != "0", "the requeue at the time limit")
    saved = checkpoint.newest(run_dir)
    assert saved is None or saved.images < total_of(long_run)
    output("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # a busy machine would need many starts of a minute
    facts = assert_completed(run_dir, job)
    assert_equal_to(unbroken, run_dir)
    for rank in range(2):  # one log per rank, which every start appends to
        assert log_of(run_dir, rank).count("Starting with JobEnvironment") == int(facts["Restarts"]) + 1


def test_a_preempted_job_goes_on_to_the_same_end(folder, long_run, unbroken):
    run_dir = folder / "preempted"
    job = submit(run_dir, long_run, "nodes=2", "partition=low", "cpus_per_task=3", "mem_gb=2")
    training(run_dir, job)
    higher = ["sbatch", "--parsable", "-p", "high", "-w", "n1", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 5"]
    other = output(*higher).strip()
    wait(lambda: job_facts(job).get("Restarts") == "1", "the requeue of the preempted job")
    assert end_of(other)["JobState"] == "COMPLETED"
    assert_completed(run_dir, job)
    assert "going on at" in log_of(run_dir)
    assert_equal_to(unbroken, run_dir)


def test_a_cancelled_job_leaves_a_checkpoint_that_another_continues(folder, long_run, unbroken):
    run_dir = folder / "cancelled"
    job = submit(run_dir, long_run, "nodes=2")
    training(run_dir, job)
    assert front.main(["cancel", str(run_dir)]) == 0
    assert end_of(job)["JobState"] == "CANCELLED" and job_facts(job)["Restarts"] == "0"
    saved = checkpoint.newest(run_dir)
    assert saved is not None and 0 < saved.images and saved.images >= read_stats(run_dir)[-1]["images"]
    assert_completed(run_dir, submit(run_dir, long_run, "nodes=2"))
    assert f"going on at {saved.images} images" in log_of(run_dir)
    assert_equal_to(unbroken, run_dir)


def test_a_killed_rank_fails_the_job_fast(folder, long_run):
    run_dir = folder / "killed"
    job = submit(run_dir, [*long_run, "total_images=100_000_000"], "nodes=2")
    training(run_dir, job)
    os.kill(pid_of(run_dir, rank=1), signal.SIGKILL)
    killed = time.monotonic()
    assert end_of(job)["JobState"] == "FAILED"
    assert time.monotonic() - killed < 120  # not the half hour after which a collective operation gives up


APPTAINER = """#!/bin/sh
# In apptainer's place: what it starts has none of SLURM's programs.
while [ "$1" != image.sif ]; do shift; done
shift
PATH=/nowhere exec "$@"
"""


def test_a_container_without_slurm_inside_is_requeued_from_outside(folder, long_run):
    run_dir, tools = folder / "container", folder / "tools"
    tools.mkdir()
    (tools / "apptainer").write_text(APPTAINER)
    (tools / "apptainer").chmod(0o755)
    container = f"container={{kind: apptainer, image: image.sif, python: {sys.executable}}}"
    half = f"total_images={total_of(long_run) // 512 * 256}"
    job = submit(run_dir, [*long_run, half], container, f"setup=['export PATH={tools}:$PATH']")
    training(run_dir, job)
    output("scancel", "--signal=USR2", job)
    wait(lambda: job_facts(job).get("Restarts") == "1", "the requeue of a job in a container")
    assert_completed(run_dir, job)
    assert "going on at" in log_of(run_dir) and not list(run_dir.rglob("requeue-*"))


def test_doctor_knows_the_cluster(folder, capsys):
    words = ["doctor", "--cluster", FACTS, "nodes=2", f"run_dir={folder}/doctor"]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for fact in ("main, 2 nodes", "2 processes on n1, n2 read and write it", "2 processes on 2 nodes", "every process"):
        assert fact in said
    assert not list((folder / "doctor").iterdir())
    assert cli.main([*words, "partition=mian"]) == 2 and "no partition 'mian'" in capsys.readouterr().out
    assert cli.main([*words, "nodes=3", "gpus_per_node=1"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "3 are asked for, main has 2" in said and "1 per node, main has 0" in said


def pid_of(run_dir, rank):
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"SLURM_PROCID={rank}" in variables and any(word.startswith(f"{run_dir}/slurm/") for word in words):
            return int(path.name)
    raise AssertionError(f"no process of rank {rank} in {run_dir}")


def test_a_partition_that_is_not_there_is_named_and_nothing_is_run(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    hostile = 'partition="no\'such $(touch pwned) queue"'
    words = ["--cluster", FACTS, hostile, "--", "prepare", debug("prepare"), f"run_dir={folder}/nowhere"]
    assert front.main(words) == 2
    assert "invalid partition specified: no'such $(touch pwned) queue" in " ".join(capsys.readouterr().err.split())
    assert not list(folder.rglob("pwned"))


def test_the_pipeline_is_a_chain_that_ends_in_a_report(chain):
    run_dir = chain
    entries = board.entries(str(run_dir))
    assert [entry.stage for entry in entries][-2:] == ["evaluate", "report"]
    took = [seconds_of(assert_completed(run_dir, entry.job)) for entry in entries]
    assert sum(took) < 300, f"the jobs of the chain, with others beside them: {took} s"
    assert "Every metric" in (run_dir / "report" / "report.html").read_text()
    codes = list((run_dir / "slurm").glob("code-*"))
    assert len(codes) == 1 and (codes[0] / "commit.txt").exists()
    assert (run_dir / "slurm").stat().st_mode & 0o777 == 0o700
