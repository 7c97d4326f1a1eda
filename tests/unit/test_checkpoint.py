import json

import pytest
import torch
from torch import nn

from eeg_gan.config import UserError
from eeg_gan.training import checkpoint
from eeg_gan.training.checkpoint import Checkpoint


def saved(run_dir, images, value=0.0, best=None):
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, value)
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    checkpoint.save_run(run_dir, images, {"net": net}, {"opt": optimiser}, {"best": best}, "accuracy")
    return net, optimiser


def test_weights_and_optimiser_come_back(tmp_path):
    net, optimiser = saved(tmp_path, 10, 0.5)
    other = nn.Linear(2, 1)
    again = torch.optim.Adam(other.parameters())
    images, state = checkpoint.resume(tmp_path, {"net": other}, {"opt": again})
    assert images == 10 and state["best"] is None
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert again.state_dict()["state"][0]["step"] == 1
    torch.testing.assert_close(again.state_dict()["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    for images in (10, 20, 30, 40):
        saved(tmp_path, images, best={"images": 10, "accuracy": 0.9})
    assert [path.name[-2:] for path in sorted(tmp_path.glob("checkpoint-*"))] == ["10", "30", "40"]
    assert checkpoint.chosen(tmp_path).images == 10 and checkpoint.newest(tmp_path).images == 40


def test_a_kill_between_save_and_mark_is_mended(tmp_path):
    saved(tmp_path, 10, best={"images": 10, "accuracy": 0.5})
    saved(tmp_path, 20, best={"images": 20, "accuracy": 0.9})
    checkpoint.mark_best(tmp_path, 10, "accuracy", 0.5)  # as if the run had died before the second mark
    checkpoint.resume(tmp_path, {}, {})
    assert checkpoint.chosen(tmp_path).images == 20


def test_damage_is_named_and_passed_over(tmp_path):
    saved(tmp_path, 10)
    saved(tmp_path, 20)
    state = tmp_path / "checkpoint-00000000020" / "state.json"
    state.write_text(state.read_text()[:-5])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(state.parent)
    assert checkpoint.newest(tmp_path).images == 10
    (tmp_path / "checkpoint-00000000010" / "state.json").unlink()
    with pytest.raises(UserError, match=r"of its checkpoints \(2\) none is whole"):
        checkpoint.chosen(tmp_path)


def test_half_written_folders_are_no_checkpoints(tmp_path):
    (tmp_path / "checkpoint-00000000030.partial").mkdir()
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.chosen(tmp_path)


def test_another_architecture_is_named(tmp_path):
    with pytest.raises(UserError, match=r"weight is \[1, 3\] there and \[1, 2\] here"):
        checkpoint.restore(nn.Linear(2, 1), nn.Linear(3, 1).state_dict(), "run/x")
    with pytest.raises(UserError, match="bias is missing there"):
        checkpoint.restore(nn.Linear(2, 1), nn.Linear(2, 1, bias=False).state_dict(), "run/x")


def test_digest_tells_equal_weights(tmp_path):
    a = {"x": torch.arange(4.0), "y": torch.ones(2)}
    assert checkpoint.tensors_digest(a) == checkpoint.tensors_digest(dict(reversed(a.items())))
    assert checkpoint.tensors_digest(a) != checkpoint.tensors_digest({**a, "y": torch.ones(2, dtype=torch.float64)})


def test_json_appears_whole(tmp_path):
    checkpoint.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_a_state_without_tensors_is_saved(tmp_path):
    path = checkpoint.save(tmp_path, Checkpoint(0, {}, {"note": "x"}))
    assert checkpoint.load(path).state["note"] == "x"
