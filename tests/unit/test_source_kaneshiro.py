"""Kaneshiro's files, both versions of MATLAB's format, and each kind of file that must be refused."""

import pickle

import numpy as np
import pytest
from conftest import ROOT
from published import formats_b as published

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data import memory
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.sources.kaneshiro import CATEGORIES, Kaneshiro, KaneshiroConfig
from eeg_gan.stages.loading import open_shards

WRITE = {"5": published.write_mat5, "7.3": published.write_mat73}


@pytest.fixture(params=WRITE)
def write(request):
    if request.param == "7.3":
        pytest.importorskip("h5py")
    return WRITE[request.param]


def source(folder, images=None):
    return Kaneshiro(str(folder), KaneshiroConfig(images=images))


def one(folder, write=published.write_mat5, **changed):
    """A folder with one subject whose variables are changed; None takes one away."""
    held = published.kaneshiro_trials(1, 1) | changed
    folder.mkdir(exist_ok=True)
    write(folder / "S1.mat", {name: value for name, value in held.items() if value is not None})
    return folder


def refused(folder, *said, images=None):
    with pytest.raises(UserError) as error:
        opened = source(folder, images)
        for i in range(len(opened.trials)):
            opened.eeg(i), opened.image(i)
    for text in said:
        assert text in str(error.value), error.value


def test_through_prepare(tmp_path, write):
    folder = published.kaneshiro(tmp_path / "data", write=write)
    pictures = published.kaneshiro_pictures(tmp_path / "pictures")
    words = [f"source.path={folder}", f"source.kaneshiro.images={pictures}", f"run_dir={tmp_path}/out"]
    words += ["preprocess.scale=none", "preprocess.clip=null", "image_size=5"]
    assert cli.main(["prepare", str(ROOT / "configs/prepare/kaneshiro.yaml"), *words]) == 0
    shards = open_shards(LoaderConfig(index=f"{tmp_path}/out/index.json"), ("train", "val", "test"))
    stimuli = {split: {meta["stimulus"] for meta in shards.metas(split)} for split in ("train", "val", "test")}
    assert sum(map(len, stimuli.values())) == 72 and not shards.split_policy["confounded"]
    assert shards.card.class_names == CATEGORIES and shards.card.pairing == "trial" and shards.card.sfreq == 62.5
    eeg = Reader(shards, "test", 8, 0).eeg_all().numpy()
    for meta, own in zip(shards.metas("test"), eeg, strict=True):
        truth = published.kaneshiro_trials(int(meta["subject"][1:]), 1)
        number = int(meta["key"].split("_")[1])
        np.testing.assert_allclose(own, truth["X_3D"][:, :, number], atol=1e-5)
        assert meta["label"] == truth["categoryLabels"][number] - 1
        assert meta["stimulus"] == f"exemplar-{int(truth['exemplarLabels'][number]):02d}"


def test_both_versions_give_the_same(tmp_path):
    pytest.importorskip("h5py")
    five, seven = (source(published.kaneshiro(tmp_path / v, write=w)) for v, w in WRITE.items())
    assert five.trials == seven.trials and five.card == seven.card
    for i in range(0, len(five.trials), 7):
        np.testing.assert_array_equal(five.eeg(i), seven.eeg(i))


def test_pictures_by_exemplar(tmp_path):
    opened = source(one(tmp_path / "data"), str(published.kaneshiro_pictures(tmp_path / "pictures")))
    for i in range(0, 72, 11):
        assert opened.image(i)[0, 0, 0] == int(opened.trials[i]["stimulus"][-2:])


def test_one_subject_in_memory(tmp_path):
    opened = source(published.kaneshiro(tmp_path, subjects=2))
    assert opened.peak_bytes == 72 * 124 * 32 * 13 + 2**25
    assert opened.eeg(0)[0, 0] == 0 and opened.eeg(72 + 5)[0, 0] == 5 and opened._held[0] == "S2"
    assert pickle.loads(pickle.dumps(opened)).eeg(72 + 5)[0, 0] == 5
    assert len(pickle.dumps(opened)) < 1e5  # the EEG does not travel


