"""The shipped launcher files start as many processes as they say, and fewer than asked are an error."""

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, commands, debug

from eeg_gan.config import UserError
from eeg_gan.training import world

FILES = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))
LAUNCH = [sys.executable, "-c", "from accelerate.commands.launch import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def words(runs, run_dir):
    given = ["embed", debug("embed"), f"loader.index={runs}/prepare/index.json", "encoder=null", "classes=true"]
    return ["-m", "eeg_gan", *given, f"run_dir={run_dir}"]


def accelerate(*options, file=None):
    chosen = ["--config_file", str(ROOT / "launch" / "accelerate" / file)] if file else []
    return [*LAUNCH, *chosen, *options]


def processes(run_dir):
    return json.loads((run_dir / "run.json").read_text())["processes"]


@pytest.mark.parametrize(
    "file, options, count",
    [
        ("cpu.yaml", [], 2),
        pytest.param("one_gpu.yaml", [], 1, marks=pytest.mark.heavy),
        pytest.param("one_node.yaml", ["--num_processes", "3"], 3, marks=pytest.mark.heavy),
    ],
)
def test_a_file_starts_what_it_says(tmp_path, runs, file, options, count):
    subprocess.run(
        [*accelerate(*options, file=file), *words(runs, tmp_path / "e")], check=True, timeout=280, env=ENVIRONMENT
    )
    assert processes(tmp_path / "e") == count
    said = yaml.safe_load((ROOT / "launch" / "accelerate" / file).read_text())["num_processes"]
    assert options or said == count


def test_two_machines_start_together(tmp_path, runs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    started = [
        subprocess.Popen(
            [*accelerate(*common, "--machine_rank", str(rank), file="multi_node.yaml"), *words(runs, tmp_path / "e")],
            env=ENVIRONMENT,
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=280) for process in started] == [0, 0]
    assert processes(tmp_path / "e") == 2


@pytest.mark.heavy
def test_accelerate_may_ask_for_deepspeed(tmp_path, runs):
    pytest.importorskip("deepspeed", reason="pip install 'eeg-gan[deepspeed]'")
    path = str(ROOT / "launch" / "deepspeed" / "zero3.json")
    options = ["--use_deepspeed", "--deepspeed_config_file", path, "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    given = ["-m", "eeg_gan", "image2eeg", debug("image2eeg"), *commands(runs)["image2eeg"], f"run_dir={tmp_path}/i"]
    subprocess.run([*accelerate(*options), *given], check=True, timeout=280, env=ENVIRONMENT)
    record = json.loads((tmp_path / "i" / "run.json").read_text())
    assert (record["engine"], record["processes"]) == (path, 2)


def test_fewer_processes_than_asked_are_an_error(tmp_path, runs):
    """What `accelerate launch --cpu --num_processes 2` makes of itself is one process."""
    done = subprocess.run(
        [*accelerate("--cpu", "--num_processes", "2"), *words(runs, tmp_path / "e")],
        capture_output=True,
        text=True,
        timeout=280,
        env=ENVIRONMENT,
    )
    assert done.returncode != 0 and "asked for 2 processes but started one" in done.stderr
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    "command, asked",
    [
        (["/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "eeg_gan"], 2),
        (["-m", "accelerate.commands.launch", "--num-processes=3", "x.py"], 3),
        (["/usr/bin/accelerate", "launch", "--config_file", "{multi_cpu}", "-m", "eeg_gan"], 4),
        (["-m", "accelerate.commands.launch", "-m", "eeg_gan"], 1),
        (["-m", "pytest", "--num_processes", "2"], 1),
        (["/bin/bash", "-c", "eeg-gan encode"], 1),
        ([], 1),
    ],
)
def test_what_a_launcher_was_asked_for(tmp_path, command, asked):
    (tmp_path / "m.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 4\n")
    assert world.accelerate_asked([word.format(multi_cpu=tmp_path / "m.yaml") for word in command]) == asked


def test_ranks_that_do_not_know_one_another_are_refused(monkeypatch):
    monkeypatch.setattr(world, "_command_of_parent", lambda: [])
    world.check(1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="each would train alone"):
        world.check(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="asked for 2 processes, but 1 run together"):
        world.check(1)


def test_every_file_is_one_that_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    assert [path.stem for path in FILES] == ["cpu", "multi_node", "one_gpu", "one_node"]
    for path in FILES:
        assert load_config_from_file(str(path)).num_processes == yaml.safe_load(path.read_text())["num_processes"]
