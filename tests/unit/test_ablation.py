import numpy as np
import pytest

from eeg_gan.metrics import ablation

RATE = 128
TIME = np.arange(RATE) / RATE


def wave(hz):
    return np.cos(2 * np.pi * hz * (TIME + 0.5 / RATE)).astype(np.float32)


@pytest.mark.parametrize("hz, band", [(1, "delta"), (6, "theta"), (10, "alpha"), (20, "beta"), (40, "gamma")])
def test_a_rhythm_is_in_its_band_alone(hz, band):
    x = np.stack([wave(hz), 2 * wave(hz)])[None]
    np.testing.assert_allclose(ablation.band_alone(x, RATE, band), x, atol=1e-4)
    np.testing.assert_allclose(ablation.band_removed(x, RATE, band), 0, atol=1e-4)


def test_bands_add_up_and_drift_stays_slow():
    x = np.random.default_rng(0).normal(size=(2, 3, 100)).astype(np.float32) + np.linspace(0, 50, 100, dtype=np.float32)
    parts = [ablation.band_alone(x, 100.0, band) for band in ablation.bands(100.0)]
    np.testing.assert_allclose(sum(parts), x, atol=1e-3)
    ramp = np.linspace(0, 50, 100)[None]
    assert np.abs(ablation.band_alone(ramp, 100.0, "alpha")).max() < 1.5, "a Fourier transform would leave a step of 50"
    assert ablation.bands(50.0) == ["delta", "theta", "alpha", "beta"]


def test_windows_cover_the_trial():
    places = ablation.windows(128, 128.0)
    assert places[0].start == 0 and places[-1].stop == 128 and {p.stop - p.start for p in places} == {6}
    assert all(a.stop > b.start for a, b in zip(places, places[1:], strict=False))
    assert len(ablation.windows(10_000, 1000.0)) == 40 and ablation.windows(3, 1000.0) == [slice(0, 3)]


def test_decoding_over_time_finds_when():
    rng, y = np.random.default_rng(0), np.arange(160) % 2
    x = rng.normal(size=(160, 4, 60))
    x[y == 1, 2, 30:36] += 1.5
    places = ablation.windows(60, 100.0, 0.06)
    right = ablation.decoded_over_time(x[:80], y[:80], x[80:], y[80:], places).mean(axis=1)
    told = np.array([p.start < 36 and p.stop > 30 for p in places])
    assert places[right.argmax()].start == 30 and right.max() > 0.9 and right[~told].mean() < 0.6


def test_class_weights_give_the_balanced_accuracy():
    y, right = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 0])
    weights = ablation.class_weights(y)
    assert weights.mean() == pytest.approx(1) and (weights * right).mean() == pytest.approx(0.5)


def test_importance_finds_where_and_partners_stay_in_their_group():
    rng, groups = np.random.default_rng(0), np.repeat([0, 1, 2], [10, 20, 1])
    partner = ablation.swapped_partner(groups, 0)
    assert (groups[partner] == groups).all() and sorted(partner) == list(range(31))
    assert (partner != np.arange(31)).sum() == 30, "one is alone"
    x = rng.normal(size=(31, 3, 8))
    truth = x[:, 1].mean(axis=1)
    lost = ablation.importance(lambda eeg: -np.abs(eeg[:, 1].mean(axis=1) - truth), x, partner)
    assert lost[1] > 0.1 and lost[0] == lost[2] == 0
