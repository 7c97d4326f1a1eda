"""Ways to align: what each leaves for later stages, what is kept of a tower, and what evaluate finds in it."""

import json

import pytest
import torch
from conftest import debug
from safetensors.torch import load_file

from eeg_gan import cli
from eeg_gan.config import from_dict
from eeg_gan.data.loader import Reader
from eeg_gan.data.shards import Shards
from eeg_gan.models.image_tower import ImageTower, TowerConfig, build_tower
from eeg_gan.stages.align import Config
from eeg_gan.stages.loading import embed_images, load_encoder, unique_images
from eeg_gan.stages.tower_cache import cached_embeddings
from eeg_gan.training import checkpoint

ALONE = ("lda=false", "generated=null")


def align(runs, run_dir, *words):
    common = [f"loader.index={runs}/prepare/index.json", f"run_dir={run_dir}", "total_images=64"]
    return cli.main(["align", debug("align"), *common, *words])


def test_a_map_leaves_the_encoder_as_it_was_and_is_part_of_the_feature(tmp_path, runs, capsys):
    assert align(runs, tmp_path / "a", f"encoder={runs}/encode", "learn=map") == 0
    held, stage1 = checkpoint.chosen(tmp_path / "a"), checkpoint.chosen(runs / "encode")
    assert checkpoint.tensors_digest(held.tensors["encoder"]) == checkpoint.tensors_digest(stage1.tensors["encoder"])
    assert (held.tensors["map"]["weight"] - torch.eye(len(held.tensors["map"]["bias"]))).abs().max() > 0
    loaded, first = load_encoder(tmp_path / "a"), load_encoder(runs / "encode")
    x = torch.randn(3, held.state["data"]["n_chans"], held.state["data"]["n_times"])
    with torch.no_grad():
        z = first.module.eval()(x) @ held.tensors["map"]["weight"].T + held.tensors["map"]["bias"]
        torch.testing.assert_close(loaded.module.eval()(x), torch.nn.functional.normalize(z, dim=1))
    assert loaded.digest != first.digest
    assert align(runs, tmp_path / "b", f"encoder={tmp_path}/a") == 2, "fine-tuning starts from encode"
    for key in ("adapt", "start_from"):  # either would lose the map without a word
        words = [f"loader.index={runs}/prepare/index.json", f"{key}={tmp_path}/a", f"run_dir={tmp_path}/{key}"]
        assert cli.main(["encode", debug("encode"), *words]) == 2
        assert f"{key}={tmp_path}/a is a run with learn=map" in capsys.readouterr().err
        assert not (tmp_path / key / "config.yaml").exists(), "what was refused at the start claims no folder"


def test_an_encoder_from_scratch_needs_no_stage_1(tmp_path, runs):
    words = ["encoder=null", "architecture={name: tsconv, dim: 12, filters: 4, subjects: true}"]
    assert align(runs, tmp_path / "a", *words) == 0
    assert load_encoder(tmp_path / "a").config.dim == 12 and load_encoder(tmp_path / "a").subjects["subjects"]
    assert align(runs, tmp_path / "b", f"encoder={runs}/encode", "architecture.dim=12") == 2
    assert align(runs, tmp_path / "b", "encoder=null", "learn=map") == 2


def test_micro_batches_of_a_trained_tower_change_nothing_but_memory(tmp_path, runs, monkeypatch, capsys):
    """The loss sees the whole batch; the tower sees parts of it, a second time while backward runs."""
    sizes, own = [], ImageTower.forward
    monkeypatch.setattr(ImageTower, "forward", lambda self, x: (self.training and sizes.append(len(x))) or own(self, x))
    common = [f"encoder={runs}/encode", "tower.frozen=false", "optim.name=sgd", "optim.lr=0.05", "evaluate_every=64"]
    for name, more in (("whole", []), ("parts", ["micro_batch=12"])):
        assert align(runs, tmp_path / name, *common, *more) == 0
    assert sizes == [32, 32] + 2 * [12, 12, 8, 8, 12, 12]
    whole, parts = (checkpoint.newest(tmp_path / name).tensors for name in ("whole", "parts"))
    for network in ("tower", "encoder", "projection", "scale"):
        for key, value in whole[network].items():
            torch.testing.assert_close(parts[network][key], value, rtol=1e-4, atol=1e-6, msg=f"{network} {key}")
    assert align(runs, tmp_path / "n", *common, "micro_batch=8", "tower.model=timm:test_resnet") == 2
    assert "batch norms see one part at a time" in " ".join(capsys.readouterr().err.split())
    config = from_dict(Config, {"run_dir": "r", "loader": {"index": "i"}, "tower": {"frozen": False}}, "test")
    assert "set micro_batch=64," in config.with_less_memory(2)


