"""Two gloo processes give what one gives on the joined data."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import commands, debug
from many import run_all
from PIL import Image

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data import features
from eeg_gan.data.loader import Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import any_rank, average_gradients, gather, generator_at, own_part
from eeg_gan.losses.contrastive import ContrastiveConfig, clip_loss, contrastive
from eeg_gan.losses.supervised import SupervisedContrastiveConfig, supervised_contrastive
from eeg_gan.losses.triplet import cross_entropy, mined_triplet, semi_hard_triplet
from eeg_gan.training import checkpoint, replicas
from eeg_gan.training.averaging import Averaged
from eeg_gan.training.guard import Guard, GuardConfig
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


SGD = ["total_images=128", "optim.name=sgd", "optim.lr=0.05", "evaluate_every=128"]
ADAM = ["total_images=32", "evaluate_every=32"]  # Adam turns rounding of tiny gradients into whole steps: few of them
# fitted in closed form before training: filters and maps of each subject, probabilities of classes
CLOSED = ["encoder.dropout=0", "encoder.subjects=true", "encoder.matched=true", "encoder.readout=true"]
TRAINED = {
    "encode": ("encode", [*SGD, "encoder.dropout=0"]),
    "encode-adam": ("encode", [*ADAM, "encoder.dropout=0"]),
    "subjects": ("encode", [*SGD, "encoder.dropout=0", "encoder.subjects=true", "loss=supervised_contrastive"]),
    "closed-form": ("encode", [*SGD, *CLOSED, "encoder.posterior=true", "ridge=2"]),
    "align": ("align", SGD),
    "align-ridge": ("align", [*ADAM, "ridge=1.5"]),
    "align-adam": ("align", ADAM),
    "image2eeg": ("image2eeg", [*SGD, "regressor.dropout=0"]),
    "image2eeg-adam": ("image2eeg", [*ADAM, "regressor.dropout=0"]),
    "gan": ("gan", ["total_images=32", "augment.mode=none", "engine.overlap=true", "engine.bucket_mb=0.01"]),
}
READING = ("embed", "evaluate", "generate")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, runs):
    """The same commands on one process and on two: FOLDER/one-NAME, FOLDER/two-NAME."""
    folder = tmp_path_factory.mktemp("compared")
    for name, more in (("source", ["encoder.dropout=0"]), ("source-ridge", [*CLOSED, "ridge=2", "total_images=16"])):
        words = ["encode", debug("encode"), *commands(runs)["encode"], *more, f"run_dir={folder}/{name}"]
        assert cli.main(words) == 0

    def words(name, run):
        verb, more = TRAINED.get(name, (name, []))
        given = [verb, debug(verb), *commands(runs)[verb], *more, f"run_dir={folder}/{run}-{name}"]
        given += [f"encoder={folder}/source{'-ridge' * name.endswith('ridge')}"] if verb == "align" else []
        return given + (["seed=3", "engine.check_every=1"] if name in TRAINED else [])

    for name in [*TRAINED, *READING]:
        assert cli.main(words(name, "one")) == 0
    assert cli.main([*words("encode", "more"), "stop_after=48"]) == 75
    assert cli.main([*words("gan", "more"), "stop_after=16"]) == 75
    jobs = {name: words(name, "two") for name in [*TRAINED, *READING]}
    jobs |= {"more-first": ([*words("encode", "more"), "stop_after=96"], 75), "more": words("encode", "more")}
    jobs |= {"more-gan": [*words("gan", "more"), "micro_batch=4"]}
    (folder / "said.txt").write_text(run_all(folder, jobs))
    return folder


def same_weights(folder, one, two, rtol, atol):
    one, two = (checkpoint.newest(folder / name) for name in (one, two))
    assert one.images == two.images and one.tensors.keys() == two.tensors.keys()
    for name in one.tensors.keys() & {"encoder", "projection", "scale", "regressor", "g", "d", "average"}:
        for key, value in one.tensors[name].items():
            torch.testing.assert_close(
                two.tensors[name][key], value, rtol=rtol, atol=atol, msg=lambda said, k=key: f"{k}: {said}"
            )


@pytest.mark.parametrize("name", TRAINED)
def test_training_on_two_processes_equals_one(compared, name):
    assert json.loads((compared / f"two-{name}" / "run.json").read_text())["processes"] == 2
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if "optim.name=sgd" in TRAINED[name][1] else {"rtol": 1e-3, "atol": 2e-4}
    same_weights(compared, f"one-{name}", f"two-{name}", **tolerance)


def test_a_run_goes_on_with_more_processes_and_says_so_once(compared):
    """Begun by one, continued by two: the same data and schedule as one alone to the end."""
    same_weights(compared, "one-encode", "more-encode", 1e-4, 1e-6)
    same_weights(compared, "one-gan", "more-gan", 1e-3, 2e-4)
    said = (compared / "said.txt").read_text()
    for run in ("encode", "gan"):
        assert said.count(f"more-{run}: begun by 1, going on with 2 processes: the same stream of data") == 1


def test_embed_evaluate_and_generate_on_two_processes_equal_one(compared):
    one, two = (features.load(compared / f"{run}-embed") for run in ("one", "two"))
    assert one.keys == two.keys and len(set(two.keys)) == len(two.keys)
    torch.testing.assert_close(two.rows(one.keys), one.rows(one.keys), rtol=1e-5, atol=1e-6)
    one, two = (json.loads((compared / f"{run}-evaluate" / "metrics.json").read_text()) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, metric in one.items():
        for key, value in metric.items():
            number = isinstance(value, float)
            assert two[name][key] == (pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True) if number else value), name
    one, two = (json.loads((compared / f"{run}-generate" / "manifest.json").read_text()) for run in ("one", "two"))
    assert one["images"] == two["images"]
    for row in one["images"]:
        a, b = (
            np.asarray(Image.open(compared / f"{run}-generate" / row["file"])).astype(int) for run in ("one", "two")
        )
        assert np.abs(a - b).max() <= 1, row["file"]


def broken():
    """What the check says on each rank after one weight of rank 1 has moved by its last bit."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.nn.init.ones_(net[0].weight)
    torch.nn.init.ones_(net[0].bias)
    replicas.check(replicas.of_networks({"net": net}), 16)
    with torch.no_grad():
        if dist.get_rank() == 1:
            net[0].bias[1] = torch.nextafter(net[0].bias[1], torch.tensor(2.0))
    try:
        replicas.check(replicas.of_networks({"net": net}), 16)
    except UserError as error:
        return {"said": [ord(letter) for letter in str(error)]}


