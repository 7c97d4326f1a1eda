"""What evaluate finds in features: probes, fine-tuning, comparison, unseen classes, other data, seeds."""

import json

import pytest
import torch
import yaml
from conftest import commands, debug
from safetensors.torch import load_file

from eeg_gan import cli
from eeg_gan.data import features
from eeg_gan.training import checkpoint

ACCURACIES = ("kmeans", "knn", "svm", "svm_rbf", "logistic")


def index_of(runs):
    return commands(runs)["embed"][0]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def judged(runs, tmp_path_factory):
    """An encoder, one that starts from it by cross-entropy, features of both, and what evaluate says."""
    folder, index = tmp_path_factory.mktemp("judged"), index_of(runs)
    tune = ["start_from=" + str(runs / "encode"), "loss=cross_entropy", "select=head_accuracy", "optim.lr=1e-2"]
    words = [index, *tune, "encoder.name=lstm", "encoder.dim=128", "encoder.filters=40", f"run_dir={folder}/tuned"]
    assert cli.main(["encode", debug("encode"), *words]) == 0
    for name, encoder in (("first", runs / "encode"), ("second", folder / "tuned")):
        assert cli.main(["embed", debug("embed"), index, f"encoder={encoder}", f"run_dir={folder}/{name}"]) == 0
    keys = {
        "run_dir": str(folder / "evaluate"),
        "loader": {"index": str(runs / "prepare" / "index.json")},
        "features": str(folder / "first"),
        "against": str(folder / "second"),
        "finetuned": str(folder / "tuned"),
        "encoder": str(runs / "encode"),
        "permutations": 99,
    }
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(keys))
    assert cli.main(["evaluate", str(folder / "evaluate.yaml")]) == 0
    return folder


def test_every_measure_has_both_intervals_and_p(judged):
    metrics = metrics_of(judged / "evaluate")
    for name in (*ACCURACIES, "finetuned"):
        m = metrics[f"encode/{name}_accuracy"]
        assert m["low"] <= m["value"] <= m["high"] and 0.01 <= m["p"] <= 1 and m["n"] == 24, name
        assert m["low_subjects"] <= m["value"] <= m["high_subjects"], name
    for name in ACCURACIES:
        gain = metrics[f"encode/{name}_accuracy_gain"]
        assert -1 <= gain["low"] <= gain["value"] <= gain["high"] <= 1 and gain["chance"] == 0
    subjects = json.loads((judged / "evaluate" / "subjects.json").read_text())
    for name, own in subjects.items():
        whole = sum(m["value"] * m["n"] for m in own.values()) / 24
        assert len(own) == 3 and whole == pytest.approx(metrics[name]["value"])


def test_when_where_and_in_which_band_are_there_for_the_report(judged):
    metrics, details = metrics_of(judged / "evaluate"), load_file(judged / "evaluate" / "details.safetensors")
    bands = {name for name in metrics if name.startswith("bands/")}
    assert bands == {"bands/all"} | {
        f"bands/{band}_{how}" for band in ("delta", "theta", "alpha", "beta", "gamma") for how in ("removed", "alone")
    }
    assert details["channel_importance"].shape == (12,)
    times, curve = details["time_s"], details["time_accuracy"]
    assert (-0.2 <= times).all() and (times <= 0.8).all() and (times.diff() > 0).all()
    assert curve.shape == (len(times), 3) and (curve[:, 1] <= curve[:, 0]).all()


def test_a_fine_tuned_run_starts_from_the_other_encoder(runs, judged, capsys):
    began, tuned = checkpoint.chosen(runs / "encode"), checkpoint.chosen(judged / "tuned")
    assert tuned.state["encoder"] == began.state["encoder"], "though its config named the default one"
    ends, starts = (run.tensors["encoder"] for run in (tuned, began))
    moved = {name: (ends[name] - starts[name]).abs().max() for name in starts}
    assert 0 < max(moved.values()) < 0.5, "all of it learns, from where the other run ended"
    assert "head_accuracy" in tuned.state["best"] and tuned.tensors["head"]["linear.weight"].shape == (4, 16)
    words = [index_of(runs), f"start_from={runs}/encode", "encoder.name=erp", f"run_dir={judged}/other"]
    assert cli.main(["encode", debug("encode"), *words]) == 2
    assert "has another encoder" in capsys.readouterr().err


