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
from eeg_gan.data.sources.eeg_imagenet import EEGImageNet, EEGImageNetConfig

CONFIG = Path(__file__).parents[2] / "configs" / "prepare" / "eeg_imagenet.yaml"


def prepare(out, *words):
    return cli.main(["prepare", str(CONFIG), f"run_dir={out}", "image_size=16", *words])


def refused(path, *said, **config):
    with pytest.raises(UserError) as error:
        EEGImageNet(str(path), EEGImageNetConfig(**config))
    for text in said:
        assert text in str(error.value)


@pytest.fixture
def one(tmp_path):
    formats_a.eeg_imagenet_pth(tmp_path / "EEG-ImageNet_1.pth")
    return tmp_path / "EEG-ImageNet_1.pth"


def test_prepare_both_files_by_subject_with_pictures(tmp_path, one):
    formats_a.eeg_imagenet_pth(tmp_path / "EEG-ImageNet_2.pth", subjects=(8,))
    formats_a.imagenet_folder(tmp_path / "imagenet", formats_a.image_names(4, 2))
    words = [f"source.path={tmp_path}", f"source.eeg_imagenet.images={tmp_path}/imagenet"]
    assert prepare(tmp_path / "out", *words) == 0
    shards = Shards(tmp_path / "out" / "index.json", ("train", "val", "test"))
    found = {split: shards.metas(split) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in found] == [4, 4, 4]
    assert {m["subject"] for own in found.values() for m in own} == {"S0", "S1", "S8"}
    assert shards.card.class_names == ("lycaenid butterfly", "sorrel"), "the coarse ones"
    assert shards.card.design == "block" and shards.card.pairing == "trial" and shards.card.line_hz == 50
    assert (shards.channels, shards.n_times) == (62, 400) and not shards.split_policy["confounded"]


def test_division_within_blocks_is_confounded(tmp_path, one):
    words = [f"source.path={one}", "split.by=stimulus", "split.val=0", "split.train=0.5", "split.test=0.5"]
    assert prepare(tmp_path / "refused", *words) == 2
    assert prepare(tmp_path / "out", *words, "split.allow_confounded=true") == 0
    assert Shards(tmp_path / "out" / "index.json", ("train", "test")).split_policy["confounded"]


def test_trials(one):
    source = EEGImageNet(str(one), EEGImageNetConfig())
    assert len(source.trials) == 16 and source.peak_bytes == 0 and source.image(0) is None
    for i, meta in enumerate(source.trials):
        np.testing.assert_array_equal(source.eeg(i), wave(i, 62, 500))
        assert meta["concept"] == SYNSETS[meta["label"]] == SYNSETS[i % 8 // 2]
        assert meta["stimulus"] == f"{meta['concept']}_{100 + i % 2}" and meta["subject"] == f"S{i // 8}"
        assert meta["block"] == f"{'fine' if i % 8 < 4 else 'coarse'} {meta['concept']}"
    sent = pickle.dumps(source)
    assert len(sent) < 20_000 < os.path.getsize(one)
    np.testing.assert_array_equal(pickle.loads(sent).eeg(9), wave(9, 62, 500))


def test_choice_of_classes_and_persons(one):
    fine = EEGImageNet(str(one), EEGImageNetConfig(granularity="fine", subjects=(1,)))
    assert fine.card.class_names == ("German shepherd", "Egyptian cat") and len(fine.trials) == 4
    np.testing.assert_array_equal(fine.eeg(0), wave(8, 62, 500))
    assert len(EEGImageNet(str(one), EEGImageNetConfig(granularity="fine0")).trials) == 8
    refused(one, "it holds subjects 0, 1 and granularity coarse, fine", subjects=(5,))
    refused(one, "source.eeg_imagenet.granularity", granularity="fine1")


def test_wrong_files(tmp_path, one):
    found = torch.load(one)
    first = found["dataset"][0]
    for changed, *said in (
        ({"images": None}, "has no images: expected dataset, labels, images, found dataset, labels"),
        ({"dataset": [first | {"eeg_data": first["eeg_data"][:60]}]}, "eeg_data is an array [60, 500], but [62, 500]"),
        ({"dataset": [first | {"eeg_data": first["eeg_data"][:, :400]}]}, "its eeg_data is an array [62, 400]"),
        ({"dataset": [first | {"label": "n0"}]}, "label 'n0' is none of the 4 that the file lists"),
        ({"dataset": [first | {"granularity": 3}]}, "granularity is 3, but coarse or fine"),
        ({"dataset": [first | {"image": 3}]}, "image is 3, but a name like n02106662_1152.JPEG"),
        ({"dataset": [{"eeg": 1}]}, "trial 0 has no eeg_data, granularity, subject, label, image", "found eeg"),
    ):
        torch.save({k: v for k, v in (found | changed).items() if v is not None}, one)
        refused(one, str(one), *said)
    one.write_bytes(one.read_bytes()[:-99])
    refused(one, "not a whole file of torch.save")
    one.unlink()
    refused(one, "no such file")
    refused(tmp_path, "no EEG-ImageNet_1.pth or EEG-ImageNet_2.pth in it")


def test_malicious_file_and_missing_pictures_by_prepare(tmp_path, one, capsys):
    words = [f"source.path={one}", "source.eeg_imagenet.images=/nowhere"]
    assert prepare(tmp_path / "o1", *words) == 2
    assert "source.eeg_imagenet.images=/nowhere: no such folder" in " ".join(capsys.readouterr().err.split())

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    torch.save({"dataset": [Evil()]}, one)
    assert prepare(tmp_path / "o2", words[0]) == 2
    assert f"{os.name}.system" in capsys.readouterr().err and not (tmp_path / "marker").exists()
    assert prepare(tmp_path / "o3", "source.path=null") == 2
    assert "source.path is missing" in capsys.readouterr().err
