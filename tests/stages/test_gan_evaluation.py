"""Evaluation inside training: what it gives, what it keeps, and that training does not feel it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import commands, debug
from test_bad_input import refused

from eeg_gan import cli
from eeg_gan.config import from_dict, read_yaml
from eeg_gan.data import features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.metrics import generated
from eeg_gan.metrics.detectors import DetectorConfig, SmallClassifier
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages import gan, gan_steps, judging
from eeg_gan.stages.gan_evaluation import GanEvaluation, order
from eeg_gan.stages.judging import Judge, class_pairs, look_at_real, open_detector
from eeg_gan.stages.loading import open_shards, unique_images
from eeg_gan.training import checkpoint
from eeg_gan.training.log import read_stats

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from test_two_processes import on_two_ranks  # noqa: E402

TINY = DetectorConfig(n_classes=4, image_size=16, untrained=True)
JUDGE = "[untrained-classifier]"


def words(runs, folder, *more):
    return ["gan", debug("gan"), f"run_dir={folder}", *commands(runs)["gan"], *more]


def digests(run_dir, images):
    found = checkpoint.load(run_dir / f"checkpoint-{images:011d}")
    return {name: checkpoint.tensors_digest(group) for name, group in found.tensors.items()}


def test_training_does_not_feel_evaluation(tmp_path, runs):
    assert cli.main(words(runs, tmp_path / "none", "evaluate.every=null")) == 0
    assert cli.main(words(runs, tmp_path / "often", "evaluate.every=16", "evaluate.n_images=6")) == 0
    whole = digests(tmp_path / "none", 128)
    assert digests(tmp_path / "often", 128) == whole == digests(runs / "gan", 128)
    assert not (tmp_path / "none" / "best.json").exists()
    rows = [row for row in read_stats(tmp_path / "often") if f"val/kid{JUDGE} (1)" in row]
    assert [row["images"] for row in rows] == list(range(16, 129, 16))


def test_every_figure_is_logged_beside_that_of_real_pictures(runs):
    row = read_stats(runs / "gan")[-1]
    known = {tag.removeprefix("val/").split("[")[0] for tag in row if tag.startswith("val/") and " of real" not in tag}
    either = {"kid_train", "recall", "coverage", "perceptual_diversity", "nearest_train", "copies"}
    expected = {*generated.METRICS, *either, "precision", "density"} - {
        "precision_recall",
        "density_coverage",
        "nearest",
    }
    assert known == expected
    beside = {tag.split("[")[0] for tag in row if " of real pictures" in tag}
    assert beside == {f"val/{name}" for name in expected - {"ppl", "copies", "kid_train"}}
    assert row[f"val/class_accuracy{JUDGE} (0 to 1)"] <= 1 and row[f"val/ppl{JUDGE} (squared distance per path)"] >= 0


@pytest.mark.parametrize("select, better", [("kid", min), ("density", max)])
def test_the_best_checkpoint_is_kept_and_chosen(tmp_path, runs, select, better):
    more = [
        "evaluate.every=16",
        "evaluate.n_images=6",
        f"evaluate.select={select}",
        "evaluate.metrics=[kid,density_coverage]",
    ]
    assert cli.main(words(runs, tmp_path / "g", *more)) == 0
    tag = f"val/{select}{JUDGE} (1)"
    values = [(row[tag], row["images"]) for row in read_stats(tmp_path / "g") if tag in row]
    best = better(value for value, _ in values)
    images = next(images for value, images in values if value == best)
    marked = json.loads((tmp_path / "g" / "best.json").read_text())
    assert marked == {"checkpoint": f"checkpoint-{images:011d}", "metric": select, "value": best}
    found = checkpoint.chosen(tmp_path / "g")
    assert found.images == images and found.state["best"][select] == best
    assert checkpoint.newest(tmp_path / "g").state["best"]["images"] == images


def test_what_is_not_saved_is_not_the_best(tmp_path, runs, monkeypatch):
    """As if steps had been left out just before every evaluation: only the last weights are saved."""
    monkeypatch.setattr(gan_steps.Guard, "healthy", lambda self: False)
    more = ["evaluate.every=16", "evaluate.n_images=6", "evaluate.metrics=[kid]", "total_images=96"]
    assert cli.main(words(runs, tmp_path / "g", *more)) == 0
    assert json.loads((tmp_path / "g" / "best.json").read_text())["checkpoint"] == "checkpoint-00000000096"
    assert checkpoint.newest(tmp_path / "g").state["best"]["images"] == 96


def test_nothing_is_selected_where_nothing_is_asked(tmp_path, runs):
    more = ["evaluate.select=null", "evaluate.metrics=[fid]", "total_images=64"]
    assert cli.main(words(runs, tmp_path / "g", *more)) == 0
    assert not (tmp_path / "g" / "best.json").exists() and checkpoint.chosen(tmp_path / "g").images == 64


@pytest.mark.parametrize(
    "more, said",
    [
        (["evaluate.detector=null"], "needs a judge"),
        (["evaluate.n_images=5"], "n_images is even"),
        (["evaluate.metrics=[fid]"], "select=kid is not among"),
        (["evaluate.detector={name: inception}"], "ppl measures small steps"),
        (["evaluate.select=best"], "evaluate.select"),
        (["evaluate.select=probe_accuracy"], "gives fid, kid"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(capsys, tmp_path, runs, more, said):
    assert said in refused(capsys, words(runs, tmp_path / "g", *more))


def evaluation(runs, folder, **changes):
    values = read_yaml(debug("gan"))
    values |= {
        "run_dir": f"{folder}/gan",
        "loader": {"index": f"{runs}/prepare/index.json"},
        "features": f"{runs}/embed",
    }
    values["evaluate"] |= {"n_images": 24, "batch": 4, **changes}
    config = from_dict(gan.Config, values, "test")
    shards = open_shards(config.loader, ("train", "val"))
    readers = (Reader(shards, split) for split in ("train", "val"))
    return GanEvaluation(config, *readers, features.load(config.features), torch.device("cpu"))


def figures(runs, folder):
    torch.manual_seed(3)
    g = Generator(z_dim=8, c_dim=16, w_dim=8, resolution=16, channel_base=128, channel_max=8)
    means, _ = evaluation(runs, folder).figures(g.eval())
    return {name: torch.tensor(value) for name, value in means.items()}


def test_two_processes_measure_what_one_does(tmp_path, runs):
    """A batch of another size rounds otherwise, and a step of path length divides rounding by its square."""
    whole = figures(runs, tmp_path / "one")
    halves = on_two_ranks(figures, tmp_path, runs, tmp_path / "two")
    for half in halves:
        assert half.keys() == whole.keys()
        for name in half:
            torch.testing.assert_close(half[name], whole[name], rtol=5e-2 if name == "ppl" else 1e-3, atol=1e-4)
    assert halves[0] == halves[1]


def test_fakes_are_pairs_of_trials_in_turn():
    trials = order(0, 5, 24)
    assert (trials[::2] == trials[1::2]).all() and sorted(trials[:10]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert np.bincount(trials).min() >= 4 and (order(0, 5, 24) == trials).all() and len(order(0, 50, 6)) == 6


@pytest.fixture
def reader(runs):
    shards = open_shards(LoaderConfig(index=f"{runs}/prepare/index.json"), ("train", "val"))
    return Reader(shards, "val")


def judge_of(config, reader):
    return Judge(config, None, reader.shards.card.class_names, torch.device("cpu"))


def test_real_pictures_are_counted_once_and_looked_at_once(tmp_path, reader, monkeypatch, caplog):
    judge = judge_of(TINY, reader)
    seen = look_at_real(judge, reader, tmp_path)
    first, _ = unique_images(reader.shards, "val")
    assert len(seen) == len(first) < reader.n and (seen.labels == reader.labels[first]).all()
    (kept,) = tmp_path.iterdir()

    def never(*_):
        raise AssertionError("looked again")

    with monkeypatch.context() as patched:
        patched.setattr(judge, "look", never)
        assert (look_at_real(judge, reader, tmp_path).features == seen.features).all()
    raw = bytearray(kept.read_bytes())
    raw[-40] ^= 1
    for damaged in (bytes(raw), raw[:-8], b""):
        kept.write_bytes(damaged)
        assert (look_at_real(judge, reader, tmp_path).features == seen.features).all()
    assert caplog.text.count("looked at again") == 3
    look_at_real(judge_of(DetectorConfig(n_classes=4, image_size=32, untrained=True), reader), reader, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "another detector, another file"


def test_judges_of_every_kind(tmp_path, reader):
    """A tower tells no classes apart, so it is probed; opening one moves no random stream."""
    torch.jit.trace(SmallClassifier(7, 16).eval(), torch.zeros(1, 3, 16, 16)).save(tmp_path / "own.pt")
    towers = [DetectorConfig("tower", model=name, untrained=True) for name in ("tiny", "timm:test_resnet")]
    for config in (*towers, DetectorConfig("torchscript", str(tmp_path / "own.pt"))):
        before = torch.random.get_rng_state()
        judge = judge_of(config, reader)
        assert torch.random.get_rng_state().equal(before) and judge.columns is None and not judge.has_maps
        real = look_at_real(judge, reader, tmp_path / "cache")
        sets = judge.sets(real, real, 0)
        assert sets.accuracy == "probe_accuracy" and set(sets.predict(real)) <= set(range(4))
        pictures = reader.batch([0, 1])["image"].float()
        assert (
            judge.apart(pictures, pictures).tolist() == [0, 0] and (judge.apart(pictures, pictures.flip(0)) > 0).all()
        )
    assert all(
        a.equal(b) for a, b in zip(open_detector(TINY).parameters(), open_detector(TINY).parameters(), strict=True)
    )


def test_resnet_on_other_classes_is_probed(monkeypatch, reader):
    monkeypatch.setattr(judging, "open_detector", lambda _: SmallClassifier(10, 16).eval())
    assert judge_of(DetectorConfig("resnet56", "w.safetensors"), reader).columns is None


def test_pairs_are_of_one_class():
    assert class_pairs(np.array([1, 0, 1, 1, 0])) == [(1, 4), (0, 2)] and class_pairs(np.array([0, 1])) == []


def test_evaluate_gives_every_figure_with_controls(tmp_path, runs):
    common = ["generate", debug("generate"), *commands(runs)["generate"], "per_trial=2", "limit=8"]
    assert cli.main([*common, f"run_dir={tmp_path}/own"]) == 0
    assert cli.main([*common, f"run_dir={tmp_path}/shuffled", "condition=shuffled"]) == 0
    given = [*commands(runs)["evaluate"][:2], f"generated={tmp_path}/own", f"generated_shuffled={tmp_path}/shuffled"]
    run = ["evaluate", debug("evaluate"), *given, "align=null", "aligned_features=null", "lda=false"]
    assert cli.main([*run, f"run_dir={tmp_path}/e"]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    names = ("fid", "kid", "kid_train", "inception_score", "precision", "recall", "density", "coverage", "intra_fid")
    for name in (*names, "diversity", "perceptual_diversity", "nearest_train", "copies"):
        for control in ("", "_shuffled_eeg"):
            assert f"generate/{name}{JUDGE}{control}" in metrics, name
    assert metrics[f"generate/ppl{JUDGE}"]["n"] and f"generate/ppl{JUDGE}_shuffled_eeg" not in metrics
    assert metrics[f"generate/copies{JUDGE}"]["chance"] == 0.05
    for name in ("precision", "density", "nearest_train", "ppl", "diversity"):
        entry = metrics[f"generate/{name}{JUDGE}"]
        assert entry["low"] <= entry["value"] <= entry["high"], name
    for name in ("diversity", "nearest_train", "coverage", "intra_fid"):
        assert f"generate/{name}{JUDGE}_real" in metrics
