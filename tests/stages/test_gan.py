"""The gan stage by its front door: transfer, further averages, divergence, sizes that cannot be drawn."""

import pytest
import torch
from conftest import commands, debug

from eeg_gan import cli
from eeg_gan.data import features
from eeg_gan.data.loader import Reader
from eeg_gan.data.shards import Shards
from eeg_gan.stages import gan, gan_steps
from eeg_gan.stages.loading import load_generator
from eeg_gan.training import checkpoint
from eeg_gan.training.log import read_stats


def words(runs, folder, *more):
    return ["gan", debug("gan"), f"run_dir={folder}", *commands(runs)["gan"], *more]


def test_transfer_takes_what_fits_and_says_what_not(tmp_path, runs, caplog):
    more = ["generator.architecture=residual", "total_images=16", f"transfer.run={runs}/gan", "transfer.freeze_d=1"]
    assert cli.main(words(runs, tmp_path / "t", *more)) == 0
    assert "tensors from" in caplog.text and "starts anew in skips.0.weight" in caplog.text
    source, own = checkpoint.chosen(runs / "gan"), checkpoint.newest(tmp_path / "t")
    frozen = "from_rgb.0.weight"
    assert own.tensors["d"][frozen].equal(source.tensors["d"][frozen])
    assert not own.tensors["d"]["conv.weight"].equal(source.tensors["d"]["conv.weight"])
    torch.testing.assert_close(own.tensors["g"]["constant"], source.tensors["g"]["constant"], atol=0.1, rtol=0)


def test_a_transfer_over_another_split_is_said(tmp_path, runs, caplog):
    """The pictures that are held out here may have been trained on there."""
    found = checkpoint.chosen(runs / "gan")
    state = {name: value for name, value in found.state.items() if name != "files"}
    state["data"] = {**state["data"], "split_digest": "another"}
    checkpoint.save(tmp_path / "other", checkpoint.Checkpoint(found.images, found.tensors, state))
    common = ["total_images=16", "evaluate.every=null"]
    assert cli.main(words(runs, tmp_path / "t", *common, f"transfer.run={runs}/gan")) == 0
    assert "may have seen held-out" not in caplog.text
    assert cli.main(words(runs, tmp_path / "u", *common, f"transfer.run={tmp_path}/other")) == 0
    assert "other was trained on another split or other data" in caplog.text


def test_training_asks_for_the_same_bits_each_time_where_it_is_told_to(tmp_path, runs, monkeypatch):
    whole, seen = gan_steps.step_generator, []

    def step(batch):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return whole(batch)

    monkeypatch.setattr(gan, "step_generator", step)
    common = ["total_images=16", "evaluate.every=null"]
    assert cli.main(words(runs, tmp_path / "d", *common, "deterministic=true")) == 0
    assert cli.main(words(runs, tmp_path / "f", *common)) == 0
    assert seen == [(True, False), (False, True)] and not torch.are_deterministic_algorithms_enabled()
    tensors = [checkpoint.newest(tmp_path / name).tensors["g"] for name in "df"]
    assert checkpoint.tensors_digest(tensors[0]) == checkpoint.tensors_digest(tensors[1])


