import json
import os
import shutil

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


def test_a_kill_between_save_and_deletions_is_mended(tmp_path, monkeypatch):
    for images in (10, 20):
        saved(tmp_path, images)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "forget", lambda run_dir, keep: None)  # as if the run had died before it
        saved(tmp_path, 30)
    checkpoint.resume(tmp_path, {}, {}, keep=None)
    assert len(checkpoint._all(tmp_path)) == 3, "a run that keeps all keeps all"
    checkpoint.resume(tmp_path, {}, {})
    assert [path.name[-2:] for path in checkpoint._all(tmp_path)] == ["20", "30"]


def emptied(folder):
    for file in folder.iterdir():
        file.unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-5])


def flipped(name):
    def flip(folder):
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / name).write_bytes(raw)

    return flip


DAMAGE = {
    "state cut": (cut("state.json"), "not a whole checkpoint"),
    "state flipped": (flipped("state.json"), "not a whole checkpoint"),
    "state emptied": (lambda folder: (folder / "state.json").write_bytes(b""), "not a whole checkpoint"),
    "state of zeros": (lambda folder: (folder / "state.json").write_bytes(bytes(400)), "not a whole checkpoint"),
    "state is a list": (lambda folder: (folder / "state.json").write_text("[]"), "not a whole checkpoint"),
    "another value": (
        lambda folder: (folder / "state.json").write_text(
            (folder / "state.json").read_text().replace('"accuracy": 0.5', '"accuracy": 0.9')
        ),
        "does not have its recorded digest",
    ),
    "tensors cut": (cut("net.safetensors"), "does not have its recorded digest"),
    "tensors flipped": (flipped("net.safetensors"), "does not have its recorded digest"),
    "tensors gone": (lambda folder: (folder / "opt.safetensors").unlink(), "is missing"),
    "folder emptied": (emptied, "not a whole checkpoint"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_passed_over_and_set_aside(tmp_path, caplog, monkeypatch, name):
    monkeypatch.setattr(checkpoint.log, "propagate", True)
    damage, said = DAMAGE[name]
    net, _ = saved(tmp_path, 10, best={"images": 10, "accuracy": 0.5})
    saved(tmp_path, 20, 0.7, best={"images": 20, "accuracy": 0.5})
    damage(tmp_path / "checkpoint-00000000020")
    with pytest.raises(UserError, match=said):
        checkpoint.load(tmp_path / "checkpoint-00000000020")
    assert checkpoint.newest(tmp_path).images == 10, "a reader passes over it, and leaves it where it is"
    other = nn.Linear(2, 1)
    assert checkpoint.resume(tmp_path, {"net": other}, {})[0] == 10
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert said in caplog.text and "going back to the checkpoint before it" in caplog.text
    assert (tmp_path / "checkpoint-00000000020.damaged").is_dir() and checkpoint.chosen(tmp_path).images == 10
    saved(tmp_path, 15)
    assert checkpoint.newest(tmp_path).images == 15, "what is damaged takes no place among the newest two"
    assert sorted(path.name[-2:] for path in checkpoint._all(tmp_path)) == ["10", "15"]


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path):
    for images in (10, 20):
        saved(tmp_path, images)
        (tmp_path / f"checkpoint-000000000{images}" / "state.json").unlink()
    with pytest.raises(UserError, match=r"of its checkpoints \(2\) none is whole"):
        checkpoint.chosen(tmp_path)


@pytest.mark.parametrize("operation", range(25))
def test_a_kill_at_any_file_operation_loses_no_checkpoint(tmp_path, monkeypatch, operation):
    """An exception that nothing catches stands for the kill: it stops the save before its n-th operation on files."""
    for images in (10, 20):
        saved(tmp_path, images, images / 100)
    whole = checkpoint.newest(tmp_path)
    again = Checkpoint(20, {"net": {"x": torch.ones(3)}}, {"best": None, "select": None})
    count = iter(range(operation))

    class Killed(BaseException):
        pass

    def counted(function):
        def run(*arguments, **keywords):
            if next(count, None) is None:
                raise Killed
            return function(*arguments, **keywords)

        return run

    for module, name in [(os, "replace"), (os, "fsync"), (shutil, "rmtree"), (checkpoint, "save_file")]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    killed = False
    try:
        checkpoint.save(tmp_path, again)
        checkpoint.save(tmp_path, Checkpoint(30, again.tensors, again.state))
        checkpoint.forget(tmp_path, 2)
    except Killed:
        killed = True
    monkeypatch.undo()
    assert killed or operation >= 24, "every operation is tried"
    checkpoint.resume(tmp_path, {}, {})
    found = checkpoint.newest(tmp_path)
    assert found.images >= whole.images
    assert {path.name for path in tmp_path.iterdir()} <= {f"checkpoint-{n:011d}" for n in (10, 20, 30)}
    for path in checkpoint._all(tmp_path):
        checkpoint.load(path)


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
