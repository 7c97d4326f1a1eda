"""p follows the sign of real logits, within its bounds, and survives a save."""

import pytest
import torch

from eeg_gan.augment.adaptive import Adaptive, AdaptiveConfig, updated_p


def test_p_moves_by_images_over_speed_and_stays_in_bounds():
    config = AdaptiveConfig(speed_kimg=1.0, p_max=0.5)
    assert updated_p(0.1, 0.9, 100, config) == pytest.approx(0.2)
    assert updated_p(0.1, 0.3, 50, config) == pytest.approx(0.05)
    assert updated_p(0.1, config.target, 50, config) == pytest.approx(0.1)
    assert updated_p(0.1, -1.0, 10**6, config) == 0.0
    assert updated_p(0.1, 1.0, 10**6, config) == 0.5
    assert updated_p(0.1, 1.0, 100, AdaptiveConfig(mode="fixed")) == 0.1


def test_controller_observes_and_forgets():
    state = Adaptive(AdaptiveConfig(speed_kimg=1.0))
    state.observe(torch.tensor([2.0, 3.0, -1.0, 5.0]))
    state.observe(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert state.state_dict() == {"p": 0.0, "sign_sum": 6.0, "sign_count": 8.0}
    assert state.update(200) == pytest.approx(0.75) and state.p == pytest.approx(0.2)
    assert state.update(200) == 0.0 and state.p == pytest.approx(0.2)


def test_state_returns_from_plain_floats():
    first = Adaptive(AdaptiveConfig(p=0.3))
    first.observe(torch.randn(16))
    second = Adaptive(AdaptiveConfig(p=0.3))
    second.load_state_dict(first.state_dict())
    for state in (first, second):
        state.observe(torch.ones(4))
        state.update(4096)
    assert first.state_dict() == second.state_dict()
    assert all(type(value) is float for value in first.state_dict().values())


def test_modes_and_mistakes():
    assert Adaptive(AdaptiveConfig(mode="none", p=0.4)).p == 0.0
    fixed = Adaptive(AdaptiveConfig(mode="fixed", p=0.4))
    fixed.observe(torch.ones(4))
    fixed.update(10**6)
    assert fixed.p == 0.4
    for wrong in ({"pipe": "x"}, {"p": 0.9}, {"p_max": 1.5}, {"target": 2.0}, {"every": 0}):
        with pytest.raises(ValueError):
            AdaptiveConfig(**wrong)
