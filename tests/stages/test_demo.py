"""The demo, too small for its figures to mean a thing: it goes on after Ctrl-C and knows when it is done."""

import json
import os
import signal
import subprocess
import sys

import pytest
from test_resume import wait_for

from eeg_gan import cli

SMALL = [
    "image_size=16",
    "images_per_class=10",
    "subjects=2",
    "encode_images=200",
    "align_images=400",
    "image2eeg_images=256",
    "gan_images=128",
    "judge_steps=3",
    "tower_steps=3",
]
WANTED = [
    "encode/kmeans_accuracy",
    "encode/knn_accuracy",
    "demo/lda_accuracy",
    "align/retrieval_top1",
    "align/retrieval_top1_within_class",
    "generate/class_accuracy",
    "generate/class_accuracy_shuffled_eeg",
    "generate/class_accuracy_real",
    "demo/seconds",
    "demo/peak_memory_gb",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo that was interrupted in its third stage and then continued."""
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    words = ["demo", f"run_dir={run_dir}", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "eeg_gan", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: (run_dir / "audit" / "run.json").exists(), process, seconds=240)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 75 and "Traceback" not in said, said
    before = json.loads((run_dir / "run.json").read_text())["seconds"]
    assert cli.main(words) == 0
    return run_dir, words, before


def test_figures_are_there(demo):
    run_dir, _, before = demo
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for name in WANTED:
        assert metrics[name].keys() >= {"value", "low", "high", "chance", "n"} and metrics[name]["value"] is not None
    assert metrics["demo/seconds"]["value"] > before > 0
    assert 0.1 < metrics["demo/peak_memory_gb"]["value"] < 4


def test_the_report_is_one_file(demo):
    run_dir, _, _ = demo
    page = (run_dir / "report" / "report.html").read_text()
    assert "data:image/png;base64" in page and 'src="http' not in page and "demo-classifier" in page


def test_a_second_start_does_nothing(demo):
    run_dir, words, _ = demo
    before = (run_dir / "metrics.json").read_bytes(), (run_dir / "run.json").read_bytes()
    done = subprocess.run([sys.executable, "-m", "eeg_gan", *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "done" in done.stderr and "report.html" in done.stderr
    assert before == ((run_dir / "metrics.json").read_bytes(), (run_dir / "run.json").read_bytes())


def test_no_label_reaches_generator_or_generation(demo):
    """Only evaluate and audit may read the test split's labels; the generator's conditions are features alone."""
    run_dir, _, _ = demo
    assert "test" not in json.loads((run_dir / "gan" / "run.json").read_text())["reads"]
    assert all("label" not in row for row in json.loads((run_dir / "generate" / "manifest.json").read_text())["images"])
