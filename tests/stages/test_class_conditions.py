"""Conditions that are one-hot vectors of classes, and figures of any checkpoint, through the front door."""

import json

import pytest
import torch
from conftest import debug

from eeg_gan import cli
from eeg_gan.data import features
from eeg_gan.data.shards import Shards
from eeg_gan.stages.loading import read_generated

SPLITS = ("train", "val", "test")
EVERY = ["keep_checkpoints=null", "checkpoint_every=32", "total_images=96", "evaluate.every=null"]


@pytest.fixture(scope="module")
def told(runs, tmp_path_factory):
    """A folder with features of classes, and a generator that was trained on them."""
    folder = tmp_path_factory.mktemp("told")
    index = f"loader.index={runs}/prepare/index.json"
    assert cli.main(["embed", debug("embed"), index, "encoder=null", "classes=true", f"run_dir={folder}/embed"]) == 0
    words = [index, f"features={folder}/embed", f"run_dir={folder}/gan", *EVERY]
    assert cli.main(["gan", debug("gan"), *words]) == 0
    return folder


def generate(folder, *words):
    given = [f"gan={folder}/gan", f"features={folder}/embed", *words]
    return cli.main(["generate", debug("generate"), *given])


def test_features_are_the_classes_and_say_so(runs, told):
    known, shards = features.load(told / "embed"), Shards(runs / "prepare" / "index.json", splits=SPLITS)
    assert known.meta["of"] == "class labels"
    for split in SPLITS:
        one_hot = known.rows(shards.keys(split))
        assert one_hot.argmax(1).tolist() == shards.labels(split).tolist()
        assert (one_hot.sum(1) == 1).all() and one_hot.shape[1] == len(shards.card.class_names)
    assert json.loads((told / "embed" / "run.json").read_text())["reads"] == {"train": 1, "val": 1, "test": 1}


def test_figures_of_pictures_that_were_told_their_class_say_so(runs, told, tmp_path):
    assert generate(told, f"run_dir={tmp_path}/g") == 0
    assert json.loads((tmp_path / "g" / "manifest.json").read_text())["conditions_of"] == "class labels"
    words = [f"loader.index={runs}/prepare/index.json", f"generated={tmp_path}/g", "metrics=[class_accuracy,kid]"]
    without = ["features=null", "align=null", "aligned_features=null", "lda=false"]
    assert cli.main(["evaluate", debug("evaluate"), *words, *without, f"run_dir={tmp_path}/e"]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["generate/class_accuracy"]["told_the_class"]
    assert "told_the_class" not in metrics["generate/class_accuracy_real"]
    asked = {"class_accuracy", "class_accuracy_real", "kid", "kid_train", "kid_real", "pixcorr", "ssim"}
    assert {name.removeprefix("generate/").replace("[untrained-classifier]", "") for name in metrics} == asked


def test_pictures_of_eeg_are_not_called_told(runs):
    metrics = json.loads((runs / "evaluate" / "metrics.json").read_text())
    assert not any("told_the_class" in metric for metric in metrics.values())
    assert json.loads((runs / "generate" / "manifest.json").read_text())["conditions_of"] == "EEG"


def test_one_hot_vectors_are_no_features_to_judge(runs, told, tmp_path, capfd):
    words = [f"loader.index={runs}/prepare/index.json", f"features={told}/embed", "generated=null", "align=null"]
    assert cli.main(["evaluate", debug("evaluate"), *words, "aligned_features=null", f"run_dir={tmp_path}/e"]) == 2
    assert "one-hot vectors of the classes" in capfd.readouterr().err


def test_embed_wants_one_source(runs, tmp_path, capfd):
    words = [f"loader.index={runs}/prepare/index.json", f"run_dir={tmp_path}/e"]
    for wrong in (["classes=true"], ["encoder=null"]):
        assert cli.main(["embed", debug("embed"), *words, *wrong]) == 2
        assert "exactly one of encoder, image2eeg and classes=true" in capfd.readouterr().err


def test_any_kept_checkpoint_can_draw(told, tmp_path, capfd):
    drawn = {}
    for at in (32, 96):
        assert generate(told, f"run_dir={tmp_path}/{at}", f"at={at}", "limit=4") == 0
        assert json.loads((tmp_path / str(at) / "manifest.json").read_text())["gan_images"] == at
        drawn[at] = read_generated(tmp_path / str(at))[1]
    assert not torch.equal(drawn[32], drawn[96])
    assert generate(told, f"run_dir={tmp_path}/newest", "limit=4") == 0
    assert torch.equal(read_generated(tmp_path / "newest")[1], drawn[96])
    assert generate(told, f"run_dir={tmp_path}/none", "at=40") == 2
    assert "no checkpoint of 40 images, but of 32, 64, 96" in " ".join(capfd.readouterr().err.split())


def test_checkpoints_are_dropped_unless_kept(runs, told):
    assert len(list((told / "gan").glob("checkpoint-*"))) == 3
    assert len(list((runs / "gan").glob("checkpoint-*"))) == 2
