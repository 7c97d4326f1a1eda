"""What the bench captures on a GPU: steps that read held tensors are the steps, bit for bit."""

import sys
from pathlib import Path

import torch
from test_gan_steps import config_of

from eeg_gan.augment.condition import Conditions
from eeg_gan.stages import gan_steps

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from gan_graphs import HeldBatch, Inputs  # noqa: E402


def weights(held: bool):
    """After three batches whose tensors were drawn anew, or copied to where the first batch's were."""
    changes = {"path_length": {"weight": 0.0}, "augment": {"mode": "fixed", "p": 0.5, "pipe": "bgcfnc"}}
    config = config_of(**changes)
    generator = torch.Generator().manual_seed(5)
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=generator), dim=1)
    conditions = Conditions(features, range(12), config.condition)
    players, inputs = gan_steps.build(config, 16, features, torch.device("cpu")), Inputs(torch.device("cpu"))
    real, places = torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1, []
    for number in range(3):
        parts = config, players, conditions, number * 8
        batch = HeldBatch(*parts, inputs) if held else gan_steps.Batch(*parts)
        c = inputs.hold("c", batch.real_conditions(torch.arange(8)))
        gan_steps.step_discriminator(batch, real, c)
        gan_steps.step_r1(batch, real, c)
        gan_steps.step_generator(batch)
        places.append({name: tensor.data_ptr() for name, tensor in inputs.held.items()})
    assert all(addresses == places[0] for addresses in places)
    return [p.detach() for n in (players.g, players.d) for p in n.parameters()]


def test_steps_on_held_tensors_are_the_steps():
    eager, held = weights(False), weights(True)
    assert all(a.equal(b) for a, b in zip(eager, held, strict=True))
