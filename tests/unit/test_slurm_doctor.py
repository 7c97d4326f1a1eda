"""What doctor --cluster concludes from what SLURM and the nodes say; the real cluster is in tests/slurm."""

import pytest
from conftest import debug

from eeg_gan import cli
from eeg_gan.config import from_dict
from eeg_gan.slurm.cluster import Cluster
from eeg_gan.slurm.doctor import judge, minutes


def findings(found, **facts):
    own = from_dict(Cluster, {"nodes": 2, **facts}, "test")
    return {what: (state, fact) for what, state, fact, _ in judge(own, found, "token", "srun said no")}


def process(rank, **changed):
    good = {"rank": rank, "node": f"n{rank}", "token": "token", "sees": 2, "sum": 1.0, "processes": 2, "signal": True}
    return {**good, "torch": "2.13", "gpus": 0, "gb_per_s": 1.5 + rank, **changed}


def test_a_good_cluster_is_all_ok():
    found = findings([process(0), process(1)])
    assert {state for state, _ in found.values()} == {"ok"}
    assert "1.50 GB/s" in found["all-reduce"][1]


@pytest.mark.parametrize(
    "changed, what, says",
    [
        ({"token": "FileNotFoundError: no"}, "shared folder", "2 of 2 processes wrote into it; n1 sees 2"),
        ({"sees": 1}, "shared folder", "2 of 2"),
        ({"error": "RuntimeError: gloo"}, "all-reduce", "n1: RuntimeError: gloo"),
        ({"sum": 7.0}, "all-reduce", "the sum of ranks"),
        ({"torch": "2.11"}, "torch", "different versions"),
        ({"signal": False}, "signal USR2", "did not reach n1"),
    ],
)
def test_what_one_node_cannot_is_named(changed, what, says):
    state, fact = findings([process(0), process(1, **changed)])[what]
    assert state == "missing" and says in fact


def test_a_probe_that_left_nothing_says_what_srun_said():
    assert findings([])["job over the nodes"] == ("missing", "srun said no")
    assert findings([process(0), process(1)], gpus_per_node=4, tasks_per_node=1)["GPUs"][0] == "missing"


@pytest.mark.parametrize(
    "text, value", [("1-00:00:00", 1440), ("02:30:00", 150), ("00:01:30", 1.5), ("UNLIMITED", None), ("", None)]
)
def test_slurms_times_are_read(text, value):
    assert minutes(text) == value


def test_the_command_line_knows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM here
    assert cli.main(["doctor", "--cluster", "example"]) == 2
    assert "run this on a login node" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["doctor", "--cluster", "exampel"]) == 2 and "no cluster 'exampel'" in capsys.readouterr().err
    assert cli.main(["gan", debug("gan"), "--cluster", "example"]) == 2
