import json

import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.data import features

KEYS = ["a", "b", "c"]
VALUES = torch.arange(6.0).reshape(3, 2)


@pytest.fixture
def folder(tmp_path):
    features.save(tmp_path / "f", VALUES, KEYS, {"splits": ["train", "val", "test"], "encoder_digest": "x"})
    return tmp_path / "f"


def test_save_and_load(folder):
    found = features.load(folder)
    assert torch.equal(found.features, VALUES) and found.keys == KEYS
    assert found.meta == {"splits": ["train", "val", "test"], "encoder_digest": "x"}
    assert sorted(p.name for p in folder.iterdir()) == ["features.json", "features.safetensors"]


def test_rows_follow_the_keys(folder):
    found = features.load(folder)
    assert torch.equal(found.rows(["c", "a"]), VALUES[[2, 0]])
    with pytest.raises(UserError, match="1 of 2 trials have no feature .for example z"):
        found.rows(["a", "z"])


@pytest.mark.parametrize("name", ["features.json", "features.safetensors"])
def test_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        features.load(folder)


def test_count_mismatch(folder):
    meta = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(meta | {"keys": ["a"]}))
    with pytest.raises(UserError, match="3 features, but 1 keys"):
        features.load(folder)


@pytest.mark.parametrize("name", ["features.json", "features.safetensors"])
def test_damaged(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:12])
    with pytest.raises(UserError, match="cannot be read"):
        features.load(folder)


def test_not_finite(tmp_path):
    features.save(tmp_path, VALUES / 0, KEYS, {})
    with pytest.raises(UserError, match="not finite"):
        features.load(tmp_path)
