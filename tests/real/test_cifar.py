"""The pictures without EEG: what their script writes and what prepare makes of it."""

import importlib.util
import os
from pathlib import Path

import pytest

from eeg_gan import cli
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.stages.loading import open_shards

DATA = os.environ.get("EEG_GAN_REAL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="EEG_GAN_REAL_DATA does not name the folder with the pictures")
CONFIG = """
run_dir: {0}/shards
source: {{name: folder, path: {0}/data}}
preprocess: {{scale: none}}
split: {{by: given}}
image_format: npy
"""


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).with_name("make_cifar.py")
    spec = importlib.util.spec_from_file_location("make_cifar", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(trials, split):
    return {trial["image"] for trial in trials if trial["split"] == split}


def test_few_pictures_are_among_many_and_the_rest_is_the_same(script):
    few, many = script.choose(40, seed=0), script.choose(4900, seed=0)
    assert len(images(few, "train")) == 400 and len(images(many, "train")) == 49_000
    assert images(few, "train") < images(many, "train")
    for split in ("val", "test"):
        assert images(few, split) == images(many, split)
    assert len(images(many, "val")) == 1000 and len(images(many, "test")) == 2000
    assert not images(many, "train") & images(many, "val")
    assert all(image.startswith("images/test/") for image in images(many, "test"))


def test_missing_data_and_impossible_counts_are_named(script, tmp_path, monkeypatch):
    monkeypatch.delenv("EEG_GAN_REAL_DATA", raising=False)
    with pytest.raises(SystemExit, match="set EEG_GAN_REAL_DATA"):
        script.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="cifar10_jpeg_train.tar.gz: no such file"):
        script.main([str(tmp_path), "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="--per-class is 1 to 4900"):
        script.main([str(tmp_path), "--data", "x", "--per-class", "4901"])


@needs_data
def test_prepared_pictures_are_those_of_the_archive(script, tmp_path):
    script.main([str(tmp_path / "data"), "--data", DATA, "--per-class", "2"])
    (tmp_path / "prepare.yaml").write_text(CONFIG.format(tmp_path))
    assert cli.main(["prepare", str(tmp_path / "prepare.yaml")]) == 0
    shards = open_shards(LoaderConfig(index=str(tmp_path / "shards" / "index.json")), ("train", "val", "test"))
    assert {split: shards.n(split) for split in ("train", "val", "test")} == {"train": 20, "val": 1000, "test": 2000}
    assert shards.card.class_names == script.CLASSES and shards.index["shape"]["image"] == [32, 32, 3]
    for meta in shards.metas("test"):
        assert meta["stimulus"].split("/")[1:3] == ["test", meta["class_name"]]
