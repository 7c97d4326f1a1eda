"""Everything made from a division that prepare calls confounded says so."""

import base64
import json
import re
from pathlib import Path

import pytest
from conftest import commands, debug
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eeg_gan import cli

STAGES = ("prepare", "audit", "encode", "align", "embed", "image2eeg", "gan", "generate", "evaluate", "report")


@pytest.fixture(scope="module")
def confounded(tmp_path_factory) -> Path:
    """Every stage on trials divided at random though each picture was shown twice."""
    folder = tmp_path_factory.mktemp("confounded")
    words = commands(folder)
    words["prepare"] = ["source.simulated.repeats=2", "source.simulated.images_per_class=6", "split.by=trial"]
    assert cli.main(["prepare", debug("prepare"), f"run_dir={folder}/refused", *words["prepare"]]) == 2
    words["prepare"] += ["split.allow_confounded=true"]
    for verb in STAGES:
        assert cli.main([verb, debug(verb), f"run_dir={folder}/{verb}", *words[verb]]) == 0, f"{verb} failed"
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_record_and_headline(confounded, stage):
    record = read(confounded / stage / "run.json")
    assert record["confounded"] is True and "confounded" in record["headline"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "report"])
def test_tensorboard(confounded, stage):
    events = EventAccumulator(str(confounded / stage)).Reload()
    assert "confounded/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("stage", ["encode", "align", "image2eeg", "gan"])
def test_checkpoints(confounded, stage):
    found = list((confounded / stage).glob("checkpoint-*/state.json"))
    assert found and all(read(path)["data"]["confounded"] is True for path in found)


def test_files(confounded):
    policy = read(confounded / "prepare" / "index.json")["split_policy"]
    assert policy["confounded"] is True and "a stimulus is in train and in another split" in policy["reasons"][0]
    assert read(confounded / "audit" / "audit.json")["verdict"] == "confounded"
    assert read(confounded / "embed" / "features.json")["confounded"] is True
    assert read(confounded / "generate" / "manifest.json")["confounded"] is True
    metrics = read(confounded / "evaluate" / "metrics.json")
    assert metrics and all(metric["confounded"] is True for metric in metrics.values())
    with safe_open(confounded / "embed" / "features.safetensors", "np") as file:
        assert file.keys()


def test_pages(confounded):
    for path in (confounded / "report" / "report.html", confounded / "audit" / "audit.html"):
        html = path.read_text()
        assert re.search(r"<title>.*confounded</title>", html) and re.search(r"<h1>.*confounded</h1>", html)
        assert all(base64.b64decode(found)[:4] == b"\x89PNG" for found in re.findall(r"base64,([^\"]+)", html))


def test_clean_runs_do_not_say_it(runs):
    assert "confounded" not in read(runs / "evaluate" / "run.json")
    assert all("confounded" not in metric for metric in read(runs / "evaluate" / "metrics.json").values())
    assert "confounded</title>" not in (runs / "report" / "report.html").read_text()
