import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from published import formats_a
from published.formats_a import wave

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data.shards import Shards
from eeg_gan.data.sources.thoughtviz import CLASSES, ThoughtvizConfig, open_thoughtviz

CONFIGS = Path(__file__).parents[2] / "configs" / "prepare"


def prepare(config, out, *words):
    return cli.main(["prepare", str(CONFIGS / f"{config}.yaml"), f"run_dir={out}", "image_size=16", *words])


def refused(path, *said, **config):
    with pytest.raises(UserError) as error:
        source = open_thoughtviz(str(path), ThoughtvizConfig(**config))
        for i in range(len(source.trials)):
            source.eeg(i), source.image(i)
    for text in said:
        assert text in str(error.value)


@pytest.fixture
def data(tmp_path):
    formats_a.thoughtviz_pkl(tmp_path / "data.pkl", formats_a.thoughtviz_arrays())
    return tmp_path / "data.pkl"


def test_prepare_with_pictures(tmp_path, data):
    formats_a.class_folders(tmp_path / "images", CLASSES["objects"])
    words = [f"source.path={data}", f"source.thoughtviz.images={tmp_path}/images"]
    assert prepare("thoughtviz", tmp_path / "out", *words) == 0
    shards = Shards(tmp_path / "out" / "index.json", ("train", "val", "test"))
    found = {split: shards.metas(split) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in found] == [30, 10, 10]
    assert shards.split_policy["confounded"], "a leak cannot be excluded"
    assert "windows of one recording" in shards.split_policy["reasons"][0]
    assert shards.card.design == "imagined-windowed" and shards.card.pairing == "class"
    assert "cannot be excluded" in shards.card.description
    assert (shards.channels, shards.n_times, shards.preprocessing["sfreq"]) == (14, 32, 128)
    stimuli = {split: {meta["stimulus"] for meta in own} for split, own in found.items()}
    assert not stimuli["train"] & stimuli["val"] and not (stimuli["train"] | stimuli["val"]) & stimuli["test"]


def test_windows_labels_and_validation(data):
    source = open_thoughtviz(str(data), ThoughtvizConfig())
    assert len(source.trials) == 50 and source.peak_bytes == 3 * os.path.getsize(data)
    for i, meta in enumerate(source.trials):
        np.testing.assert_array_equal(source.eeg(i), wave(i, 14, 32))
        assert meta["label"] == i % 10 and meta["class_name"] == CLASSES["objects"][i % 10]
        assert meta["split"] == ("train" if i < 30 else "val" if i < 40 else "test"), "the end of each class"
        assert meta["subject"] == "unknown" and meta["recording"] is None and meta["onset_s"] is None
    assert source.image(0) is None and source.card.pairing == "none"
    assert [m["split"] for m in open_thoughtviz(str(data), ThoughtvizConfig(val=0)).trials].count("train") == 40
    with pytest.raises(ValueError, match="0 or more and below 1"):
        ThoughtvizConfig(val=1)


def test_pairing_is_by_class_and_by_seed(tmp_path, data):
    formats_a.class_folders(tmp_path / "images", CLASSES["objects"], pictures=7)
    seeds = {seed: ThoughtvizConfig(images=str(tmp_path / "images"), seed=seed) for seed in (0, 1)}
    source, again, other = (open_thoughtviz(str(data), seeds[seed]) for seed in (0, 0, 1))
    stimuli = [[meta["stimulus"] for meta in s.trials] for s in (source, again, other)]
    assert stimuli[0] == stimuli[1] != stimuli[2]
    for i, meta in enumerate(source.trials):
        name, k = meta["stimulus"].removesuffix(".png").split("/")
        assert name == meta["class_name"]
        assert source.image(i)[0, 0].tolist() == [20 * meta["label"], 30 * int(k), 7]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).eeg(44), wave(44, 14, 32))
    assert len(pickle.dumps(source)) < 20_000 < os.path.getsize(data)


@pytest.mark.parametrize("imagined", ["digits", "characters"])
def test_digits_and_characters(data, imagined):
    source = open_thoughtviz(str(data), ThoughtvizConfig(imagined=imagined))
    assert source.card.name == f"thoughtviz {imagined}" and source.card.class_names == CLASSES[imagined]
    assert source.trials[3]["class_name"] == {"digits": "3", "characters": "H"}[imagined]


