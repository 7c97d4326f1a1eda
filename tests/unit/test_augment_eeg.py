import pytest
import torch

from eeg_gan.augment.eeg import (
    EEGAugmentConfig,
    amplitude_scale,
    channel_dropout,
    draw_and_apply,
    gaussian_noise,
    time_mask,
    time_shift,
)

EVERYTHING = EEGAugmentConfig(shift=5, noise=0.1, drop=0.3, scale=0.5, mask=6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    return torch.randn(8, 3, 20, generator=generator(9))


def test_parts_of_a_global_batch_equal_the_whole(x):
    whole = draw_and_apply(x, generator(), EVERYTHING)
    parts = [draw_and_apply(x[p], generator(), EVERYTHING, p, 8) for p in (slice(0, 2), slice(2, 4), slice(4, 8))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, draw_and_apply(x, generator(1), EVERYTHING))
    assert not torch.equal(whole, x)


def test_nothing_configured_is_nothing_done(x):
    assert draw_and_apply(x, generator(), EEGAugmentConfig()) is x


def test_a_part_of_the_wrong_size_is_our_mistake(x):
    with pytest.raises(AssertionError):
        draw_and_apply(x, generator(), EVERYTHING, slice(0, 4), 8)


def test_shift_moves_all_electrodes_of_a_trial_together_and_fills_with_zeros():
    x = torch.arange(1, 11.0).expand(64, 2, 10)
    moved = time_shift(x, generator(), 2)
    seen = set()
    for trial in moved:
        assert torch.equal(trial[0], trial[1])
        options = {0: [*range(1, 11)], 1: [0, *range(1, 10)], 2: [0, 0, *range(1, 9)]}
        options |= {-1: [*range(2, 11), 0], -2: [*range(3, 11), 0, 0]}
        seen |= {shift for shift, values in options.items() if trial[0].tolist() == values}
    assert seen == {-2, -1, 0, 1, 2}


def test_noise_has_the_size_asked_for():
    noise = gaussian_noise(torch.zeros(50, 8, 64), generator(), 0.5)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert (noise[0] - noise[1]).abs().max() > 0.1


def test_dropout_silences_whole_electrodes():
    x = channel_dropout(torch.ones(100, 20, 5), generator(), 0.25)
    assert ((x == 0).all(2) | (x == 1).all(2)).all()
    assert (x == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_scale_is_one_positive_factor_per_trial(x):
    ratio = amplitude_scale(x, generator(), 0.5) / x
    assert (ratio > 0).all()
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert ratio[:, 0, 0].std() > 0.1


def test_mask_silences_one_stretch():
    x = time_mask(torch.ones(200, 2, 20), generator(), 6)
    silent = (x[:, 0] == 0).sum(1)
    assert torch.equal(x[:, 0], x[:, 1])
    assert silent.min() == 0 and silent.max() == 6
    assert ((x[:, 0, 1:] != x[:, 0, :-1]).sum(1) <= 2).all()
    assert time_mask(torch.ones(4, 1, 3), generator(), 100).shape == (4, 1, 3)


def test_config_refuses_nonsense():
    with pytest.raises(ValueError, match="drop"):
        EEGAugmentConfig(drop=1.0)
    with pytest.raises(ValueError, match="noise"):
        EEGAugmentConfig(noise=-1.0)
