import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from published import formats_a
from published.formats_a import SYNSETS, wave

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data.shards import Shards
from eeg_gan.data.sources.cvpr40 import Cvpr40Config, open_cvpr40
from eeg_gan.data.sources.published import SYNSETS as NAMES

CONFIGS = Path(__file__).parents[2] / "configs" / "prepare"
RAW = "eeg_signals_raw_with_mean_std.pth"


def prepare(config, out, *words):
    return cli.main(["prepare", str(CONFIGS / f"{config}.yaml"), f"run_dir={out}", "image_size=16", *words])


def metas(out):
    shards = Shards(out / "index.json", ("train", "val", "test"))
    return shards, {split: shards.metas(split) for split in ("train", "val", "test")}


def change(path, **values):
    found = torch.load(path)
    torch.save({key: value for key, value in (found | values).items() if value is not None}, path)


def refused(path, *said, **config):
    with pytest.raises(UserError) as error:
        open_cvpr40(str(path), Cvpr40Config(**config))
    for text in said:
        assert text in str(error.value)


@pytest.fixture
def raw(tmp_path):
    formats_a.cvpr40_pth(tmp_path / RAW, subjects=3)
    return tmp_path / RAW


def test_prepare_by_subject(tmp_path, raw):
    assert prepare("cvpr40", tmp_path / "out", f"source.path={raw}") == 0
    shards, found = metas(tmp_path / "out")
    assert [len(found[split]) for split in found] == [10, 10, 10]
    assert all(len({meta["subject"] for meta in own}) == 1 for own in found.values())
    assert not shards.split_policy["confounded"], "nothing but the picture is shared"
    assert shards.card.design == "block" and shards.card.line_hz == 50 and shards.card.pairing == "none"
    assert (shards.channels, shards.n_times, shards.preprocessing["sfreq"]) == (128, 440, 1000)
    assert shards.card.class_names == ("German shepherd", "Egyptian cat")
    assert "microvolt or such steps" in shards.card.description and shards.card.tmin_s == 0.02


def test_prepare_with_published_split_and_pictures(tmp_path, capsys):
    found = formats_a.cvpr40_pth(tmp_path / "eeg_5_95_std.pth", subjects=2, raw=False)
    formats_a.cvpr40_splits(tmp_path / "all.pth", found)
    formats_a.imagenet_folder(tmp_path / "imagenet", found["images"])
    words = [f"source.path={tmp_path}/eeg_5_95_std.pth", f"source.cvpr40.splits={tmp_path}/all.pth"]
    words += [f"source.cvpr40.images={tmp_path}/imagenet"]
    assert prepare("cvpr40_by_image", tmp_path / "out", *words) == 0
    shards, own = metas(tmp_path / "out")
    assert [len(own[split]) for split in own] == [12, 4, 4]
    assert shards.split_policy["confounded"] and "block design" in shards.split_policy["reasons"][0]
    images = {split: {meta["stimulus"] for meta in own[split]} for split in own}
    assert not images["train"] & images["test"] and images["val"] == {f"{s}_100" for s in SYNSETS[:2]}
    assert shards.card.pairing == "trial" and shards.has_images and shards.image_size == 16
    assert "these are no microvolt" in shards.card.description


def test_the_six_unseen_classes_of_the_paper(tmp_path, monkeypatch):
    six = {"German shepherd", "Egyptian cat", "pool table", "anemone fish", "canoe", "golf ball"}
    unseen = [synset for synset, name in NAMES.items() if name in six]
    monkeypatch.setattr(formats_a, "SYNSETS", (*unseen, "n07753592", "n11939491"))
    formats_a.cvpr40_pth(tmp_path / RAW, subjects=1, classes=8)
    words = ["split.train=0.6", "split.val=0.4", f"source.path={tmp_path / RAW}"]
    assert prepare("cvpr40_unseen", tmp_path / "out", *words) == 0
    _, found = metas(tmp_path / "out")
    classes = {split: {meta["class_name"] for meta in own} for split, own in found.items()}
    assert classes == {"train": {"banana", "daisy"}, "val": {"banana", "daisy"}, "test": six}
    assert len(found["test"]) == 30 and len(found["train"]) == 6


