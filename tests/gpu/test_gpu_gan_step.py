"""The training step on a GPU: it gives what a CPU gives, and a captured one gives what it gives itself."""

import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip(f"no GPU that torch {torch.__version__} can use", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
gan_step = pytest.importorskip("gan_step", reason="the whole package and what it needs")


def weights(device: str, captured: bool = False, batches: int = 5):
    torch.manual_seed(0)
    game = gan_step.Game(32, 8, torch.device("cpu"), "float32")
    features, real = game.conditions.features, game.real
    game = gan_step.Game(32, 8, torch.device(device), "float32")
    game.conditions.features, game.real = features, real.to(device)
    with game.captured() if captured else gan_step.nullcontext():
        for number in range(batches):
            game.batch(number % 2 == 0)
    return torch.cat(
        [p.detach().float().cpu().flatten() for n in (game.players.g, game.players.d) for p in n.parameters()]
    )


def steps_apart(found, expected):
    """How far weights are apart, in learning rates. Adam's first steps are signs: where a gradient is next to zero,
    rounding may turn one, so that only most weights can be near."""
    return (found - expected).abs() / 2.5e-3


def test_captured_phases_train_as_the_steps_do():
    apart = steps_apart(weights("cuda", captured=True), weights("cuda"))
    assert apart.median() < 0.02 and apart.mean() < 0.1


def test_one_batch_on_the_gpu_is_one_batch_on_the_cpu():
    apart = steps_apart(weights("cuda", batches=1), weights("cpu", batches=1))
    assert apart.median() < 0.02 and apart.mean() < 0.1


def test_two_runs_give_the_same_bits_where_that_is_asked():
    from eeg_gan.training import kernels

    def once():
        with kernels.chosen(torch.device("cuda"), True):
            return weights("cuda")

    assert once().equal(once())
