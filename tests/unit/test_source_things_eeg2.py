"""THINGS-EEG2, as its authors and as NICE's code write it, and each kind of file that must be refused."""

import os
import pickle

import numpy as np
import pytest
from conftest import ROOT
from published import formats_b as published

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data import mapped_pickle, memory
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.sources.things_eeg2 import ThingsEEG2, ThingsEEG2Config
from eeg_gan.stages.loading import open_shards

WRITE = {"official": published.write_object_npy, "nice": published.write_pickle}
TRAIN = published.N_CONCEPTS * published.PER_CONCEPT


def source(folder, **keys):
    return ThingsEEG2(str(folder), ThingsEEG2Config(**{"val_concepts": 2, **keys}))


def refused(folder, *said, **keys):
    with pytest.raises(UserError) as error:
        opened = source(folder, **keys)
        for i in range(len(opened.trials)):
            opened.eeg(i), opened.image(i)
    for text in said:
        assert text in str(error.value), error.value


def change(folder, part="training", **values):
    """Writes the file of the first subject again, with other values; None takes one away."""
    held = published.things_eeg(1, part) | values
    path = folder / "sub-01" / f"preprocessed_eeg_{part}.npy"
    published.write_object_npy(path, {name: value for name, value in held.items() if value is not None})


def change_metadata(folder, **values):
    held = published.things_metadata() | values
    published.write_object_npy(folder / "image_metadata.npy", {k: v for k, v in held.items() if v is not None})


@pytest.mark.parametrize("variant", WRITE)
def test_through_prepare(tmp_path, variant):
    folder = published.things_eeg2(tmp_path / "data", write=WRITE[variant])
    name = "things_eeg2" if variant == "official" else "things_eeg2_nice"
    words = [f"source.path={folder}", f"run_dir={tmp_path}/out", f"source.things_eeg2.images={folder}", "image_size=7"]
    words += [f"source.things_eeg2.metadata={folder}/image_metadata.npy", "source.things_eeg2.val_concepts=2"]
    words += ["preprocess.scale=none", "preprocess.clip=null"]
    assert cli.main(["prepare", str(ROOT / f"configs/prepare/{name}.yaml"), *words]) == 0
    shards = open_shards(LoaderConfig(index=f"{tmp_path}/out/index.json"), ("train", "val", "test"))
    assert [shards.n(split) for split in ("train", "val", "test")] == [2 * 8, 2 * 4, 2 * 3]
    concepts = [{meta["concept"] for meta in shards.metas(split)} for split in ("train", "val", "test")]
    assert [len(own) for own in concepts] == [4, 2, 3] and not set.intersection(*concepts)
    card = shards.card
    assert (card.design, card.pairing, card.sfreq, card.tmin_s) == ("rsvp", "trial", 100, -0.1)
    assert ("test trials too" in card.description) == (variant == "official")
    assert not shards.split_policy["confounded"]
    eeg = Reader(shards, "test", 8, 0).eeg_all().numpy()
    for meta, own in zip(shards.metas("test"), eeg, strict=True):
        truth = published.things_eeg(int(meta["subject"][-2:]), "test")["preprocessed_eeg_data"]
        np.testing.assert_allclose(own, truth[int(meta["key"][-5:])].mean(axis=0), atol=1e-4)


def test_repetitions_are_trials_of_their_own(tmp_path):
    opened = source(published.things_eeg2(tmp_path, subjects=1), average=False)
    assert len(opened.trials) == TRAIN * 4 + published.N_TEST * 8
    trial = opened.trials[4 * 5 + 3]
    assert trial["key"] == "sub-01_training_00005_03" and opened.eeg(4 * 5 + 3)[0, 0] == 503
    assert trial["stimulus"] == "training_images/00003_thing2/thing2_01.jpg" and trial["concept"] == "00021_thing2"
    assert "each a trial of its own" in opened.card.description
    averaged = source(tmp_path)
    assert averaged.eeg(5)[0, 0] == 501.5