def test_embeddings_are_kept_by_tower_and_picture(tmp_path, runs):
    shards, device = Shards(runs / "prepare" / "index.json", ("train", "val")), torch.device("cpu")
    tower = build_tower(TowerConfig("tiny"))
    readers = {split: Reader(shards, split) for split in ("train", "val")}
    first = {split: unique_images(shards, split)[0] for split in readers}
    for split, reader in readers.items():
        found = cached_embeddings(tower, reader, first[split], tmp_path, device)
        torch.testing.assert_close(found, embed_images(tower, reader, first[split], device))
    (path,) = tmp_path.glob("*.safetensors")
    assert len(load_file(path)["embeddings"]) == len(first["train"]) + len(first["val"])

    class Blind(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("a picture was looked at again")

    forward, tower.forward = tower.forward, Blind().forward
    again = cached_embeddings(tower, readers["train"], first["train"][::-1], tmp_path, device)
    tower.forward = forward
    torch.testing.assert_close(again, embed_images(tower, readers["train"], first["train"][::-1], device))

    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    found = cached_embeddings(tower, readers["val"], first["val"], tmp_path, device)
    torch.testing.assert_close(found, embed_images(tower, readers["val"], first["val"], device))
    other = build_tower(TowerConfig("tiny", layer=0))
    assert cached_embeddings(other, readers["val"], first["val"], tmp_path, device).shape[1] == other.dim
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.fixture(scope="module")
def metrics(runs, tmp_path_factory):
    """Of an evaluation with everything that alignment and image2eeg have to say."""
    folder, index = tmp_path_factory.mktemp("aligned"), f"loader.index={runs}/prepare/index.json"
    embed = ["embed", debug("embed"), index]
    assert cli.main([*embed, f"encoder={runs}/encode", f"run_dir={folder}/stage1"]) == 0
    assert cli.main([*embed, "encoder=null", f"image2eeg={runs}/image2eeg", f"run_dir={folder}/predicted"]) == 0
    words = [f"align={runs}/align", f"aligned_features={runs}/embed", f"features={folder}/stage1", *ALONE]
    words += [f"image2eeg_features={folder}/predicted", f"run_dir={folder}/evaluate"]
    assert cli.main(["evaluate", debug("evaluate"), index, *words]) == 0
    return json.loads((folder / "evaluate" / "metrics.json").read_text())


def test_every_figure_of_retrieval_is_there_with_its_chance(metrics):
    pictures, classes, trials = 8, 4, 24  # of the debug data's test split; three people see each picture
    chances = {
        "align/retrieval_top1": 1 / pictures,
        "align/retrieval_top5": 5 / pictures,
        "align/retrieval_top10": 1,
        "align/retrieval_2way_top1": 1 / 2,
        "align/class_top1": 1 / classes,
        "align/image_to_eeg_top1": 1 / (trials - 2),
        "align/image_to_eeg_class_top1": 1 / classes,
        "align/retrieval_mean_of_2_top1": 1 / pictures,
        "align/retrieval_mean_of_all_top5": 5 / pictures,
        "align/linear_map_top1": 1 / pictures,
        "image2eeg/retrieval_top1": 1 / pictures,
        "image2eeg/class_top1": 1 / classes,
        "image2eeg/kmeans_accuracy": 1 / classes,
        "image2eeg/knn_accuracy": 1 / classes,
    }
    for name, chance in chances.items():
        m = metrics[name]
        assert m["chance"] == pytest.approx(chance), name
        assert m["low"] <= m["value"] <= m["high"] and 0 <= m["value"] <= 1
    assert (
        metrics["align/retrieval_mean_of_2_top1"]["n"] == metrics["align/retrieval_mean_of_all_top1"]["n"] == pictures
    )
    assert metrics["align/retrieval_2way_top1"]["value"] >= metrics["align/retrieval_top1"]["value"]
    gain = metrics["align/linear_map_top1_gain"]
    ours, mapped = (metrics[f"align/{name}_top1"]["value"] for name in ("retrieval", "linear_map"))
    assert gain["value"] == pytest.approx(ours - mapped) and gain["low"] <= gain["value"] <= gain["high"]
    assert not [name for name in metrics if "eeg_mean_of" in name], "nobody saw a picture twice"
    assert metrics["image2eeg/cosine"]["value"] > metrics["image2eeg/cosine"]["chance"] - 0.5


def test_predicted_features_are_judged_by_those_they_were_learnt_from(tmp_path, runs, capsys):
    index = f"loader.index={runs}/prepare/index.json"
    embed = ["embed", debug("embed"), index, "encoder=null", f"image2eeg={runs}/image2eeg", f"run_dir={tmp_path}/p"]
    assert cli.main(embed) == 0
    words = ["evaluate", debug("evaluate"), index, *ALONE, "features=null", f"run_dir={tmp_path}/e"]
    words += ["align=null", "aligned_features=null"]
    assert cli.main([*words, f"image2eeg_features={tmp_path}/p"]) == 2
    assert "give the run_dir of embed that image2eeg learned from" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*words, f"image2eeg_features={runs}/embed"]) == 2