def test_samples_20_to_460_and_meta(tmp_path, raw):
    source = open_cvpr40(str(raw), Cvpr40Config(subjects=(2,)))
    assert len(source.trials) == 10 and source.peak_bytes == 0
    assert source.eeg(3).dtype == np.float32
    np.testing.assert_array_equal(source.eeg(3), wave(13, 128, 460)[:, 20:])
    meta = source.trials[3]
    assert meta["stimulus"] == f"{SYNSETS[1]}_101" and meta["label"] == 1 and meta["subject"] == "S2"
    assert meta["block"] == meta["concept"] == SYNSETS[1] and meta["class_name"] == "Egyptian cat"
    assert meta["split"] is None and meta["onset_s"] is None and meta["tmin_s"] == 0.02
    assert source.image(3) is None


def test_source_travels_to_workers_without_its_data(raw):
    source = open_cvpr40(str(raw), Cvpr40Config())
    sent = pickle.dumps(source)
    assert len(sent) < 50_000 < os.path.getsize(raw)
    np.testing.assert_array_equal(pickle.loads(sent).eeg(7), source.eeg(7))


def test_old_file_says_what_it_takes(tmp_path):
    formats_a.cvpr40_pth(tmp_path / RAW, legacy=True)
    source = open_cvpr40(str(tmp_path / RAW), Cvpr40Config())
    assert source.peak_bytes == int(1.1 * os.path.getsize(tmp_path / RAW))
    np.testing.assert_array_equal(source.eeg(1), wave(1, 128, 460)[:, 20:])


def test_lengths_outside_are_left_out(tmp_path, caplog):
    found = formats_a.cvpr40_pth(tmp_path / RAW, lengths=(449, 450, 600, 601))
    formats_a.cvpr40_splits(tmp_path / "all.pth", found)
    with caplog.at_level(logging.INFO, "eeg_gan"):
        source = open_cvpr40(str(tmp_path / RAW), Cvpr40Config(splits=str(tmp_path / "all.pth")))
    assert len(source.trials) == 10 and "10 of 20 trials are left out" in caplog.text
    assert [source.eeg(i)[0, 0].round() for i in range(3)] == [1, 2, 5]
    formats_a.cvpr40_pth(tmp_path / RAW, lengths=(440,))
    refused(tmp_path / RAW, "no trial has 450 to 600 samples, they have 440 to 440")


def test_split_of_a_single_person(tmp_path, caplog):
    found = formats_a.cvpr40_pth(tmp_path / RAW, subjects=3)
    split = str(tmp_path / "single.pth")
    formats_a.cvpr40_splits(tmp_path / "single.pth", found, subject=2)
    source = open_cvpr40(str(tmp_path / RAW), Cvpr40Config(splits=split, subjects=(2,)))
    assert [meta["split"] for meta in source.trials].count("train") == 6
    assert all(m["split"] == {"0": "val", "1": "test"}.get(m["stimulus"][-1], "train") for m in source.trials)
    refused(tmp_path / RAW, "lists 10 trials", "holds 30", "one person's trials", splits=split)
    beyond = torch.load(split)
    beyond["splits"][0]["test"].append(10)
    beyond["splits"][0]["train"].remove(0)
    torch.save(beyond, split)
    source = open_cvpr40(str(tmp_path / RAW), Cvpr40Config(splits=split, subjects=(2,)))
    assert len(source.trials) == 9 and "names 1 trials that are not there, and leaves out 1" in caplog.text


def test_wrong_split_files(tmp_path, raw):
    split = tmp_path / "split.pth"
    for value, *said in (
        ({"split": []}, "has no splits: expected splits, found split"),
        ({"splits": {}}, "splits is a dict, but a list of divisions was expected"),
        ({"splits": [{"train": [0], "val": [0.5], "test": [1]}]}, "an index of val is 0.5, but a whole number"),
        ({"splits": [{"train": [0]}]}, "splits[0] has no val, test: expected train, val, test, found train"),
        ({"splits": [{"train": [0, *range(10, 30)], "val": [0], "test": [*range(1, 9)]}]}, "trial 0 is in train and"),
    ):
        torch.save(value, split)
        refused(raw, *said, splits=str(split))
    refused(raw, "nothing.pth: no such file", splits=str(tmp_path / "nothing.pth"))


