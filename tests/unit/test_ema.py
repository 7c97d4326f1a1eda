"""The average of weights and its half-life in images."""

import pytest
import torch
from torch import nn

from eeg_gan.training import ema


def test_parameters_are_averaged_and_buffers_copied():
    average, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.running_mean.fill_(7.0)
    ema.update(average, model, 0.75)
    torch.testing.assert_close(average.weight.detach(), torch.full((3,), 1.5))
    assert average.running_mean.tolist() == [7.0] * 3 and average.weight.requires_grad
    ema.update(average, model, 0.0)
    assert average.weight.tolist() == model.weight.tolist()


def test_half_life_in_images():
    assert ema.beta_at(10**6, 32, 10_000) ** (10_000 / 32) == pytest.approx(0.5)
    assert ema.beta_at(1000, 32, 10_000, ramp=0.05) == pytest.approx(0.5 ** (32 / 50))
    assert ema.beta_at(10**6, 32, 10_000, ramp=0.05) == ema.beta_at(0, 32, 10_000)
    assert ema.beta_at(0, 32, 10_000, ramp=0.05) == 0.0
    with pytest.raises(ValueError, match="half-life"):
        ema.beta_at(0, 32, -1)
