"""The script that runs all of this on a GPU machine says in plain words where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and this would call itself")
def test_without_a_gpu_it_says_so():
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([ROOT / "tests/gpu/run_all.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "There is no GPU here" in done.stdout and "Nothing was run" in done.stdout


def test_what_was_left_by_a_run_cut_short_is_gathered(tmp_path):
    for name, end in (("build", "0 9"), ("tests", "124 230")):  # and cut short within the bench
        (tmp_path / f"{name}.end").write_text(f"{end}\n")
        (tmp_path / f"{name}.log").write_text(f"what {name} said")
    (tmp_path / "step.json").write_text('{"rows": []}')
    (tmp_path / "tests.jsonl").write_text('{"test": "a", "outcome": "passed", "seconds": 1}\n')
    command = [sys.executable, "tests/gpu/gather.py", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr, done.stderr  # a part has failed
    (file,) = (tmp_path / "out").iterdir()
    found = json.loads(file.read_text())
    assert found["counts"] == {"passed": 1} and found["bench"] is None and found["step"] == {"rows": []}
    assert found["parts"]["tests"] == {"code": 124, "seconds": 230, "said": "what tests said"}
    assert found["parts"]["build"]["code"] == 0 and found["parts"]["bench"] == found["parts"]["step"] == {"code": None}
