"""The data set of real EEG: what its script writes and what prepare makes of it."""

import importlib.util
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from eeg_gan import cli
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.stages.loading import open_shards

DATA = os.environ.get("EEG_GAN_REAL_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="EEG_GAN_REAL_DATA does not name the folder with the recordings")
COUNTS = {"train": 2748, "val": 294, "test": 540}
CLASSES = ("automobile", "frog", "horse", "ship")
CONFIG = """
run_dir: {0}/shards
source: {{name: folder, path: {0}/data}}
preprocess: {{highpass_hz: 6.0, lowpass_hz: 40.0, resample_hz: 125.0, crop_s: [0.0, 1.0]}}
split: {{by: given}}
"""


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).with_name("make_ssvep_cifar.py")
    spec = importlib.util.spec_from_file_location("make_ssvep_cifar", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssvep")
    script.main([str(folder / "data"), "--data", DATA])
    (folder / "prepare.yaml").write_text(CONFIG.format(folder))
    assert cli.main(["prepare", str(folder / "prepare.yaml")]) == 0
    return folder, open_shards(LoaderConfig(index=str(folder / "shards" / "index.json")), tuple(COUNTS))


def test_counts_and_window(prepared):
    _, shards = prepared
    assert {split: shards.n(split) for split in COUNTS} == COUNTS
    assert shards.n_times == 125 and len(shards.card.ch_names) == 2
    assert shards.preprocessing["sfreq"] == 125 and shards.preprocessing["tmin_s"] == 0
    for split in COUNTS:  # frequencies were shown equally long
        per_class = Counter(shards.labels(split).tolist())
        assert len(per_class) == 4 and max(per_class.values()) < 1.2 * min(per_class.values())


def test_splits_share_no_recording_and_no_picture(prepared):
    _, shards = prepared
    recordings, pictures = defaultdict(set), defaultdict(set)
    for split in COUNTS:
        for meta in shards.metas(split):
            recordings[meta["recording"]].add(split)
            pictures[meta["stimulus"]].add(split)
            assert (meta["subject"] == "3") == (split == "test")
    assert all(len(splits) == 1 for splits in recordings.values())
    assert len(pictures) == sum(COUNTS.values())  # each trial has a picture of its own
    assert not shards.split_policy["confounded"]


def test_pairing_is_by_class(prepared):
    folder, shards = prepared
    assert shards.card.pairing == "class" and shards.card.class_names == CLASSES
    for split in COUNTS:
        for meta in shards.metas(split):
            assert meta["stimulus"].split("/")[:3] == ["images", split, meta["class_name"]]
            assert (folder / "data" / meta["stimulus"]).is_file()


def test_margins_stay_within_one_label(script):
    labels = np.repeat([0, 1, 2, 0], [100, 700, 460, 2000])
    starts = list(script.window_starts(labels, 125))
    assert starts == [200, 325, 450, 900]
    assert all(len(set(labels[start - 100 : start + 350].tolist())) == 1 for start in starts)


def test_windows_outside_train_do_not_overlap(prepared):
    _, shards = prepared
    for split, hop in (("train", 0.5), ("val", 1.0), ("test", 1.0)):
        onsets = defaultdict(list)
        for meta in shards.metas(split):
            onsets[meta["recording"]].append(meta["onset_s"])
        assert min(np.diff(sorted(own)).min() for own in onsets.values()) >= hop - 1e-9


def test_missing_data_are_named(script, tmp_path, monkeypatch):
    monkeypatch.delenv("EEG_GAN_REAL_DATA", raising=False)
    with pytest.raises(SystemExit, match="set EEG_GAN_REAL_DATA"):
        script.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="ssvep5_2ch.npz: no such file"):
        script.main([str(tmp_path), "--data", str(tmp_path)])
