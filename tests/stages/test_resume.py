"""A run that is stopped at any image count and continued equals the unbroken run bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import commands, debug

from eeg_gan import cli
from eeg_gan.training import checkpoint


def state_of(run_dir):
    """Everything that a checkpoint holds, as digests and JSON."""
    found = checkpoint.newest(run_dir)
    tensors = {name: checkpoint.tensors_digest(group) for name, group in found.tensors.items()}
    return found.images, tensors, {k: v for k, v in found.state.items() if k != "files"}


@pytest.mark.parametrize("stop", [16, 48, 90])
@pytest.mark.parametrize("verb", ["encode", "align", "image2eeg", "gan"])
def test_continued_equals_unbroken(tmp_path, runs, verb, stop):
    batch = {"encode": 16, "gan": 16}.get(verb, 32)
    words = [verb, debug(verb), f"run_dir={tmp_path}/{verb}", *commands(runs)[verb]]
    assert cli.main([*words, f"stop_after={stop}"]) == 75
    assert checkpoint.newest(tmp_path / verb).images == -(-stop // batch) * batch
    assert cli.main(words) == 0
    assert state_of(tmp_path / verb) == state_of(runs / verb)
    assert (tmp_path / verb / "best.json").read_text() == (runs / verb / "best.json").read_text()


WAYS = {
    "siglip from scratch, trained tower at a layer": (
        "align",
        ["encoder=null", "architecture={name: tsconv, dim: 16, filters: 4, subjects: true}", "loss.kind=siglip"],
        ["tower={model: tiny, frozen: false, layer: 1}", "loss.same_class=0.5", "augment.noise=0.2"],
    ),
    "a map behind the encoder": ("align", ["learn=map", "tower.layer=transformer.resblocks.0"], ["select=top1"]),
    "contrastive regressor": (
        "image2eeg",
        ["loss=contrastive", "regressor.subjects=true"],
        ["select=kmeans_accuracy", "regressor.dropout=0.2"],
    ),
    "the paper's regressor": ("image2eeg", ["loss=mse"], ["select=top1"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_continue_exactly_too(tmp_path, runs, way):
    verb, *words = WAYS[way]
    words = [verb, debug(verb), *commands(runs)[verb], *words[0], *words[1]]
    assert cli.main([*words, f"run_dir={tmp_path}/whole"]) == 0
    assert cli.main([*words, f"run_dir={tmp_path}/halves", "stop_after=48"]) == 75
    assert checkpoint.newest(tmp_path / "halves").images == 64
    assert cli.main([*words, f"run_dir={tmp_path}/halves"]) == 0
    assert state_of(tmp_path / "halves") == state_of(tmp_path / "whole")


def test_the_log_repeats_no_row_after_a_crash(tmp_path, runs):
    words = ["gan", debug("gan"), f"run_dir={tmp_path}/g", *commands(runs)["gan"]]
    assert cli.main([*words, "stop_after=64"]) == 75
    with open(tmp_path / "g" / "stats.jsonl", "a") as file:  # what a killed run wrote beyond its last checkpoint
        file.write(json.dumps({"images": 96, "loss/D (nats)": 9.0}) + "\n")
    assert cli.main(words) == 0
    assert [json.loads(line)["images"] for line in open(tmp_path / "g" / "stats.jsonl")] == [64, 128]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, runs, caplog):
    words = ["gan", debug("gan"), f"run_dir={tmp_path}/g", *commands(runs)["gan"]]
    assert cli.main(words) == 0
    whole = state_of(tmp_path / "g")
    newest = tmp_path / "g" / "checkpoint-00000000128" / "g.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    (tmp_path / "g" / "run.json").unlink()
    assert checkpoint.newest(tmp_path / "g").images == 64
    assert cli.main(words) == 0
    assert state_of(tmp_path / "g") == whole


def test_sigterm_saves_and_leaves_with_75(tmp_path, runs):
    words = ["gan", debug("gan"), f"run_dir={tmp_path}/g", *commands(runs)["gan"], "total_images=1_000_000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eeg_gan", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: (tmp_path / "g" / "checkpoint-00000000064").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "the same command goes on from there" in said
    assert not list((tmp_path / "g").glob("*.partial"))


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run ended or hangs before it saved"
        time.sleep(0.05)
