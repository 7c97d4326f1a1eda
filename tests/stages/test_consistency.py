"""Stages that meet through files refuse what does not belong together, in one line."""

import json
import shutil

import pytest
import torch
from conftest import commands, debug
from test_bad_input import refused

from eeg_gan import cli
from eeg_gan.config import UserError, from_dict
from eeg_gan.data import features
from eeg_gan.metrics import detectors
from eeg_gan.metrics.detectors import CIFAR_CLASSES, DetectorConfig, logit_columns, shown_name
from eeg_gan.stages import gan_config
from eeg_gan.stages.loading import same_data, spread


def copied(runs, folder, **meta):
    """The features of the debug run, with another description."""
    known = features.load(runs / "embed")
    features.save(folder, known.features, known.keys, {**known.meta, **meta})
    return folder


@pytest.mark.parametrize("verb", ["gan", "image2eeg", "evaluate", "generate"])
def test_features_of_another_split_are_refused(capsys, runs, tmp_path, verb):
    z = copied(runs, tmp_path / "z", split_digest="0" * 64)
    words = [verb, debug(verb), *commands(runs)[verb], f"features={z}", f"run_dir={tmp_path}/r"]
    assert "was made on another split" in refused(capsys, words)


def test_aligned_features_must_come_from_the_aligned_encoder(capsys, runs, tmp_path):
    z = copied(runs, tmp_path / "z", encoder_digest="0" * 64)
    words = ["evaluate", debug("evaluate"), *commands(runs)["evaluate"], "lda=false", f"run_dir={tmp_path}/r"]
    assert "another encoder" in refused(capsys, [*words, f"aligned_features={z}"])


def test_generate_takes_features_of_its_generator_only(capsys, runs, tmp_path):
    z = copied(runs, tmp_path / "z", encoder_digest="0" * 64)
    words = ["generate", debug("generate"), *commands(runs)["generate"], f"features={z}", "limit=2"]
    assert "another encoder" in refused(capsys, [*words, f"run_dir={tmp_path}/r"])
    copied(runs, z, encoder_digest="0" * 64, of="images through image2eeg")
    assert cli.main([*words, f"run_dir={tmp_path}/r"]) == 0
    known = features.load(z)
    features.save(z, torch.cat([known.features] * 2, dim=1), known.keys, known.meta)
    assert "of length 32" in refused(capsys, [*words, f"run_dir={tmp_path}/r2"])


def test_features_that_lack_a_split_or_a_description_are_refused(capsys, runs, tmp_path):
    words = ["evaluate", debug("evaluate"), *commands(runs)["evaluate"], f"features={tmp_path}/z"]
    known = features.load(runs / "embed")
    own = [i for i, split in enumerate(known.meta["splits"]) if split == "test"]
    meta = {**known.meta, "splits": ["test"] * len(own)}
    features.save(tmp_path / "z", known.features[own], [known.keys[i] for i in own], meta)
    assert "have no feature" in refused(capsys, [*words, f"run_dir={tmp_path}/r"])
    path = tmp_path / "z" / "features.json"
    path.write_text(json.dumps({"keys": [known.keys[i] for i in own], "splits": meta["splits"]}))
    assert "lacks encoder_digest, split_digest" in refused(capsys, [*words, f"run_dir={tmp_path}/r2"])


def test_evaluate_opens_only_what_it_judges(runs, tmp_path):
    shutil.copytree(runs / "prepare", tmp_path / "prepare")
    shutil.rmtree(tmp_path / "prepare" / "val")
    words = ["evaluate", debug("evaluate"), *commands(runs)["evaluate"], f"loader.index={tmp_path}/prepare/index.json"]
    assert cli.main([*words, "lda=false", f"run_dir={tmp_path}/r"]) == 0


