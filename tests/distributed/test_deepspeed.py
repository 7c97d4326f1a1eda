"""DeepSpeed on two gloo processes: losses and weights of each stage and level are those of accelerate alone."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, commands, debug
from many import run_all, steps_of

from eeg_gan import cli
from eeg_gan.training import checkpoint
from eeg_gan.training.log import read_stats

pytest.importorskip("deepspeed", reason="pip install 'eeg-gan[deepspeed]'")
ZERO = {level: f"{ROOT}/launch/deepspeed/zero{level}.json" for level in (1, 2, 3)}
LEVELS = {"encode": (1, 2, 3), "align": (1, 2, 3), "image2eeg": (1, 2, 3), "gan": (1, 2)}
BATCH = {"encode": 16, "align": 32, "image2eeg": 32, "gan": 16}
NETWORKS = {"encode": ["encoder"], "align": ["encoder", "projection", "scale", "tower"], "image2eeg": ["regressor"]}
NETWORKS["gan"] = ["g", "d", "average", "average-500"]
METHODS = {"sgd": {"name": "sgd", "lr": 0.05}, "adam": {"lr": 1e-3}}
CLIPS = {"free": None, "clipped": 0.02}


def words(verb, runs, run_dir, method="adam", clip="free", level=None, steps=20, config=None):
    """A command of `steps` steps, evaluated at their end alone."""
    images = steps * BATCH[verb]
    given = [verb, debug(verb), *commands(runs)[verb], f"run_dir={run_dir}", f"total_images={images}", "seed=3"]
    given += [f"checkpoint_every={images}"]
    given += ["evaluate.every=null", f"snapshot_every={images}"] if verb == "gan" else [f"evaluate_every={images}"]
    given += {"encode": ["encoder.dropout=0"], "align": ["tower.frozen=false"]}.get(verb, [])
    given += ["micro_batch=5"] if verb == "align" else []
    groups = ("g_optim", "d_optim") if verb == "gan" else ("optim",)
    for group in groups:
        given += [f"{group}.{key}={value}" for key, value in METHODS[method].items()]
        given += [f"{group}.clip_norm={CLIPS[clip]}"] if CLIPS[clip] else []
    path = config or (ZERO[level] if level else None)
    return given + ([f"engine.deepspeed={path}"] if path else [])


def figures(steps):
    """One number after the other, of all that was measured in the steps."""
    flat = [list(step.values()) if isinstance(step, dict) else [step] for step in steps]
    return torch.tensor([value for step in flat for value in step])


def weights(run_dir, verb):
    tensors = checkpoint.newest(run_dir).tensors
    return {f"{name}.{key}": value for name in NETWORKS[verb] for key, value in tensors[name].items()}


def learnt(key, value):
    """A weight without what nothing teaches: the bias of an attention's keys, to which softmax is blind.

    Its gradient is rounding alone, of which Adam makes steps of the full rate.
    """
    return torch.cat(value.chunk(3)[::2]) if key.endswith("in_proj_bias") else value


def assert_same(folder, verb, name, reference, rtol=1e-4, atol=2e-5):
    one, other = steps_of(folder, name), steps_of(folder, reference)
    assert len(one) == len(other) >= 20
    torch.testing.assert_close(figures(one), figures(other), rtol=rtol, atol=atol)
    of_one, of_other = weights(folder / name, verb), weights(folder / reference, verb)
    for key, value in of_other.items():
        torch.testing.assert_close(
            learnt(key, of_one[key]),
            learnt(key, value),
            rtol=rtol,
            atol=atol,
            msg=lambda said, k=key: f"{name} {k}: {said}",
        )


def test_deepspeed_gives_what_accelerate_gives(tmp_path, runs):
    """One level each of a stage with DDP's hooks and of gan; the whole table is test_every_level."""
    jobs = {
        "encode": words("encode", runs, tmp_path / "encode", clip="clipped"),
        "encode2": words("encode", runs, tmp_path / "encode2", clip="clipped", level=2),
        "gan": words("gan", runs, tmp_path / "gan"),
        "gan1": words("gan", runs, tmp_path / "gan1", level=1),
        "gan3": (words("gan", runs, tmp_path / "gan3", level=3), 2),
    }
    said = run_all(tmp_path, jobs)
    assert_same(tmp_path, "encode", "encode2", "encode")
    plain, sharded = (read_stats(tmp_path / name)[-1]["gradient/encode (norm)"] for name in ("encode", "encode2"))
    assert sharded == pytest.approx(plain, rel=1e-3) and plain > 2 * CLIPS["clipped"], "as long as before clipping"
    assert_same(tmp_path, "gan", "gan1", "gan")
    assert "asks for ZeRO 3, under which R1 and path lengths fail" in said and not (tmp_path / "gan3").exists()


