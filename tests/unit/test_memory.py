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


def test_a_job_is_limited_by_the_groups_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/slurm/job_7/step_0\n")
    (tmp_path / "slurm" / "job_7" / "step_0").mkdir(parents=True)
    limit(tmp_path / "slurm" / "job_7" / "step_0", "max", 10, 0)
    limit(tmp_path / "slurm" / "job_7", 5000, 1000, 0)
    limit(tmp_path / "slurm", 90_000, 1000, 0)
    assert memory.available() == 4000
    (tmp_path / "membership").write_text("0::/../elsewhere\n")
    assert memory.available() is None or memory.available() > 2**20


def test_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    limit(tmp_path, "max", 900, 300)
    monkeypatch.setattr(memory, "_system", lambda: None)
    assert memory.available() is None
    memory.require(2**60, "x.mat")