def test_weights_that_differ_are_found_and_named(tmp_path):
    for found in on_two_ranks(broken, tmp_path):
        said = "".join(map(chr, found["said"]))
        assert "at 16 images" in said and "rank 1 in net.0.bias" in said and "rank 0" not in said


def averaged(settings):
    """By setting: gradients of a network with a layer that nothing reaches, and the bytes that went over the wire."""
    found = {}
    for overlap, bucket_mb, parts in settings:
        torch.manual_seed(0)
        net = torch.nn.ModuleList([torch.nn.Linear(6, 6) for _ in range(5)])
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))[own_part(8)]
        steps = Averaged(net, torch.optim.SGD(net.parameters(), lr=0.0, fused=True), None, bucket_mb, overlap)
        for _ in range(2):
            steps.zero()
            for number, part in enumerate(x.chunk(parts)):
                y = part = part.clone().requires_grad_(True)
                for layer in net[:4]:
                    y = layer(y).tanh()
                (slope,) = torch.autograd.grad(y.sum(), part, create_graph=True)
                steps.backward(slope.square().sum() / len(x), last=number == parts - 1)
            steps.step(Guard(GuardConfig()), "R1")
        sent = 0 if steps.buckets is None else steps.buckets.bytes
        found[str((overlap, bucket_mb, parts))] = {"grads": [p.grad.clone() for p in net.parameters()], "bytes": sent}
    return found


def test_flat_buffers_average_second_derivatives(tmp_path):
    settings = [(overlap, mb, parts) for overlap in (False, True) for mb, parts in ((25, 1), (25, 2), (0.0002, 2))]
    whole = averaged(settings)
    for half in on_two_ranks(averaged, tmp_path, settings):
        for name, own in whole.items():
            assert own["grads"][0].abs().sum() > 0 and own["grads"][-1].eq(0).all() and own["bytes"] == 0
            torch.testing.assert_close(half[name]["grads"], own["grads"], rtol=1e-5, atol=1e-7)
            assert half[name]["bytes"] == 4 * sum(grad.numel() for grad in own["grads"])


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
    words = [*launch, "pipeline", str(path), f"run_dir={tmp_path}/two", "stages.align.micro_batch=5"]
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
