"""The test cluster leaves machines alone that have a SLURM of their own."""

import cluster
import pytest


@pytest.mark.parametrize("command", [["up"], ["down"]])
def test_a_foreign_slurm_conf_is_not_touched(tmp_path, monkeypatch, capsys, command):
    theirs = tmp_path / "slurm.conf"
    theirs.write_text("ClusterName=theirs\n")
    monkeypatch.setattr(cluster, "FOREIGN", (theirs,))
    monkeypatch.setattr(cluster, "install", lambda: pytest.fail("nothing is installed"))
    monkeypatch.setenv("EEG_GAN_SLURM", str(tmp_path / "ours"))
    code = cluster.main(command)
    assert code == (2 if command == ["up"] else 0)
    assert ("did not set up" in capsys.readouterr().err) == (command == ["up"])
    assert theirs.read_text() == "ClusterName=theirs\n" and not (tmp_path / "ours").exists()


def test_words_that_mean_nothing_are_refused(capsys):
    assert cluster.main(["start"]) == 2 and "cluster.py up" in capsys.readouterr().err
