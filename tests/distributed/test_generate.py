"""Generate where two ranks draw different numbers of pictures: nobody waits for ever, nothing is left out."""

import json
import os
import subprocess
import sys

import numpy as np
from conftest import commands, debug
from PIL import Image

from eeg_gan import cli
from eeg_gan.stages.generate_draw import rounds


def test_one_process_draws_in_batches():
    assert rounds(5, 2) == [[0, 1], [2, 3], [4]]


def test_two_ranks_with_unequal_counts_give_what_one_gives(tmp_path, runs):
    common = ["generate", debug("generate"), *commands(runs)["generate"], "limit=5", "batch=1", "noise=random"]
    # 3 rounds and 2, and of the trials' EEG, which the ranks encode in parts
    common += ["source=eeg", f"loader.index={runs}/prepare/index.json", f"encoder={runs}/align"]
    assert cli.main([*common, f"run_dir={tmp_path}/one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "eeg_gan"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *common, f"run_dir={tmp_path}/two"], check=True, timeout=240, env=environment)
    rows = json.loads((tmp_path / "two" / "manifest.json").read_text())["images"]
    assert len(rows) == 5
    for file in [row["file"] for row in rows] + ["grid.png"]:
        one, two = (np.asarray(Image.open(tmp_path / name / file)).astype(int) for name in ("one", "two"))
        assert np.abs(one - two).max() <= 1, file