def test_features_of_another_encoder_are_not_ablated(runs, judged, capsys):
    words = [f"encoder={judged}/tuned", f"run_dir={judged}/wrong"]
    assert cli.main(["evaluate", str(judged / "evaluate.yaml"), *words]) == 2
    assert "features of another encoder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Shards whose test split is the whole of two classes, with fewer electrodes than the debug data."""
    folder = tmp_path_factory.mktemp("unseen")
    keys = yaml.safe_load(open(debug("prepare")))
    keys["source"]["simulated"] |= {"seed": 3, "n_classes": 5, "n_chans": 11}
    from eeg_gan.data.sources.rendering import class_looks

    names = [look.name for look in class_looks(3, 5)]
    keys |= {"run_dir": str(folder / "prepare")}
    keys["split"] = {"by": "stimulus", "train": 0.8, "val": 0.2, "test": 0, "unseen_classes": names[:2]}
    (folder / "prepare.yaml").write_text(yaml.safe_dump(keys))
    assert cli.main(["prepare", str(folder / "prepare.yaml")]) == 0
    return folder


def test_an_encoder_reads_other_data_and_unseen_classes_are_judged_in_folds(runs, unseen, capsys):
    index = f"loader.index={unseen}/prepare/index.json"
    embed = ["embed", debug("embed"), index, f"encoder={runs}/encode"]
    assert cli.main([*embed, f"run_dir={unseen}/a"]) == 2
    assert "electrodes must be the same" in capsys.readouterr().err
    assert cli.main([*embed, f"run_dir={unseen}/b", "other_data=true"]) == 2
    assert "absent=interpolate" in capsys.readouterr().err
    assert cli.main([*embed, f"run_dir={unseen}/z", "other_data=true", "absent=interpolate"]) == 0
    known = features.load(unseen / "z")
    torch.testing.assert_close(known.features.norm(dim=1), torch.ones(len(known.keys)))
    (unseen / "e.yaml").write_text(
        yaml.safe_dump({"run_dir": f"{unseen}/e", "loader": {"index": f"{unseen}/prepare/index.json"}, "folds": 3})
    )
    assert cli.main(["evaluate", str(unseen / "e.yaml"), f"features={unseen}/z", "permutations=99"]) == 0
    metrics = metrics_of(unseen / "e")
    for name in ("encode/kmeans_accuracy", "encode/svm_accuracy", "lda/accuracy"):
        assert metrics[name]["chance"] == 0.5 and metrics[name]["value"] >= 0.3 and metrics[name]["n"] == 54, name
    same = ["embed", debug("embed"), index_of(runs), f"encoder={runs}/encode", "other_data=true"]
    assert cli.main([*same, f"run_dir={unseen}/same"]) == 2
    assert "trained on these very data" in capsys.readouterr().err


def test_seeds_train_and_judge_anew_on_one_split(tmp_path, capsys):
    stages = yaml.safe_load(open(debug("pipeline")))["stages"]
    stages = {name: stages[name] for name in ("prepare", "encode", "embed")}
    stages["evaluate"] = {"features": "{run_dir}/embed", "permutations": 0, "time_resolved": False}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"run_dir": f"{tmp_path}/p", "stages": stages}, sort_keys=False))
    assert cli.main(["pipeline", str(path)]) == 0
    first = (tmp_path / "p/evaluate/metrics.json").read_bytes()
    assert cli.main(["pipeline", str(path), "seeds=2"]) == 0, "more seeds go on from there"
    assert (tmp_path / "p/evaluate/metrics.json").read_bytes() == first
    second = metrics_of(tmp_path / "p/seed-1/evaluate")
    found = json.loads((tmp_path / "p/seeds.json").read_text())["evaluate"]
    values = [json.loads(first)["encode/knn_accuracy"]["value"], second["encode/knn_accuracy"]["value"]]
    assert found["encode/knn_accuracy"]["values"] == values
    assert found["lda/accuracy"]["sd"] == 0, "the data are the same"
    weights = [checkpoint.chosen(tmp_path / p).tensors["encoder"] for p in ("p/encode", "p/seed-1/encode")]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    assert not (tmp_path / "p/seed-1/prepare").exists()
    config = yaml.safe_load((tmp_path / "p/seed-1/embed/config.yaml").read_text())
    assert config["encoder"] == f"{tmp_path}/p/seed-1/encode"