def test_each_step_comes_at_its_interval_and_sees_a_picture_under_its_own_condition(tmp_path, runs, monkeypatch):
    """R1 every 3 batches of 16, path lengths every 2, p after 4 batches by 4 x 16 of 1,000 images."""
    came, pairs = [], []

    def watched(name):
        whole = getattr(gan, name)

        def step(batch, *given):
            came.append((name, batch.images // 16))
            if name == "step_discriminator":
                pairs.extend(zip(*given, strict=True))
            return whole(batch, *given)

        monkeypatch.setattr(gan, name, step)

    for name in ("step_discriminator", "step_r1", "step_generator", "step_path_length"):
        watched(name)
    more = ["condition={}", "augment={p: 0.3, every: 4, speed_kimg: 1}", "path_length={weight: 2.0, every: 2}"]
    assert cli.main(words(runs, tmp_path / "g", *more, "r1_every=3", "total_images=64", "evaluate.every=null")) == 0
    at = {name: [number for own, number in came if own == name] for name, _ in came}
    assert at["step_discriminator"] == at["step_generator"] == [0, 1, 2, 3]
    assert at["step_r1"] == [0, 3] and at["step_path_length"] == [0, 2]
    assert abs(checkpoint.newest(tmp_path / "g").state["players"]["augment"]["p"] - 0.3) == pytest.approx(0.064)
    shards, known = Shards(runs / "prepare" / "index.json", ("train",)), features.load(runs / "embed")
    rows, reader = known.rows(shards.keys("train")), Reader(shards, "train")
    for picture, c in pairs:
        (trial,) = (rows == c).all(dim=1).nonzero()[0]
        assert gan.to_float(reader.batch([int(trial)])["image"])[0].equal(picture)


def test_every_average_is_kept_and_read(runs):
    found = checkpoint.chosen(runs / "gan")
    assert {"average", "average-500"} <= found.tensors.keys() and found.state["ema"] == [2000, 500]
    row = read_stats(runs / "gan")[-1]
    for tag in ("gradient/G (norm)", "path/mean length (1)", "images/per distinct picture (count)"):
        assert row[tag] > 0, tag


def test_a_run_that_diverges_goes_back_a_few_times_and_gives_up(tmp_path, runs, monkeypatch, capsys, caplog):
    """Every real picture turns bad after 64 images, so each return meets the same fate."""
    whole = gan_steps.step_generator

    def broken(batch):
        if batch.images >= 64:
            with torch.no_grad():
                batch.players.g.constant.grad = None
            monkeypatch.setattr(gan_steps, "generator_loss", lambda logits: logits.mean() * float("nan"))
        return whole(batch)

    monkeypatch.setattr(gan, "step_generator", broken)
    more = ["guard.every=2", "guard.bad_steps=1", "guard.rollbacks=2"]
    assert cli.main(words(runs, tmp_path / "d", *more)) == 2
    assert caplog.text.count("going back to 64 images") == 2
    assert "training diverged" in capsys.readouterr().err
    assert checkpoint.newest(tmp_path / "d").images == 64


def test_a_half_type_trains_and_generates_in_full(tmp_path, runs):
    more = ["precision=bfloat16", "half_levels=2", "total_images=32"]
    assert cli.main(words(runs, tmp_path / "h", *more)) == 0
    given = [f"gan={tmp_path}/h", f"features={runs}/embed", f"run_dir={tmp_path}/i"]
    assert cli.main(["generate", debug("generate"), *given]) == 0


def test_the_transition_is_logged(tmp_path, runs):
    more = ["generator.conditioning=transitional", "discriminator.two_heads=true", "condition.transition=[32, 96]"]
    assert cli.main(words(runs, tmp_path / "f", *more, "snapshot_every=32")) == 0
    weights = [row["condition/weight (0 to 1)"] for row in read_stats(tmp_path / "f")]
    assert weights == [0, 0.25, 0.75, 1]
    at = {images: load_generator(tmp_path / "f", at=images)[0].condition_weight for images in (64, 128)}
    assert at == {64: 0.25, 128: 1.0}, "a picture is drawn with the weight that its network was trained at"


def test_a_run_stopped_three_times_is_the_unbroken_one(tmp_path, runs):
    """At counts that no interval divides, with a p that moves, every transform, a transition and further averages."""
    more = ["augment.p=0.3", "augment.pipe=bgcfnc", "augment.every=3", "augment.speed_kimg=0.5", "r1_every=2"]
    more += ["path_length.every=3", "ema_more=[500, 100]", "guard.every=5", "total_images=144", "evaluate.every=null"]
    more += ["generator.conditioning=transitional", "discriminator.two_heads=true", "condition.transition=[20, 130]"]
    assert cli.main(words(runs, tmp_path / "whole", *more)) == 0
    for stop in (16, 70, 112):
        assert cli.main(words(runs, tmp_path / "broken", *more, f"stop_after={stop}")) == 75
    assert cli.main(words(runs, tmp_path / "broken", *more)) == 0
    whole, broken = checkpoint.newest(tmp_path / "whole"), checkpoint.newest(tmp_path / "broken")
    players = whole.state["players"]
    assert players["augment"]["p"] not in (0, 0.3, 0.8) and players["path_mean"] > 0 and whole.images == 144
    assert {"average", "average-500", "average-100", "g_optimiser"} <= whole.tensors.keys() == broken.tensors.keys()
    for name, group in whole.tensors.items():
        assert checkpoint.tensors_digest(group) == checkpoint.tensors_digest(broken.tensors[name]), name
    assert {k: v for k, v in whole.state.items() if k != "files"} == {
        k: v for k, v in broken.state.items() if k != "files"
    }