@pytest.fixture(scope="module")
def table(tmp_path_factory, runs):
    """Every stage, level, optimiser and clipping, 20 steps each, on two processes."""
    folder, jobs = tmp_path_factory.mktemp("zero"), {}
    for verb, levels in LEVELS.items():
        for method in METHODS:
            for clip in CLIPS:
                for level in (None, *levels):
                    name = f"{verb}-{method}-{clip}-{level or 'plain'}"
                    jobs[name] = words(verb, runs, folder / name, method, clip, level)
    run_all(folder, jobs)
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("verb, level", [(verb, level) for verb, levels in LEVELS.items() for level in levels])
def test_every_level(table, verb, level, method):
    for clip in CLIPS:
        assert_same(table, verb, f"{verb}-{method}-{clip}-{level}", f"{verb}-{method}-{clip}-plain")
    free, clipped = (steps_of(table, f"{verb}-{method}-{clip}-plain") for clip in CLIPS)
    assert free[0] == clipped[0] and free[-1] != clipped[-1], "the clipping was not felt"


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Variants of the shipped files: bfloat16, and state on the CPU."""
    folder, found = tmp_path_factory.mktemp("configs"), {}
    for level, path in ZERO.items():
        given = json.loads(Path(path).read_text())
        offloaded = {**given["zero_optimization"], "offload_optimizer": {"device": "cpu"}}
        for name, changed in (("bf16", {"bf16": {"enabled": True}}), ("offload", {"zero_optimization": offloaded})):
            (folder / f"{name}{level}.json").write_text(json.dumps({**given, **changed}))
            found[f"{name}{level}"] = str(folder / f"{name}{level}.json")
        found[f"zero{level}"] = path
    return found


STOPPED = [(verb, f"zero{level}") for verb, levels in LEVELS.items() for level in levels]
STOPPED += [("align", f"{kind}{level}") for kind in ("bf16", "offload") for level in (1, 2, 3)]


@pytest.fixture(scope="module")
def continued(tmp_path_factory, runs, configs):
    """Runs of ten steps, unbroken and stopped after the sixth."""
    folder, jobs = tmp_path_factory.mktemp("continued"), {}
    for verb, kind in STOPPED:
        for how in ("unbroken", "stopped"):
            name = f"{verb}-{kind}-{how}"
            given = words(verb, runs, folder / name, steps=10, config=configs[kind])
            if how == "stopped":
                jobs[f"{name}-first"] = ([*given, f"stop_after={6 * BATCH[verb]}"], 75)
            jobs[name] = given
    jobs["plain"] = words("align", runs, folder / "plain", steps=10)
    jobs["unmoved"] = words("encode", runs, folder / "unmoved", steps=10)
    jobs["moved-first"] = ([*words("encode", runs, folder / "moved", steps=10, level=3), "stop_after=96"], 75)
    run_all(folder, jobs)
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("verb, kind", STOPPED)
def test_a_run_is_continued_exactly(continued, verb, kind):
    unbroken, stopped = (checkpoint.newest(continued / f"{verb}-{kind}-{how}") for how in ("unbroken", "stopped"))
    assert unbroken.images == stopped.images == 10 * BATCH[verb]
    assert unbroken.tensors.keys() == stopped.tensors.keys()
    for group, tensors in unbroken.tensors.items():
        for key, value in tensors.items():
            assert value.equal(stopped.tensors[group][key]), f"{group}.{key}"
    assert len(steps_of(continued, f"{verb}-{kind}-stopped")) < len(steps_of(continued, f"{verb}-{kind}-unbroken"))


@pytest.mark.heavy
@pytest.mark.parametrize("level", [1, 2, 3])
def test_bfloat16_and_offload_train_the_same_model(continued, level):
    plain = figures(steps_of(continued, "plain"))
    offload, half = (figures(steps_of(continued, f"align-{kind}{level}-unbroken")) for kind in ("offload", "bf16"))
    torch.testing.assert_close(offload, plain, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(half, plain, rtol=0.1, atol=0.1)
    assert not half.equal(plain)
    kept = weights(continued / f"align-bf16{level}-unbroken", "align")
    assert all(value.dtype == torch.float32 for value in kept.values() if value.is_floating_point())
    assert any(not value.equal(value.bfloat16().float()) for value in kept.values()), "the master weights are float32"


@pytest.mark.heavy
def test_another_number_of_processes_and_no_deepspeed_go_on(continued, runs, tmp_path, caplog):
    """A checkpoint of ZeRO 3 on two processes is read by one without DeepSpeed, for training and for embed."""
    assert cli.main(words("encode", runs, continued / "moved", steps=10)) == 0
    assert caplog.text.count("begun by 2, going on with 1 processes") == 1
    for key, value in weights(continued / "unmoved", "encode").items():
        torch.testing.assert_close(weights(continued / "moved", "encode")[key], value, rtol=2e-3, atol=2e-4)
    given = ["embed", debug("embed"), f"loader.index={runs}/prepare/index.json", f"run_dir={tmp_path}/embed"]
    assert cli.main([*given, f"encoder={continued}/align-zero3-unbroken"]) == 0
