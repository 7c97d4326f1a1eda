import sys

import pytest
import torch

from eeg_gan.augment.eeg import (
    EEGAugmentConfig,
    amplitude_scale,
    band_stop,
    channel_dropout,
    crop,
    draw_and_apply,
    gaussian_noise,
    mixup,
    time_mask,
    time_shift,
)

EVERYTHING = EEGAugmentConfig(shift=5, noise=0.1, drop=0.3, scale=0.5, mask=6, crop=15, band_stop=0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    return torch.randn(8, 3, 20, generator=generator(9))


def test_parts_of_a_global_batch_equal_the_whole(x):
    whole = draw_and_apply(x, generator(), EVERYTHING)
    parts = [draw_and_apply(x[p], generator(), EVERYTHING, p, 8) for p in (slice(0, 2), slice(2, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(parts), whole)  # a Fourier transform rounds by the size of the batch
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
    for key in ("crop", "mixup"):
        with pytest.raises(ValueError, match=key):
            EEGAugmentConfig(**{key: -1})
    with pytest.raises(ValueError, match="band_stop"):
        EEGAugmentConfig(band_stop=1.0)


def test_crop_keeps_one_window_at_every_place():
    x = torch.arange(1, 11.0).expand(400, 2, 10)
    padded, short = crop(x, generator(), 7), crop(x, generator(), 7, pad=False)
    assert padded.shape == x.shape and short.shape == (400, 2, 7)
    assert set(short[:, 0, 0].tolist()) == {1, 2, 3, 4} and torch.equal(short[:, 0], short[:, 1])
    for trial, window in zip(padded, short, strict=True):
        assert torch.equal(trial[0][trial[0] != 0], window[0])
        assert torch.equal(window[0], window[0, 0] + torch.arange(7.0))
    counts = torch.bincount(short[:, 0, 0].long())[1:]
    assert counts.min() > 70  # 100 expected of each
    with pytest.raises(ValueError, match="augment.crop is 11 samples, but trials have 10"):
        crop(x, generator(), 11)


def test_band_stop_removes_a_band_of_the_asked_width_anywhere():
    x = torch.randn(300, 2, 200, generator=generator(2))
    before, after = (torch.fft.rfft(y, dim=2).abs() for y in (x, band_stop(x, generator(), 0.2)))
    gone = after < 1e-3 * before
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert gone.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert ((gone[:, 0, 1:] != gone[:, 0, :-1]).sum(1) <= 2).all()
    torch.testing.assert_close(after[~gone], before[~gone], rtol=1e-3, atol=1e-3)
    assert gone[:, 0].float().mean(0)[25:76].std() < 0.05  # its place is uniform


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_keeps_the_larger_share_of_each_trial(alpha):
    x = torch.eye(2000)[:, None]
    mixed = mixup(x, generator(), alpha)[:, 0]
    share = mixed.diagonal()
    torch.testing.assert_close(mixed.sum(1), torch.ones(2000))
    assert share.min() >= 0.5 and (mixed > 0).sum(1).max() == 2
    draws = torch.distributions.Beta(alpha, alpha).sample((20000,))
    assert share.mean().item() == pytest.approx(torch.maximum(draws, 1 - draws).mean().item(), abs=0.015)
    partner = mixed.fill_diagonal_(0).argmax(1)
    assert (partner != torch.arange(2000)).float().mean() > 0.9


def test_mixup_of_a_single_trial_leaves_it():
    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(mixup(x, generator(), 1.0), x)


FAKE = """
import numpy as np
import torch

class Transform(torch.nn.Module):
    def __init__(self, probability=1.0, random_state=None):
        super().__init__()
        self.probability, self.rng = probability, np.random.RandomState(random_state)

class SignFlip(Transform):
    def forward(self, x, y=None):
        return -x if self.rng.uniform() < self.probability else x

class Mixup(Transform):
    def forward(self, x, y=None):
        return x

class Halved(Transform):
    def forward(self, x, y=None):
        return x[..., ::2]
"""


@pytest.fixture
def braindecode(tmp_path, monkeypatch):
    """A library of that name, as small as can be."""
    (tmp_path / "braindecode").mkdir()
    (tmp_path / "braindecode" / "__init__.py").write_text("")
    (tmp_path / "braindecode" / "augmentation.py").write_text(FAKE)
    for name in [name for name in sys.modules if name.split(".")[0] == "braindecode"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "braindecode"]:
        del sys.modules[name]


def test_transforms_of_braindecode_by_name(braindecode):
    x = torch.randn(200, 3, 20, generator=generator(9))
    config = EEGAugmentConfig(zoo={"SignFlip": {"probability": 0.3}})
    whole = draw_and_apply(x, generator(), config)
    flipped = (whole == -x).flatten(1).all(1)
    assert ((whole == x).flatten(1).all(1) | flipped).all() and 0.2 < flipped.float().mean() < 0.4
    parts = [draw_and_apply(x[p], generator(), config, p, 200) for p in (slice(0, 50), slice(50, 200))]
    assert torch.equal(torch.cat(parts), whole)


def test_mistakes_in_the_zoo_are_named(braindecode, x):
    for zoo, said in {
        "SignFlips": "no transform SignFlips; did you mean SignFlip",
        "Mixup": "mixes trials with others.*use augment.mixup",
        "Halved": "changes labels or shapes",
    }.items():
        with pytest.raises(ValueError, match=said):
            draw_and_apply(x, generator(), EEGAugmentConfig(zoo={zoo: {}}))
    with pytest.raises(ValueError, match="does not take these keys.*strength"):
        draw_and_apply(x, generator(), EEGAugmentConfig(zoo={"SignFlip": {"strength": 1}}))


def test_a_missing_braindecode_names_the_cure(x, monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    monkeypatch.setitem(sys.modules, "braindecode.augmentation", None)
    with pytest.raises(ValueError, match=r"pip install 'eeg-gan\[zoo\]'"):
        draw_and_apply(x, generator(), EEGAugmentConfig(zoo={"SignFlip": {}}))