def test_labels_are_concepts(tmp_path):
    opened = source(published.things_eeg2(tmp_path), images=str(tmp_path))
    assert len(opened.card.class_names) == published.N_CONCEPTS + published.N_TEST
    assert all(opened.card.class_names[t["label"]] == t["concept"] for t in opened.trials)
    last = opened.trials[-1]
    assert last["split"] == "test" and last["label"] == 8 and last["concept"] == "00902_other2"
    assert abs(int(opened.image(len(opened.trials) - 1)[0, 0, 1]) - 40) < 4


def test_validation_concepts_by_seed_or_by_name(tmp_path):
    published.things_eeg2(tmp_path)

    def val(**keys):
        return {trial["concept"] for trial in source(tmp_path, **keys).trials if trial["split"] == "val"}

    assert val() == val() and len(val()) == 2 and len({frozenset(val(seed=seed)) for seed in range(5)}) > 1
    assert val(val_names=("00021_thing2",)) == {"00021_thing2"} and not val(val_concepts=0)
    refused(tmp_path, "val_names: thing2 is no training concept", val_names=("thing2",))
    refused(tmp_path, "val_concepts is 6", val_concepts=6)


def test_times_that_keep_the_baseline_of_nice(tmp_path):
    published.things_eeg2(tmp_path, subjects=1)
    for part in ("training", "test"):
        change(tmp_path, part, times=-0.2 + np.arange(60) / 100)
    opened = source(tmp_path)
    assert opened.card.tmin_s == pytest.approx(0) and opened.card.sfreq == 100


def test_the_arrays_stay_on_the_disk(tmp_path):
    opened = source(published.things_eeg2(tmp_path))
    training = opened._data["sub-01", "train"]
    assert isinstance(training, np.memmap) and opened.peak_bytes == 0
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(again.eeg(3), opened.eeg(3))
    assert len(pickle.dumps(opened)) < 1e5


def test_some_subjects(tmp_path):
    published.things_eeg2(tmp_path)
    assert {t["subject"] for t in source(tmp_path, subjects=("sub-02",)).trials} == {"sub-02"}
    refused(tmp_path, "holds no sub-03, only sub-01, sub-02", subjects=("sub-03",))


# ---- mapped pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol(tmp_path, protocol, order):
    large = np.asarray(np.random.default_rng(0).normal(size=(100, 200)), order=order)
    held = {"large": large, "again": large, "small": np.arange(3), "names": ["a", np.str_("b")], "x": np.float32(2)}
    published.write_pickle(tmp_path / "a.npy", held, protocol)
    found = mapped_pickle.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(found["large"], large)
    np.testing.assert_array_equal(found["again"], large)
    assert found["small"].tolist() == [0, 1, 2] and found["names"] == ["a", "b"] and found["x"] == 2
    assert isinstance(found["large"], np.memmap) == (protocol > 2)
    assert (mapped_pickle.peak_bytes(tmp_path / "a.npy") > 0) == (protocol == 2)


def test_damaged_bytes_are_an_error_or_other_data(tmp_path):
    published.write_pickle(tmp_path / "a.npy", published.things_eeg(1, "training"))
    whole, rng = (tmp_path / "a.npy").read_bytes(), np.random.default_rng(0)
    structure = [k for k in range(len(whole)) if k < 400 or k > len(whole) - 1200]  # what is not EEG
    for _ in range(150):
        raw = bytearray(whole)
        raw[rng.choice(structure)] = rng.integers(256)
        (tmp_path / "b.npy").write_bytes(raw)
        try:
            mapped_pickle.load(tmp_path / "b.npy")
        except UserError as error:
            assert "b.npy" in str(error)


def test_a_map_never_holds_objects(tmp_path):
    """Bytes that pretend to be an array of objects would be followed as pointers."""
    held = {"x": np.zeros(2**14)}
    raw = pickle.dumps(held, protocol=4).replace(b"\x8c\x02f8", b"\x8c\x02O8")
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(UserError, match="does not fit|no such file|damaged"):
        mapped_pickle.load(tmp_path / "a.npy")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("write", WRITE.values(), ids=WRITE)
