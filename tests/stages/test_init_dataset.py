"""The skeleton of a person's own data, from an empty folder to shards."""

import csv

import numpy as np
import yaml
from conftest import ROOT
from PIL import Image

from eeg_gan import cli
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.stages.loading import open_shards


def fill(folder, n_trials=3):
    """Three trials in the skeleton's own columns, with the files that they name."""
    header, example = list(csv.reader((folder / "trials.csv").open()))
    rows = [dict(zip(header, example, strict=True)) for _ in range(n_trials)]
    for k, row in enumerate(rows):
        row |= {"eeg": f"eeg/{k}.npy", "image": f"images/{k}.png", "onset": str(k), "stimulus": f"picture{k}"}
        row["label"] = ("cat", "dog")[k % 2]
        np.save(folder / row["eeg"], np.random.default_rng(k).normal(size=(3, 250)).astype(np.float32))
        Image.new("RGB", (8, 8), (80 * k, 0, 0)).save(folder / row["image"])
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def test_the_skeleton_with_three_trials_is_prepared(tmp_path):
    folder = tmp_path / "mine"
    assert cli.main(["init-dataset", f"path={folder}"]) == 0
    fill(folder)
    words = [f"source.path={folder}", f"run_dir={tmp_path}/out", "split.balance=false", "image_size=8"]
    words += ["split.train=0.4", "split.val=0.3", "split.test=0.3"]
    assert cli.main(["prepare", str(ROOT / "configs/prepare/folder.yaml"), *words]) == 0
    shards = open_shards(LoaderConfig(index=f"{tmp_path}/out/index.json"), ("train", "val", "test"))
    assert [shards.n(split) for split in ("train", "val", "test")] == [1, 1, 1]
    assert shards.card.class_names == ("cat", "dog") and shards.card.pairing == "trial"
    assert shards.metas("train")[0]["recording"] == "S1-1"


def test_nothing_is_overwritten(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "trials.csv").write_text("mine")
    assert cli.main(["init-dataset", f"path={folder}"]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert (folder / "trials.csv").read_text() == "mine" and not (folder / "dataset.yaml").exists()


def test_the_debug_config_and_the_skeleton_are_readable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init-dataset", str(ROOT / "configs/init-dataset/debug.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "my-data/dataset.yaml").read_text())["design"] == "event-randomised"
    assert len((tmp_path / "my-data/trials.csv").read_text().splitlines()) == 2
    assert "source.path=my-data" in (tmp_path / "my-data/README.txt").read_text()
