import pytest

from eeg_gan.config import UserError
from eeg_gan.data import memory


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A made-up machine: `tree(cgroup, mounts)` writes what a process sees of it, and returns where groups lie."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    (tmp_path / "proc" / "self").mkdir(parents=True)

    def make(cgroup, mounts, free_kb=None):
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
        lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw"]
        for root, place, kind in mounts:
            place = str(tmp_path / place).replace(" ", "\\040")
            lines.append(f"31 23 0:28 {root} {place} rw,nosuid shared:9 - {kind}")
        (tmp_path / "proc" / "self" / "mountinfo").write_text("\n".join(lines) + "\n")
        if free_kb is not None:
            (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 999999 kB\nMemAvailable:  {free_kb} kB\n")
        return tmp_path

    return make


def limit(folder, most, used, cache, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    first, second, third = memory.FILES[version]
    (folder / first).write_text(f"{most}\n")
    (folder / second).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{third} {cache}\n")


V2, V1 = "cgroup2 cgroup2 rw,nsdelegate", "cgroup cgroup rw,memory"


@pytest.mark.parametrize("limited", ["", "job_7", "job_7/step_0", "job_7/step_0/task_1"])
def test_each_group_above_the_process_may_limit_it(tree, limited):
    """As SLURM and systemd nest them: the limit is often set above the process's own group."""
    top = tree("0::/job_7/step_0/task_1\n", [("/", "cg", V2)], free_kb=5) / "cg"
    for group in ("", "job_7", "job_7/step_0", "job_7/step_0/task_1"):
        limit(top / group, "max", 900, 300)
    assert memory.available() == 5 * 1024
    limit(top / limited, 1000, 900, 300)
    limit(top / "job_7" / "step_1", 10, 9, 0)  # another's
    assert memory.available() == 400
    with pytest.raises(UserError, match="x.mat can only be read whole, .* but 0.0 GiB are available; buy more"):
        memory.require(401, "x.mat", "buy more")
    memory.require(400, "x.mat")


def test_version_1_has_other_names_and_its_own_path(tree):
    cgroup = "9:name=systemd:/user\n4:cpu,memory:/slurm/job_7\n0::/elsewhere\n"
    top = tree(cgroup, [("/", "cg/unified", V2), ("/", "cg/cpu", "cgroup cgroup rw,cpu"), ("/", "cg/memory", V1)])
    limit(top / "cg/memory/slurm/job_7", 1000, 900, 50, 1)
    limit(top / "cg/memory", 9223372036854771712, 10**6, 0, 1)
    assert memory.available() == 150
    limit(top / "cg/memory/slurm", 2000, 1990, 0, 1)
    assert memory.available() == 10
    limit(top / "cg/memory/slurm", 2000, 3000, 0, 1)
    assert memory.available() == 0


@pytest.mark.parametrize(
    "cgroup, root", [("/docker/abc/in", "/docker/abc"), ("/docker/abc", "/docker/abc"), ("/", "/")]
)
def test_in_a_container_the_mounted_group_is_the_top(tree, cgroup, root):
    place = "cg with blank"
    top = tree(f"0::{cgroup}\n", [(root, place, V2)]) / place
    limit(top, 1000, 900, 300)
    limit(top / "in", "max", 900, 300)
    assert memory.available() == 400


def test_a_path_outside_of_the_mount_leaves_its_top(tree):
    limit(tree("0::/../../other\n", [("/", "cg", V2)]) / "cg", 1000, 900, 0)
    assert memory.available() == 100


def test_no_limit_and_nothing_known(tree):
    limit(tree("0::/\n", [("/", "cg", V2)]) / "cg", "max", 900, 300)
    assert memory.available() is None
    memory.require(2**60, "x.mat")
    (memory.PROC / "self" / "mountinfo").unlink()
    (memory.PROC / "self" / "cgroup").unlink()
    assert memory.available() is None


def test_this_machine_is_understood():
    assert memory.available() > 2**20