def test_a_malicious_file_is_refused_and_nothing_ran(tmp_path, write):
    published.things_eeg2(tmp_path, subjects=1)
    write(
        tmp_path / "sub-01/preprocessed_eeg_test.npy", published.things_eeg(1, "test") | {"x": Evil(tmp_path / "ran")}
    )
    refused(tmp_path, "preprocessed_eeg_test.npy", "posix.system", "not called")
    assert not (tmp_path / "ran").exists()


def test_memory_is_checked_before(tmp_path, monkeypatch):
    published.things_eeg2(tmp_path, write=lambda path, held: published.write_pickle(path, held, 2))
    assert source(tmp_path).peak_bytes > 0
    monkeypatch.setattr(memory, "available", lambda: 1000)
    refused(tmp_path, "sub-01/preprocessed_eeg_training.npy can only be read whole", "protocol 4")


# ---- what is refused

DATA = np.zeros((TRAIN, 4, 5, 40))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"preprocessed_eeg_data": None}, "has no preprocessed_eeg_data, only ch_names, times"),
        ({"preprocessed_eeg_data": DATA[:, 0]}, "but float [images, repetitions, channels, times] is published"),
        ({"preprocessed_eeg_data": DATA.astype(int)}, "preprocessed_eeg_data is int64"),
        ({"preprocessed_eeg_data": DATA[:4]}, "has 4 images, but"),
        ({"preprocessed_eeg_data": DATA[..., :3, :]}, "there are 5 ch_names and 40 times"),
        ({"times": np.arange(30) / 100}, "there are 5 ch_names and 30 times"),
        ({"times": np.zeros(40)}, "times do not increase"),
        ({"preprocessed_eeg_data": DATA * np.nan}, "image 0 holds a value that is no number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_files_are_named(tmp_path, values, said):
    published.things_eeg2(tmp_path, subjects=1)
    change(tmp_path, **values)
    refused(tmp_path, "sub-01/preprocessed_eeg_training.npy", said)


def test_subjects_that_differ(tmp_path):
    published.things_eeg2(tmp_path)
    change(tmp_path, ch_names=list("abcde"))
    refused(tmp_path, "sub-02/preprocessed_eeg_training.npy and", "sub-01", "differ in ch_names")
    change(tmp_path, times=np.arange(40) / 50)
    refused(tmp_path, "differ in times")


def test_damaged_and_missing_files(tmp_path):
    path = published.things_eeg2(tmp_path) / "sub-02/preprocessed_eeg_training.npy"
    published.truncated(path)
    refused(tmp_path, "sub-02/preprocessed_eeg_training.npy cannot be read")
    published.garbage(path)
    refused(tmp_path, "sub-02/preprocessed_eeg_training.npy cannot be read")
    np.save(path, DATA)
    refused(tmp_path, "but a dict is published")
    path.unlink()
    refused(tmp_path, "sub-02/preprocessed_eeg_training.npy: no such file")
    refused(tmp_path / "sub-01", "holds no folder sub-01")
    refused(tmp_path / "nowhere", "no such folder")


@pytest.mark.parametrize(
    "values, said",
    [
        ({"train_img_files": None}, "has no train_img_files"),
        ({"test_img_concepts_THINGS": ["00007_thing0"] * 3}, "concept 00007_thing0 is in training and in test"),
        ({"test_img_concepts_THINGS": ["a"]}, "differ in length"),
    ],
)
def test_wrong_metadata(tmp_path, values, said):
    published.things_eeg2(tmp_path)
    change_metadata(tmp_path, **values)
    refused(tmp_path, "image_metadata.npy", said)


def test_missing_metadata_and_pictures(tmp_path):
    published.things_eeg2(tmp_path)
    (tmp_path / "test_images/00002_other1/other1_00.jpg").unlink()
    refused(tmp_path, "test_images/00002_other1/other1_00.jpg does not exist", images=str(tmp_path))
    (tmp_path / "image_metadata.npy").unlink()
    refused(tmp_path, "image_metadata.npy: no such file")
