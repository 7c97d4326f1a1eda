"""The same plan on this machine: folders, snapshots, logs per process, exit codes; the table of what was measured."""

import csv
import io
import itertools
import json
import os
import stat
import time

import pytest
import yaml
from conftest import debug

from eeg_gan.config import UserError
from eeg_gan.slurm import board, job, snapshot
from eeg_gan.slurm import main as front

PYTHON = """#!/bin/sh
# In an interpreter's place: ./said has a line for each start, and ./do says what a rank does.
printf '%s %s %s\\n' "$RANK" "$WORLD_SIZE" "$*" >> "$SAID"
echo "out of ${RANK:-one}"
exec sh -c "$DO"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Facts with an interpreter that only records."""
    path = tmp_path / "python"
    path.write_text(PYTHON)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setenv("DO", "exit 0")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"python": str(path), "env": {"OMP_NUM_THREADS": "1"}}))
    return str(tmp_path / "c.yaml")


def test_a_verb_runs_here_from_its_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        front.main(["--local", "cpus_per_task=1", "--", "prepare", debug("prepare"), "run_dir=r", "split.seed=1"]) == 0
    )
    assert (tmp_path / "r" / "index.json").exists()
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["split"]["seed"] == 1
    (log,) = (tmp_path / "r" / "slurm" / "0001").glob("local_prepare-*_0.log")
    assert "60 train, 24 val, 24 test trials" in log.read_text()
    out = io.StringIO()
    assert board.collect("r", out) == 1
    (row,) = csv.DictReader(io.StringIO(out.getvalue()))
    assert (row["state"], row["trials/train (count)"]) == ("done", "60.0")
    assert front.main(["status", "r"]) == 0 and "done: 60 train" in capsys.readouterr().out


