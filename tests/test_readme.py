"""The README shows only commands that run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from eeg_gan import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_commands_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    commands = [line for block in blocks for line in block.splitlines() if line]
    assert len(commands) > 10
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "eeg-gan" and cli.main(words) == 0, command


LAUNCHERS = {
    "accelerate launch": [sys.executable, "-c", "from accelerate.commands.launch import main; main()"],
    "python launch/slurm.py": [sys.executable, "launch/slurm.py"],
}


def test_launchers_start(tmp_path):
    """Two processes by accelerate, and what SLURM would be told."""
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = re.findall(r"^    (accelerate launch|python launch/slurm\.py) (.*)$", README, re.M)
    assert {kind for kind, _ in started} == set(LAUNCHERS)
    commands = [[*LAUNCHERS[kind], *shlex.split(words)] for kind, words in started]
    for command in ([sys.executable, "-m", "eeg_gan", "prepare", "configs/prepare/debug.yaml"], *commands):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "two" / "run.json").read_text())["processes"] == 2
    assert "#SBATCH --array=0-1" in done.stdout


def test_the_make_targets_exist():
    for target in ("demo", "test"):
        assert f"    make {target} " in README
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


def test_pictures_and_files_that_it_names_exist():
    for path in re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"`(configs/[\w./-]+\.yaml)`", README):
        assert (ROOT / path).exists(), path
