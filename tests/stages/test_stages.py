"""Every verb by its debug config, through the front door."""

import json
import re

import pytest
import torch
from conftest import ROOT, commands, debug

from eeg_gan import cli
from eeg_gan.config import load
from eeg_gan.data import features
from eeg_gan.data.shards import Shards
from eeg_gan.stages.loading import keys_of, read_generated
from eeg_gan.training.log import read_stats

CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name != "cluster")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_validates_without_data(path):
    config = load(cli.stage(path.parent.name).Config, path)
    if path.parent.name == "pipeline":
        names = [step.name for step in cli.stage("pipeline").resolve(config.run_dir, config.stages)]
        assert names == list(config.stages)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_shows_every_key_with_its_meaning(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    from eeg_gan.config import keys

    for key in keys(cli.stage(verb).Config):
        assert key.meaning, f"{verb}: {key.name} has no meaning"
        assert key.name.split(".")[-1] in shown


@pytest.mark.parametrize("verb", ["encode", "align", "image2eeg", "gan"])
def test_training_stages_log_scalars_with_units_and_the_config(runs, verb):
    rows = read_stats(runs / verb)
    assert rows[-1]["images"] == 128
    assert all(re.search(r"\(.+\)$", tag) for tag in rows[-1] if tag != "images"), rows[-1]
    assert list((runs / verb).glob("events.out.tfevents.*"))


def test_encode_learns(tmp_path, runs):
    index = f"loader.index={runs}/prepare/index.json"
    assert (
        cli.main(
            [
                "encode",
                debug("encode"),
                index,
                f"run_dir={tmp_path}/e",
                "total_images=960",
                "loss=cross_entropy",
                "encoder.dropout=0",
                "optim.lr=3e-3",
                "mix=0.5",
            ]
        )
        == 0
    )
    losses = [row["loss/train (nats)"] for row in read_stats(tmp_path / "e")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "word",
    ["triplet.mining=semi_hard", "loss=cross_entropy", "encoder.name=lstm", "encoder.name=cnn", "encoder.name=erp"],
)
def test_encode_variants_run(tmp_path, runs, word):
    small = ["encoder.hidden=8", "encoder.layers=1", "encoder.widths=[4,8]", "total_images=32"]
    words = [f"loader.index={runs}/prepare/index.json", f"run_dir={tmp_path}/e", word, *small]
    assert cli.main(["encode", debug("encode"), *words]) == 0


def test_a_trained_tower_moves_and_a_frozen_one_is_cached(tmp_path, runs):
    words = [
        f"loader.index={runs}/prepare/index.json",
        f"encoder={runs}/encode",
        "total_images=64",
        f"run_dir={tmp_path}/a",
    ]
    assert cli.main(["align", debug("align"), *words, "tower.frozen=false"]) == 0
    assert list((tmp_path / "a").glob("checkpoint-*/tower.safetensors"))
    kept, trained = runs / "tower-cache", tmp_path / "tower-cache"
    assert len(list(kept.glob("*.safetensors"))) == 1, "align, image2eeg and evaluate share the one tower's embeddings"
    assert not trained.exists()


def test_features_cover_every_split_as_unit_vectors(runs):
    known, shards = features.load(runs / "embed"), Shards(runs / "prepare" / "index.json", ("train", "val", "test"))
    assert keys_of(known, "test") == shards.keys("test") and len(known.keys) == 108
    torch.testing.assert_close(known.features.norm(dim=1), torch.ones(108))


def test_generated_pictures_do_not_depend_on_the_batch(tmp_path, runs):
    for batch in (5, 64):
        words = [
            f"gan={runs}/gan",
            f"features={runs}/embed",
            f"run_dir={tmp_path}/{batch}",
            f"batch={batch}",
            "per_trial=2",
        ]
        assert cli.main(["generate", debug("generate"), *words]) == 0
    (keys, few), (_, many) = read_generated(tmp_path / "5"), read_generated(tmp_path / "64")
    assert len(keys) == 48 and few.shape == (48, 3, 16, 16)
    assert (few.int() - many.int()).abs().max() <= 1


def test_truncation_pulls_towards_the_mean_of_the_own_condition(tmp_path, runs):
    words = [f"gan={runs}/gan", f"features={runs}/embed", f"run_dir={tmp_path}/g", "psi=0.0", "per_trial=2"]
    assert cli.main(["generate", debug("generate"), *words]) == 0
    pictures = read_generated(tmp_path / "g")[1]
    assert (pictures[0::2] == pictures[1::2]).all(), "at psi 0 nothing of z is left"
    assert (pictures[0] != pictures[2]).any(), "conditions stay apart"


def test_shuffled_conditions_leave_no_trial_its_own(runs):
    generate = cli.stage("generate")
    known = features.load(runs / "embed")
    config = generate.Config("x", "g", "f", condition="shuffled")
    rows = known.rows(keys_of(known, "test"))
    keys, conditions = generate.chosen(config, generate.Source(keys_of(known, "test"), lambda i: rows[i]))
    assert (conditions != known.rows(keys)).any(dim=1).all()
    assert sorted(conditions[:, 0].tolist()) == sorted(known.rows(keys)[:, 0].tolist())


def test_training_refuses_the_test_split_and_readings_are_counted(runs):
    shards = Shards(runs / "prepare" / "index.json", ("train", "val"))
    with pytest.raises(ValueError, match="may not read the test split"):
        shards.read("test", 0)
    for verb in ("encode", "align", "image2eeg", "gan"):
        reads = json.loads((runs / verb / "run.json").read_text())["reads"]
        assert "test" not in reads and reads["train"] == 1
    assert json.loads((runs / "evaluate" / "run.json").read_text())["reads"]["test"] == 1


def test_metrics_are_flat_records(runs):
    metrics = json.loads((runs / "evaluate" / "metrics.json").read_text())
    for name in (
        "encode/kmeans_accuracy",
        "encode/knn_accuracy",
        "lda/accuracy",
        "align/retrieval_top1",
        "align/retrieval_top1_within_class",
        "generate/class_accuracy",
        "generate/class_accuracy_real",
        "generate/fid[untrained-classifier]",
    ):
        more = {"p", "low_subjects", "high_subjects"} if name.startswith("encode/") else set()
        assert metrics[name].keys() == {"value", "low", "high", "chance", "n"} | more, name
    top1 = metrics["align/retrieval_top1"]
    assert top1["low"] <= top1["value"] <= top1["high"] and top1["chance"] == pytest.approx(1 / 8) and top1["n"] == 24


def test_image2eeg_features_can_be_generated(tmp_path, runs):
    index = f"loader.index={runs}/prepare/index.json"
    embed = ["embed", debug("embed"), index, "encoder=null", f"image2eeg={runs}/image2eeg", f"run_dir={tmp_path}/e"]
    assert cli.main(embed) == 0
    words = [f"gan={runs}/gan", f"features={tmp_path}/e", f"run_dir={tmp_path}/g"]
    assert cli.main(["generate", debug("generate"), *words]) == 0
    words = [*commands(runs)["generate"], f"prior.features={tmp_path}/e", "prior.temperature=1e-6", "limit=4"]
    assert cli.main(["generate", debug("generate"), *words, f"run_dir={tmp_path}/p"]) == 0
    assert json.loads((tmp_path / "p" / "manifest.json").read_text())["prior"]["features"] == f"{tmp_path}/e"
    assert json.loads((tmp_path / "p" / "run.json").read_text())["reads"]["train"] >= 1
    for words in ([], ["prior.temperature=1e6"]):  # with a high temperature every trial has the same condition
        given = [*commands(runs)["generate"], f"prior.features={tmp_path}/e", "limit=4", "seeds=[1]", "noise=none"]
        assert cli.main(["generate", debug("generate"), *given, *words, f"run_dir={tmp_path}/t{len(words)}"]) == 0
    alike, apart = (len({f.read_bytes() for f in (tmp_path / t / "images").iterdir()}) for t in ("t1", "t0"))
    assert alike == 1 < apart
    given = [*commands(runs)["generate"], f"prior.features={tmp_path}/e", f"prior.measured={runs}/embed", "limit=4"]
    assert cli.main(["generate", debug("generate"), *given, f"run_dir={tmp_path}/m"]) == 0
    assert f"{runs}/embed/features.json" in json.loads((tmp_path / "m" / "run.json").read_text())["files"]


def test_a_done_stage_is_not_done_again(runs, caplog):
    before = (runs / "encode" / "stats.jsonl").read_bytes()
    words = [f"run_dir={runs}/encode", *commands(runs)["encode"]]
    assert cli.main(["encode", debug("encode"), *words]) == 0
    assert (runs / "encode" / "stats.jsonl").read_bytes() == before


def test_block_design_is_called_confounded_and_random_clean(tmp_path, runs):
    words = ["source.simulated.design=block", "source.simulated.images_per_class=12", f"run_dir={tmp_path}/p"]
    assert cli.main(["prepare", debug("prepare"), *words]) == 2
    words = [*words[:2], "split.allow_confounded=true", f"run_dir={tmp_path}/allowed"]
    assert cli.main(["prepare", debug("prepare"), *words]) == 0
    index = f"loader.index={tmp_path}/allowed/index.json"
    assert cli.main(["audit", debug("audit"), index, f"run_dir={tmp_path}/a"]) == 0
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert found["verdict"] == "confounded" and found["time_control"]["value"] > 0.8
    assert json.loads((runs / "audit" / "audit.json").read_text())["verdict"] == "clean"
    assert 0 <= found["shuffled_labels"]["low"] <= found["shuffled_labels"]["high"] <= 1


def test_prepare_gives_the_same_bytes_twice(tmp_path, runs):
    assert cli.main(["prepare", debug("prepare"), f"run_dir={tmp_path}/again"]) == 0
    for path in (runs / "prepare").glob("*/*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(runs / "prepare")).read_bytes()
    assert (runs / "prepare/index.json").read_bytes() == (tmp_path / "again/index.json").read_bytes()


def test_pipeline_runs_skips_and_reports(tmp_path):
    words = ["pipeline", debug("pipeline"), f"run_dir={tmp_path}/p"]
    assert cli.main(words) == 0
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("p/*/checkpoint-*/*")}
    assert cli.main(words) == 0
    assert first and first == {path: path.stat().st_mtime_ns for path in tmp_path.glob("p/*/checkpoint-*/*")}


def test_init_dataset_writes_a_skeleton_once(tmp_path, capsys):
    assert cli.main(["init-dataset", f"path={tmp_path}/mine"]) == 0
    assert (tmp_path / "mine" / "dataset.yaml").exists() and "eeg-gan prepare" in capsys.readouterr().out
    assert cli.main(["init-dataset", f"path={tmp_path}/mine"]) == 2


def test_doctor_names_what_is_there(capsys):
    assert cli.main(["doctor"]) == 0
    assert "torchvision" in capsys.readouterr().out


def test_config_prints_the_resolved_config(capsys):
    assert cli.main(["config", "encode", debug("encode"), "optim.lr=1e-2"]) == 0
    assert "lr: 0.01" in capsys.readouterr().out