def test_wrong_records(raw):
    found = torch.load(raw)
    first = found["dataset"][0]
    for changed, *said in (
        ({"dataset": None}, "has no dataset: expected dataset, labels, images, found labels, images, means, stddevs"),
        ({"dataset": [first | {"eeg": first["eeg"].T}]}, "trial 0: its eeg is an array [500, 128], but [128, L]"),
        ({"dataset": [{"eeg": first["eeg"]}]}, "trial 0 has no image, label, subject"),
        ({"dataset": [first["eeg"]]}, "trial 0 holds an array [128, 500], but a dict with eeg, image"),
        ({"dataset": [first | {"label": 2}]}, "label 2 is none of the 2 labels of the file"),
        ({"dataset": [first | {"image": 10}]}, "image 10 is none of the 10 images of the file"),
        ({"dataset": [first | {"label": 0}]}, "trial 0: label n02106662, but its picture is n02124075_104"),
        ({"labels": ["dog", "cat"]}, "labels lists 'dog', but ImageNet names"),
        ({"images": found["images"][:1] * 10}, "images lists a name twice"),
        ({"dataset": []}, "no trial of subject any"),
        ({"dataset": 3}, "dataset is a int, but a list was expected"),
        ({"dataset": [first | {"subject": "two"}]}, "trial 0: subject is 'two', but a whole number was expected"),
    ):
        torch.save({k: v for k, v in (found | changed).items() if v is not None}, raw)
        refused(raw, *said)


def test_parameters_of_a_network_are_no_data(raw):
    torch.save(torch.nn.Linear(2, 2).state_dict(), raw)
    refused(raw, "has no dataset, labels, images", "found weight, bias")
    torch.save(torch.zeros(3), raw)
    refused(raw, "holds an array [3], but a dict with dataset, labels, images was expected")


def test_subject_that_is_not_there(raw):
    refused(raw, "no trial of subject 5; it holds those of 1, 2, 3", subjects=(1, 5))
    with pytest.raises(ValueError, match="numbered 1 to 6; got 7"):
        Cvpr40Config(subjects=(7,))


def test_values_that_are_no_numbers(raw):
    found = torch.load(raw)
    found["dataset"][4]["eeg"][3, 25] = float("nan")
    torch.save(found, raw)
    with pytest.raises(UserError, match=r"trial 4 holds nan \(channel 3, sample 5\)"):
        open_cvpr40(str(raw), Cvpr40Config()).eeg(4)