def test_other_preprocessing_is_named():
    about = {"ch_names": ["Oz"], "n_times": 64, "sfreq": 64, "split_digest": "x"}
    trained = {**about, "preprocessing": {"config": {"highpass_hz": 0.5, "notch": True}, "source": {"path": "a"}}}
    given = {**about, "preprocessing": {"config": {"highpass_hz": 1.0, "notch": True}, "source": {"path": "b"}}}
    same_data(trained, {**given, "preprocessing": trained["preprocessing"]}, "run")
    with pytest.raises(UserError, match="highpass_hz: 0.5 -> 1.0"):
        same_data(trained, given, "run")


def test_spread_reaches_over_everything():
    assert spread(10, 5) == [0, 2, 4, 6, 8] and spread(3, 16) == [0, 1, 2]


@pytest.mark.parametrize(
    "words, said",
    [
        (["batch=12", "discriminator.mbstd_group=5"], "whole groups"),
        (["checkpoint_every=0"], "checkpoint_every and snapshot_every"),
        (["seed=-1"], "seed is 0 or more"),
        (["g_optim.schedule=cosine"], "unknown key g_optim.schedule"),
        (["d_optim.lr=0"], "lr is above 0"),
    ],
)
def test_gan_refuses(capsys, tmp_path, words, said):
    assert said in refused(capsys, ["gan", debug("gan"), *words, f"run_dir={tmp_path}/g"])


def test_gan_batch_that_does_not_fit_the_processes(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = refused(capsys, ["gan", debug("gan"), f"run_dir={tmp_path}/g"])
    assert "batch=16" in said and "set batch to 12 or 24" in said and not (tmp_path / "g").exists()


def test_gan_needs_sides_that_can_be_halved(capsys, runs, shards, tmp_path):
    index = json.loads(shards.read_text())
    index["shape"]["image"] = [17, 24, 3]
    shards.write_text(json.dumps(index))
    words = ["gan", debug("gan"), *commands(runs)["gan"], f"loader.index={shards}", f"run_dir={tmp_path}/g"]
    said = refused(capsys, words)
    assert "images are 17x24 px" in said and "run prepare again" in said


def test_adam_of_the_generator_keeps_its_keys():
    adam = gan_config.AdamConfig
    assert adam() == from_dict(adam, {"lr": 2.5e-3, "beta1": 0, "beta2": 0.99}, "here")


def test_an_untrained_judge_says_so():
    with pytest.raises(ValueError, match="has no weights"):
        DetectorConfig()
    assert shown_name(DetectorConfig(untrained=True)) == "untrained-classifier"
    assert shown_name(DetectorConfig(weights="w.safetensors", label="demo-classifier")) == "demo-classifier"
    assert shown_name(DetectorConfig(name="resnet56")) == "resnet56"


def test_logits_are_named():
    resnet, inception, own = DetectorConfig("resnet56"), DetectorConfig("inception"), DetectorConfig(untrained=True)
    assert logit_columns(resnet, 10, None, ("ship", "cat")) == [CIFAR_CLASSES.index("ship"), 3]
    assert logit_columns(inception, 1008, None, ("cat",)) is None
    assert logit_columns(own, 2, None, ("a", "b")) == [0, 1] and logit_columns(own, 2, ["b", "a"], ("a", "b")) == [1, 0]
    with pytest.raises(UserError, match="tells 10 classes apart, but 2 names"):
        logit_columns(resnet, 10, ["a", "b"], ("a", "b"))
    with pytest.raises(UserError, match="does not know the class 'zebra'"):
        logit_columns(resnet, 10, None, ("zebra",))


def test_a_judge_without_names_is_probed(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "logit_columns", lambda *_: None)
    words = ["evaluate", debug("evaluate"), *commands(runs)["evaluate"], "lda=false", f"run_dir={tmp_path}/r"]
    assert cli.main(words) == 0
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert "generate/fid[untrained-classifier]_real" in metrics
    assert not [name for name in metrics if "class_accuracy" in name]
    assert metrics["generate/probe_accuracy[untrained-classifier]_real"]["chance"] == 0.25
