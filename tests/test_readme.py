"""The README shows only commands that run."""

import re
import shlex
import subprocess
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


def test_the_make_targets_exist():
    for target in ("demo", "test"):
        assert f"    make {target} " in README
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


def test_pictures_and_files_that_it_names_exist():
    for path in re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"`(configs/[\w./-]+\.yaml)`", README):
        assert (ROOT / path).exists(), path