@pytest.mark.parametrize("flat", [True, False])
def test_pictures_by_name(tmp_path, raw, flat):
    names = formats_a.image_names(2, 5)
    formats_a.imagenet_folder(tmp_path / "images", names, flat)
    source = open_cvpr40(str(raw), Cvpr40Config(images=str(tmp_path / "images")))
    for i, meta in enumerate(source.trials):
        k = names.index(meta["stimulus"])
        assert source.image(i).shape == (24, 20 + k, 3) and source.image(i).dtype == np.uint8
        assert k == 0 or abs(int(source.image(i)[0, 0, 0]) - 10 * k) < 9
    (tmp_path / "images" / ("" if flat else SYNSETS[0]) / f"{names[0]}.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"{names[0]}.JPEG: the image cannot be read"):
        source.image([m["stimulus"] for m in source.trials].index(names[0]))


def test_missing_pictures_are_counted(tmp_path, raw, capsys):
    names = formats_a.image_names(2, 5)
    formats_a.imagenet_folder(tmp_path / "images", names[:6])
    words = [f"source.path={raw}", f"source.cvpr40.images={tmp_path}/images"]
    assert prepare("cvpr40", tmp_path / "out", *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"4 of the 10 pictures are missing, the first {', '.join(names[6:9])};" in said
    assert prepare("cvpr40", tmp_path / "o2", words[0], "source.cvpr40.images=/nowhere") == 2
    assert "source.cvpr40.images=/nowhere: no such folder" in " ".join(capsys.readouterr().err.split())


def test_path_is_needed(capsys, tmp_path):
    assert prepare("cvpr40", tmp_path / "out", "source.path=null") == 2
    assert "source.path is missing" in capsys.readouterr().err
    assert prepare("cvpr40", tmp_path / "o2", f"source.path={tmp_path}/x.pth") == 2
    assert "no such file" in capsys.readouterr().err


def test_malicious_file_is_refused_by_prepare(tmp_path, raw, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    change(raw, means=Evil())
    assert prepare("cvpr40", tmp_path / "out", f"source.path={raw}") == 2
    assert f"{os.name}.system" in capsys.readouterr().err and not (tmp_path / "marker").exists()


def test_prepare_wacv_folder(tmp_path):
    formats_a.cvpr40_wacv(tmp_path / "raw")
    assert prepare("cvpr40_wacv", tmp_path / "out", f"source.path={tmp_path}/raw") == 0
    shards, found = metas(tmp_path / "out")
    assert [len(found[split]) for split in found] == [12, 4, 4] and shards.split_policy["confounded"]
    assert shards.card.pairing == "trial" and "minimum and maximum" in shards.card.description
    assert shards.card.class_names == ("German shepherd", "Egyptian cat")


def test_wacv_trials(tmp_path):
    formats_a.cvpr40_wacv(tmp_path / "raw")
    source = open_cvpr40(str(tmp_path / "raw"), Cvpr40Config(layout="wacv", subjects=(2,)))
    assert len(source.trials) == 10 and {m["subject"] for m in source.trials} == {"S2"}
    names = formats_a.image_names(2, 5)
    for i, meta in enumerate(source.trials):
        k = names.index(meta["stimulus"])
        np.testing.assert_array_equal(source.eeg(i), wave(10 + k, 128, 440))
        assert source.image(i)[0, 0].tolist() == [k, 50, 90], "RGB as stored"
        assert meta["split"] == {0: "val", 1: "test"}.get(k % 5, "train") and meta["block"] == meta["stimulus"][:9]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).eeg(4), source.eeg(4))


def test_wrong_wacv_files(tmp_path):
    folder = formats_a.cvpr40_wacv(tmp_path / "raw", subjects=1)
    picture, eeg = np.zeros((8, 8, 3), np.uint8), wave(0, 128, 440)
    strange = folder / "train" / "n02106662_9_99.npy"
    name = "n02106662_9"
    for row, *said in (
        ([picture, eeg, 0, name], "is an array [4] of object, but an object array [5]"),
        ([picture, eeg.T, 0, name, 1], "its eeg is an array [440, 128], but [128, 440] was expected"),
        ([picture[..., 0], eeg, 0, name, 1], "its image is an array [8, 8], but [height, width, 3] of uint8"),
        ([picture, eeg, 1.5, name, 1], "its label is 1.5, but a whole number was expected"),
        ([picture, eeg, 0, "dog", 1], "its image id is 'dog', but a name like n02106662_1152"),
        ([picture, eeg, 1, name, 1], "label 1 is n0", "in other files"),
        ([picture, eeg, 7, "n02389026_1", 1], "labels are [0, 1, 7], but 0, 1, 2, ... was expected"),
    ):
        formats_a.objects(strange, row)
        refused(folder, str(folder), *said, layout="wacv")
    np.save(strange, eeg)
    refused(folder, "is an array [128, 440] of float32, but an object array [5]", layout="wacv")
    assert str(strange) in str(pytest.raises(UserError, open_cvpr40, str(folder), Cvpr40Config(layout="wacv")).value)
    refused(tmp_path, "no .npy in train, val, test", layout="wacv")
    with pytest.raises(ValueError, match="layout wacv has its splits and images in its own files"):
        Cvpr40Config(layout="wacv", images="x")


def test_class_names_differ():
    assert len(NAMES) == 80 and len(set(NAMES.values())) == 80
