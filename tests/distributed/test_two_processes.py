"""Two gloo processes give what one gives on the joined data."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import commands, debug

from eeg_gan import cli
from eeg_gan.data.loader import Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import any_rank, average_gradients, gather, generator_at, own_part
from eeg_gan.losses.contrastive import ContrastiveConfig, clip_loss, contrastive
from eeg_gan.losses.supervised import SupervisedContrastiveConfig, supervised_contrastive
from eeg_gan.losses.triplet import cross_entropy, mined_triplet, semi_hard_triplet
from eeg_gan.training import checkpoint
from eeg_gan.training.inference import over_all
from eeg_gan.training.log import read_stats


def on_two_ranks(function, folder, *arguments):
    """Runs function(*arguments) in two processes; returns what each one gave."""
    mp.spawn(_rank, (function, str(folder), arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank, function, folder, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def network():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4)


def soft(z, labels, kind):
    """Trials of a class are half positives."""
    scale = torch.tensor([5.0, -2.0][: 1 + (kind == "siglip")])
    config = ContrastiveConfig(kind=kind, same_class=0.5)
    return contrastive(gather(z), gather(z).roll(1, 0), scale, config, torch.arange(len(labels)), labels)


LOSSES = {
    "clip": lambda z, labels, part: clip_loss(gather(z), gather(z).roll(1, 0), 5.0),
    "clip_soft": lambda z, labels, part: soft(z, labels, "clip"),
    "siglip_soft": lambda z, labels, part: soft(z, labels, "siglip"),
    "semi_hard": lambda z, labels, part: semi_hard_triplet(gather(z), labels),
    "mined": lambda z, labels, part: mined_triplet(gather(z), labels, margin=0.5),
    "supervised_contrastive": lambda z, labels, part: supervised_contrastive(
        gather(z), labels, SupervisedContrastiveConfig()
    ),
    "cross_entropy": lambda z, labels, part: cross_entropy(z, labels[part]),
}


def gradients(x, labels):
    """Of each loss, which sees the global batch of half as many trials per rank, averaged over ranks."""
    found, part = {}, own_part(len(x))
    for name, loss in LOSSES.items():
        net = network()
        loss(torch.nn.functional.normalize(net(x[part]), dim=1), labels, part).backward()
        average_gradients(net.parameters())
        found[name] = [p.grad for p in net.parameters()]
    return found


def test_losses_over_the_global_batch_give_the_gradient_of_one_process(tmp_path):
    x, labels = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2] * 4)
    whole = gradients(x, labels)
    assert all(any(p.abs().sum() > 0 for p in own) for own in whole.values())
    for half in on_two_ranks(gradients, tmp_path, x, labels):
        for name in LOSSES:
            torch.testing.assert_close(half[name], whole[name], msg=lambda said, n=name: f"{n}: {said}")


def seen(index):
    """The keys that this rank reads in one epoch, and the noise that it draws."""
    shards = Shards(index, ("train",))
    reader, read = Reader(shards, "train"), []
    for position in range(0, reader.n, 4):
        read += reader.batch(shuffled_at(3, reader.n, position, 4)[own_part(4)])["index"].tolist()
    noise = torch.randn(4, 2, generator=generator_at(3, "z", 8))[own_part(4)]
    return {"read": read, "noise": noise, "any": any_rank(dist.get_rank() == 1), "none": any_rank(False)}


def test_every_trial_is_read_once_and_noise_is_sliced(tmp_path, runs):
    first, second = on_two_ranks(seen, tmp_path, runs / "prepare" / "index.json")
    n = Shards(runs / "prepare" / "index.json", ("train",)).n("train")
    assert sorted(first["read"] + second["read"]) == list(range(n))
    whole = torch.randn(4, 2, generator=generator_at(3, "z", 8))
    torch.testing.assert_close(torch.cat([first["noise"], second["noise"]]), whole, rtol=0, atol=0)
    assert first["any"] and second["any"] and not first["none"]


def in_order(total):
    return over_all(lambda b: b["x"], lambda i: {"x": torch.tensor(i)[:, None] * torch.ones(1, 3)}, total, 2)


def test_a_whole_pipeline_runs_on_two_processes_and_logs_once(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "eeg_gan"]
    words = ["pipeline", debug("pipeline"), f"run_dir={tmp_path}/p"]
    subprocess.run([*launch, *words], check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "p" / "evaluate" / "metrics.json").exists()
    for verb in ("encode", "gan"):
        rows = [row["images"] for row in read_stats(tmp_path / "p" / verb)]
        assert rows == sorted(set(rows)) and rows, "a row is there once"
        assert len(list((tmp_path / "p" / verb).glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("total", [1, 7])
def test_inference_over_two_ranks_keeps_the_order(tmp_path, total):
    expected = torch.arange(total)[:, None] * torch.ones(1, 3)
    for whole in on_two_ranks(in_order, tmp_path, total):
        torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize(
    "verb, words",
    [
        ("encode", ["encoder.dropout=0"]),
        ("encode", ["encoder.dropout=0", "encoder.subjects=true", "loss=supervised_contrastive"]),
        ("align", []),
        ("gan", []),
    ],
)
def test_training_on_two_processes_equals_one(tmp_path, runs, verb, words):
    """Adam turns rounding of tiny gradients into whole steps, hence few steps and a tolerance."""
    common = [verb, debug(verb), *commands(runs)[verb], *words, "total_images=32", "seed=3"]
    common += ["augment.mode=none"] if verb == "gan" else ["evaluate_every=32"]
    if verb == "align":  # an encoder without dropout
        source = [
            "encode",
            debug("encode"),
            *commands(runs)["encode"],
            "encoder.dropout=0",
            f"run_dir={tmp_path}/source",
        ]
        assert cli.main(source) == 0
        common += [f"encoder={tmp_path}/source"]
    assert cli.main([*common, f"run_dir={tmp_path}/one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "eeg_gan"]
    subprocess.run(
        [*launch, *common, f"run_dir={tmp_path}/two"],
        check=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    one, two = (checkpoint.newest(tmp_path / name) for name in ("one", "two"))
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    for name in ("encoder", "g", "d"):
        for key, value in one.tensors.get(name, {}).items():
            torch.testing.assert_close(
                two.tensors[name][key], value, rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_the_other_ways_of_aligning_on_two_processes_equal_one(tmp_path, runs):
    """One start of two processes: SigLIP from scratch with a trained tower read at a layer; the map; image2eeg."""
    common = {"loader": {"index": f"{runs}/prepare/index.json"}, "batch": 32, "total_images": 64, "seed": 3}
    common |= {"evaluate_every": 64, "checkpoint_every": 64}
    subjects = {"name": "tsconv", "dim": 16, "filters": 4, "dropout": 0, "subjects": True}
    siglip = {"kind": "siglip", "same_class": 0.3}
    stages = {
        "align": {
            **common,
            "architecture": subjects,
            "tower": {"model": "tiny", "frozen": False, "layer": 1},
            "loss": siglip,
        },
        "align_map": {
            **common,
            "verb": "align",
            "encoder": f"{runs}/encode",
            "learn": "map",
            "tower": {"model": "tiny", "layer": 0, "pool": "cls"},
        },
        "image2eeg": {
            **common,
            "features": f"{runs}/embed",
            "tower": {"model": "tiny"},
            "regressor": {"hidden": 16, "layers": 1, "dropout": 0, "subjects": True},
            "loss": "contrastive",
            "select": "top1",
        },
    }
    path = tmp_path / "ways.yaml"
    path.write_text(json.dumps({"run_dir": "x", "stages": stages}))  # JSON is YAML
    assert cli.main(["pipeline", str(path), f"run_dir={tmp_path}/one"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "eeg_gan"]
    words = [*launch, "pipeline", str(path), f"run_dir={tmp_path}/two"]
    subprocess.run(words, check=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for stage in stages:
        one, two = (checkpoint.newest(tmp_path / name / stage) for name in ("one", "two"))
        assert one.images == two.images == 64 and one.tensors.keys() == two.tensors.keys()
        for name in one.tensors.keys() - {"optimiser"}:
            for key, value in one.tensors[name].items():
                # attention does not depend on the bias of its keys: Adam makes whole steps of its rounding
                atol = 5e-3 if key.endswith("in_proj_bias") else 2e-4
                where = f"{stage} {name} {key}"
                torch.testing.assert_close(
                    two.tensors[name][key].float(),
                    value.float(),
                    rtol=1e-3,
                    atol=atol,
                    msg=lambda m, k=where: f"{k}: {m}",
                )
        for figure, value in one.state["best"].items():
            assert two.state["best"][figure] == pytest.approx(value, abs=0.1), (stage, figure)
