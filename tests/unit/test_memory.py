import pytest

from eeg_gan.config import UserError
from eeg_gan.data import memory


def limit(folder, most, used, cache):
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_a_container_leaves_less_than_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.available()
    assert whole is None or whole > 2**20
    limit(tmp_path, 1000, 900, 300)
    assert memory.available() == 400
    with pytest.raises(UserError, match="x.mat can only be read whole, .* but 0.0 GiB are available; buy more"):
        memory.require(401, "x.mat", "buy more")
    memory.require(400, "x.mat")


def test_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    limit(tmp_path, "max", 900, 300)
    monkeypatch.setattr(memory, "_system", lambda: None)
    assert memory.available() is None
    memory.require(2**60, "x.mat")
