"""Figures of the README on simulated data are those that were recorded, and reach what they have to reach."""

import json
import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "tests" / "bench" / "results"
PIPELINES = json.loads((RESULTS / "comparisons.json").read_text())["pipelines"]
STAGE_1 = [run for run in json.loads((RESULTS / "representation.json").read_text())["runs"] if run["size"] == 60]
SPEED = json.loads((RESULTS / "encode-cpu.json").read_text())


def row(start, text=README):
    """The row of a table that begins so."""
    [found] = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return found


def unrecorded(said, records):
    """Figures of a text, .12 and the like, that no record holds to as many digits."""
    known = [value for record in records for value in record.values() if value is not None]
    figures = re.findall(r"(?<![\w.])-?\.\d+", said)
    assert len(figures) >= 3
    return [f for f in figures if not any(abs(float(f) - x) <= 0.51 * 10 ** -(len(f.lstrip("-")) - 1) for x in known)]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_figure_of_a_comparison_was_recorded(name):
    assert (ROOT / "configs" / "pipeline" / f"{name}.yaml").exists()
    records = [m for seed in PIPELINES[name] for own in seed.values() for m in own.values()]
    assert not unrecorded(row(f"`{name}`"), records)


@pytest.mark.parametrize("encoder", ["lstm", "cnn", "tsconv"])
def test_stage_1_has_three_seeds_above_three_quarters(encoder):
    own = [run for run in STAGE_1 if run["encoder"] == encoder]
    shipped = {run["seed"]: run["encode/kmeans_accuracy"]["value"] for run in own if not run["set"]}
    assert shipped.keys() >= {0, 1, 2} and min(shipped.values()) >= 0.75
    table = README.split("<!-- representation -->")[1].partition("<!-- /representation -->")[0]
    assert not unrecorded(row(encoder, table), [run["encode/kmeans_accuracy"] for run in own])


def of_seeds(name, stage, metric):
    return [seed[stage][metric] for seed in PIPELINES[name]]


def test_unseen_classes_are_told_apart_three_times_better_than_by_chance():
    knn = of_seeds("unseen-simulated", "evaluate", "encode/knn_accuracy")
    assert len(knn) >= 3 and all(m["low"] > 3 * m["chance"] for m in knn)


def test_joint_fine_tuning_finds_more_pictures_than_stage_1_and_a_linear_map():
    joint = of_seeds("joint-simulated", "evaluate", "align/retrieval_top1")
    learnt = of_seeds("joint-simulated", "evaluate_map", "align/retrieval_top1")
    ridge = of_seeds("joint-simulated", "evaluate", "align/linear_map_top1")
    assert len(joint) >= 3
    assert all(a["value"] > max(b["value"], c["value"]) for a, b, c in zip(joint, learnt, ridge, strict=True))
    assert all(m["low"] > 0 for m in of_seeds("joint-simulated", "evaluate", "align/linear_map_top1_gain"))


def test_training_steps_cost_no_more_than_bare_ones():
    steps = {own["encoder"]: own["clock"] for own in SPEED["encoders"]}
    shares = [share for own in steps.values() for share in own["triplet_share_at_1024"].values()]
    assert max(own["step_ratio"] for own in steps.values()) <= 1.05 and steps["lstm"]["epoch_ratio"] >= 1.2
    assert max(shares) < 0.1
    assert max(own["peak_mb"] for own in SPEED["triplet"] if own["batch"] == 1024) < 1000
    said = README[README.index("A step of `encode`") :].partition("\n\n")[0]
    assert not unrecorded(
        said, [{"step": own["step_ratio"]} for own in steps.values()] + [{"share": x} for x in shares]
    )
    assert "{lstm[epoch_ratio]:.2f} and {cnn[epoch_ratio]:.2f} times".format(**steps) in said