def test_labels_in_any_shape(tmp_path, write):
    held = published.kaneshiro_trials(1, 1)
    categories, exemplars = held["categoryLabels"], held["exemplarLabels"]
    want = source(one(tmp_path / "a", write)).trials
    rows = {"categoryLabels": categories[:, None].astype(np.uint8), "exemplarLabels": exemplars[None].astype(np.int32)}
    assert source(one(tmp_path / "b", write, **rows)).trials == want
    within = {"exemplarLabels": (exemplars - 1) % 12 + 1}
    assert source(one(tmp_path / "c", write, **within)).trials == want


def test_cells_and_structs(tmp_path):
    held = published.kaneshiro_trials(1, 1)
    want = source(one(tmp_path / "a"))
    cells = np.empty((1, 72), dtype=object)
    cells[0] = [np.array([[value]]) for value in held["exemplarLabels"]]
    assert source(one(tmp_path / "b", exemplarLabels=cells)).trials == want.trials
    (tmp_path / "c").mkdir()
    published.write_mat5(tmp_path / "c/S1.mat", {"data": held})
    inside = source(tmp_path / "c")
    assert inside.trials == want.trials
    np.testing.assert_array_equal(inside.eeg(9), want.eeg(9))


def test_structs_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "S1.mat", "w") as file:
        for name, value in published.kaneshiro_trials(1, 1).items():
            file[f"data/{name}"] = np.atleast_2d(value).T
    assert source(tmp_path).eeg(3)[0, 0] == 3


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"X_3D": None}, "no variable X_3D (X_2D is not read"),
        ({"X_3D": np.zeros((32, 124, 72))}, "X_3D has shape [32, 124, 72]"),
        ({"X_3D": np.zeros((124, 32, 71))}, "X_3D has 71 trials, but categoryLabels has 72"),
        ({"categoryLabels": None}, "no variable categoryLabels"),
        ({"exemplarLabels": np.zeros(72)}, "reaches from 0 to 0"),
        ({"categoryLabels": np.full(72, 7.0)}, "reaches from 7 to 7, but 1 to 6"),
        ({"categoryLabels": np.full(72, 1.5)}, "categoryLabels holds something else than whole numbers"),
        ({"categoryLabels": np.arange(72) % 6 + 1.0, "exemplarLabels": np.arange(72) // 3 + 1.0}, "in two categories"),
        ({"X_3D": np.full((124, 32, 72), np.nan)}, "trial 1 of X_3D holds a value that is no number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_files_are_named(tmp_path, write, changed, said):
    refused(one(tmp_path / "data", write, **changed), "S1.mat", said)


def test_damaged_files_are_named(tmp_path, write):
    folder = published.kaneshiro(tmp_path, subjects=1, write=write)
    published.truncated(folder / "S1.mat")
    refused(folder, "S1.mat cannot be read as a MATLAB file")
    (folder / "S1.mat").write_bytes(b"<html>not found</html>")
    refused(folder, "S1.mat cannot be read as a MATLAB file")


def test_folders_and_pictures(tmp_path):
    with pytest.raises(UserError, match="source.path is missing"):
        Kaneshiro(None, KaneshiroConfig())
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "holds no S1.mat")
    one(tmp_path / "data")
    refused(tmp_path / "data", "is no folder", images=str(tmp_path / "pictures"))
    pictures = published.kaneshiro_pictures(tmp_path / "pictures")
    (pictures / "stim_07.png").rename(pictures / "seven.png")
    refused(tmp_path / "data", "lacks the pictures of exemplars 7;", images=str(pictures))
    (pictures / "other_08.png").write_bytes(b"")
    refused(tmp_path / "data", "both name exemplar 08", images=str(pictures))


def test_memory_is_checked_before(tmp_path, monkeypatch):
    one(tmp_path / "data")
    monkeypatch.setattr(memory, "available", lambda: 1000)
    refused(tmp_path / "data", "S1.mat can only be read whole", "are available")


def test_h5py_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    one(tmp_path / "data", published.write_mat73)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    refused(tmp_path / "data", "pip install 'eeg-gan[mat]'")