@pytest.mark.heavy
def test_two_processes_meet_here(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    words = ["encode", debug("encode"), f"loader.index={runs}/prepare/index.json", "run_dir=r", "total_images=32"]
    assert front.main(["--local", "tasks_per_node=2", "cpus_per_task=1", "--", *words]) == 0
    assert json.loads((tmp_path / "r" / "run.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "r" / "slurm" / "0001").glob("local_encode-000_?.log"))) == 2


def test_tasks_have_folders_and_ranks_the_usual_variables_and_a_log_each(tmp_path, cluster):
    words = ["--cluster", cluster, "--local", "tasks_per_node=2", "parallelism=2"]
    assert front.main([*words, "--", "gan", debug("gan"), "run_dir=r", "seed=1,2"]) == 0
    home = tmp_path / "r" / "slurm"
    (code,) = home.glob("code-*")
    argv = [f"-u {code}/run.py {tmp_path} -- gan {home}/0001/gan-{task:03d}.yaml" for task in range(2)]
    expected = sorted(f"{rank} 2 {words}" for rank in range(2) for words in argv)
    assert sorted((tmp_path / "said").read_text().splitlines()) == expected
    for task, rank in itertools.product(range(2), repeat=2):
        assert (home / "0001" / f"local_gan-{task:03d}_{rank}.log").read_text() == f"out of {rank}\n"
        assert yaml.safe_load((home / "0001" / f"gan-{task:03d}.yaml").read_text())["run_dir"] == f"r/seed={task + 1}"


def test_the_first_process_that_fails_takes_the_others_with_it(tmp_path, cluster, monkeypatch, capsys):
    monkeypatch.setenv("DO", "if [ $RANK = 1 ]; then exit 3; fi; exec sleep 100")
    began = time.monotonic()
    words = ["--cluster", cluster, "--local", "tasks_per_node=2"]
    assert front.main([*words, "--", "gan", debug("gan"), "run_dir=r"]) == 3
    assert time.monotonic() - began < 90 and "exit code 3" in capsys.readouterr().err


def test_a_chain_ends_at_the_stage_that_fails(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("DO", 'case "$(tail -n 1 "$SAID")" in *encode*) exit 75;; esac')
    assert front.main(["--cluster", cluster, "--local", "--", "pipeline", debug("pipeline"), "run_dir=p"]) == 75
    starts = [line.split(" ")[-2] for line in (tmp_path / "said").read_text().splitlines()]
    assert starts == ["prepare", "audit", "encode"]
    (tmp_path / "said").unlink()
    words = ["--cluster", cluster, "--local", "--one-job", "--", "pipeline", debug("pipeline"), "run_dir=q"]
    assert front.main(words) == 0 and (tmp_path / "said").read_text().count("-- pipeline ") == 1


def test_a_table_of_tasks_with_metrics_and_without(tmp_path):
    home = tmp_path / "r" / "slurm"
    home.mkdir(parents=True)
    tasks = [{"label": f"lr={lr}", "words": [f"lr={lr}"], "run_dir": f"r/lr={lr}"} for lr in (1, 2, 3)]
    line = {"submission": "0001", "job": "12", "stage": "gan", "verb": "gan", "file": "gan", "tasks": tasks}
    line |= {"folder": str(tmp_path), "processes": 1, "time": 0}
    (home / "jobs.jsonl").write_text(json.dumps({**line, "job": "9"}) + "\n" + json.dumps(line) + "\n")
    done, begun = tmp_path / "r" / "lr=1", tmp_path / "r" / "lr=2"
    done.mkdir()
    begun.mkdir()
    (done / "run.json").write_text(json.dumps({"done": {"x": 1}, "seconds": 12.34, "headline": "good"}))
    (begun / "run.json").write_text(json.dumps({"seconds": 1.0}))
    (done / "stats.jsonl").write_text(
        '{"images": 8, "loss/D (nats)": 2.0}\n{"images": 16, "loss/D (nats)": 1.5}\n{"imag'
    )
    (done / "best.json").write_text(json.dumps({"checkpoint": "checkpoint-16", "metric": "kid", "value": 0.25}))
    (done / "metrics.json").write_text(json.dumps({"a/b": {"value": 0.5, "low": 0.4, "high": 0.6, "chance": None}}))
    out = io.StringIO()
    assert board.collect(str(tmp_path / "r"), out) == 3
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [(row["lr"], row["state"], row["job"]) for row in rows] == [
        ("1", "done", "12_0"), ("2", "begun", "12_1"), ("3", "not begun", "12_2"),
    ]  # fmt: skip
    assert rows[0]["images"] == "16" and rows[0]["loss/D (nats)"] == "1.5" and rows[0]["best kid"] == "0.25"
    assert (rows[0]["a/b"], rows[0]["a/b low"], rows[0]["a/b high"]) == ("0.5", "0.4", "0.6") and rows[1]["a/b"] == ""
    with pytest.raises(UserError, match="nothing was submitted"):
        board.entries(str(tmp_path))


def test_temporary_files_go_to_the_nodes_disk_and_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("EEG_GAN_SCRATCH", "$PLACE/a b")
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    with job.scratch():
        (own,) = (tmp_path / "a b").iterdir()
        assert os.environ["TMPDIR"] == str(own) and own.stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "a b").iterdir())


def test_a_snapshot_is_the_package_and_says_what_was_not_committed(tmp_path):
    code = snapshot.take(tmp_path)
    copied = {path.relative_to(code / "eeg_gan") for path in (code / "eeg_gan").rglob("*") if path.is_file()}
    theirs = {path.relative_to(snapshot.PACKAGE) for path in snapshot.PACKAGE.rglob("*") if path.is_file()}
    assert copied == {path for path in theirs if "__pycache__" not in path.parts}
    assert snapshot.take(tmp_path) == code and os.access(code / "eeg_gan" / "slurm" / "inside" / "scontrol", os.X_OK)
    if snapshot.git()[0]:
        assert len((code / "commit.txt").read_text().strip()) == 40