def test_wrong_pickles(data):
    arrays = formats_a.thoughtviz_arrays()
    for changed, *said in (
        ({"x_test": None}, "has no x_test: expected x_train, y_train, x_test, y_test, found x_train, y_train, y_test"),
        ({"x_train": arrays["x_train"][..., 0]}, "x_train is an array [40, 14, 32], but floats [windows, 14, 32, 1]"),
        ({"x_train": arrays["x_train"].astype(int)}, "x_train is an array [40, 14, 32, 1], but floats"),
        ({"y_train": arrays["y_train"][:39]}, "y_train is an array [39, 10]", "each of the 40 windows"),
        ({"y_test": arrays["y_test"][:, :9]}, "y_test is an array [10, 9], but one row with a single 1"),
        ({"y_test": arrays["y_test"] * 0.5}, "a single 1 among 10 classes"),
    ):
        formats_a.thoughtviz_pkl(data, {k: v for k, v in (arrays | changed).items() if v is not None})
        refused(data, str(data), *said)
    arrays["x_test"][3, 2, 1] = np.inf
    formats_a.thoughtviz_pkl(data, arrays)
    refused(data, "window 43 holds inf (channel 2, sample 1)")
    data.write_bytes(pickle.dumps([1, 2]))
    refused(data, "holds a list, but a dict with x_train, y_train, x_test, y_test was expected")


def test_malicious_pickle_is_refused_by_prepare(tmp_path, data, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    data.write_bytes(pickle.dumps({"x_train": Evil()}))
    assert prepare("thoughtviz", tmp_path / "out", f"source.path={data}") == 2
    assert f"{os.name}.system" in capsys.readouterr().err and not (tmp_path / "marker").exists()


def test_missing_pictures(tmp_path, data):
    formats_a.class_folders(tmp_path / "images", CLASSES["objects"][:4], pictures=3)
    refused(data, "Mobile/ holds 0 pictures, but each of train, val, test needs one", images=str(tmp_path / "images"))
    (tmp_path / "images" / "Car" / "1.png").unlink()
    refused(data, "Car/ holds 2 pictures", images=str(tmp_path / "images"))


def test_missing_path(tmp_path, capsys):
    assert prepare("thoughtviz", tmp_path / "o1", f"source.path={tmp_path}/data.pkl") == 2
    assert "data.pkl: no such file" in capsys.readouterr().err
    assert prepare("thoughtviz_pairs", tmp_path / "o2", "source.path=null") == 2
    assert "source.path is missing" in capsys.readouterr().err


def test_prepare_pairs(tmp_path):
    formats_a.thoughtviz_pairs(tmp_path / "pairs")
    words = [f"source.path={tmp_path}/pairs", "source.thoughtviz.val=0.2"]
    assert prepare("thoughtviz_pairs", tmp_path / "out", *words) == 0
    shards = Shards(tmp_path / "out" / "index.json", ("train", "val", "test"))
    assert [len(shards.metas(split)) for split in ("train", "val", "test")] == [8, 2, 4]
    assert shards.split_policy["confounded"] and shards.card.pairing == "class" and shards.has_images


def test_pairs(tmp_path):
    source = open_thoughtviz(str(formats_a.thoughtviz_pairs(tmp_path / "pairs")), ThoughtvizConfig(layout="pairs"))
    assert source.card.class_names == ("Apple", "Car") and len(source.trials) == 14
    for i, meta in enumerate(source.trials):
        np.testing.assert_array_equal(source.eeg(i), wave(i, 14, 32))
        assert (source.image(i) == i).all() and source.image(i).shape == (12, 10, 3)
        assert meta["label"] == (i // 5 if i < 10 else (i - 10) // 2)
    assert [meta["split"] for meta in source.trials] == (["train"] * 4 + ["val"]) * 2 + ["test"] * 4
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).eeg(3), wave(3, 14, 32))


def test_wrong_pairs(tmp_path):
    root = formats_a.thoughtviz_pairs(tmp_path / "pairs")
    picture, eeg = np.zeros((8, 8, 3), np.uint8), wave(0, 14, 32)[:, :, None]
    strange = root / "train" / "Car" / "2.npy"
    for row, *said in (
        ([eeg, 1], "is an array [2] of object, but an object array [3] of eeg, label and image"),
        ([eeg[..., 0], 1, picture], "its eeg is an array [14, 32], but [14, 32, 1] was expected"),
        ([eeg, 0, picture], "its label is 0, but class folder Car is number 1 in natural order"),
        ([eeg, 1, None], "its image is a NoneType, but [height, width, 3] of uint8"),
    ):
        formats_a.objects(strange, row)
        refused(root, str(strange), *said, layout="pairs")
    strange.unlink()
    (root / "test" / "Dog").mkdir()
    refused(root, "Dog is in one of train/ and test/ only", layout="pairs")
    refused(tmp_path, "train: no such folder; layout pairs is {train,test}/CLASS/FILE", layout="pairs")
    with pytest.raises(ValueError, match="layout pairs has its pictures in its own files"):
        ThoughtvizConfig(layout="pairs", images="x")
