import numpy as np
import pytest

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.preprocess import (
    KEPT_VALUES,
    PreprocessConfig,
    apply_scale,
    check,
    describe,
    filter_trial,
    fit_scale,
    from_description,
)

CARD = Card("a", 200.0, ("Oz", "Pz"), "event-randomised", ("x",), "CC0", line_hz=50, tmin_s=-0.5)
TIME = np.arange(400) / 200 - 0.5


def run(eeg, **keys):
    return filter_trial(eeg, 200.0, -0.5, PreprocessConfig(**keys), CARD)


def sine(hz):
    return np.stack([np.sin(2 * np.pi * hz * TIME), np.cos(2 * np.pi * hz * TIME)]).astype(np.float32)


def test_nothing_asked_nothing_done():
    eeg, sfreq, tmin = run(sine(3))
    np.testing.assert_array_equal(eeg, sine(3))
    assert (sfreq, tmin, eeg.dtype) == (200.0, -0.5, np.float32)


@pytest.mark.parametrize("keys", [{"lowpass_hz": 30.0}, {"highpass_hz": 1.0, "lowpass_hz": 30.0}, {"notch": True}])
def test_a_symmetric_pulse_stays_centred(keys):
    pulse = np.tile(np.exp(-0.5 * ((np.arange(401) - 200) / 4) ** 2), (2, 1))
    eeg, _, _ = run(pulse, **keys)
    assert eeg[0].argmax() == 200
    np.testing.assert_allclose(eeg[0], eeg[0][::-1], atol=1e-3)


def test_filters_attenuate_what_they_should():
    inside = slice(100, 300)
    assert np.abs(run(sine(60), lowpass_hz=30.0)[0][:, inside]).max() < 0.02
    assert np.abs(run(sine(10), lowpass_hz=30.0)[0][:, inside]).max() > 0.98
    assert np.abs(run(sine(50), notch=True)[0][:, inside]).max() < 0.1
    assert np.abs(run(sine(20) + 100, highpass_hz=1.0)[0][:, inside].mean()) < 0.1


def test_resampling_keeps_time():
    eeg, sfreq, tmin = run(sine(3), resample_hz=100.0)
    assert sfreq == 100 and tmin == -0.5 and eeg.shape == (2, 200)
    np.testing.assert_allclose(eeg[:, 20:-20], sine(3)[:, ::2][:, 20:-20], atol=0.01)


def test_crop_baseline_and_reference():
    eeg, sfreq, tmin = run(np.tile(TIME, (2, 1)), crop_s=(0.0, 0.5))
    assert eeg.shape == (2, 100) and tmin == pytest.approx(0) and eeg[0, 0] == pytest.approx(0, abs=1e-6)
    late = run(np.tile(np.where(TIME < -1e-9, 5.0, 7.0), (2, 1)), baseline=True, crop_s=(0.0, 1.0))[0]
    np.testing.assert_allclose(late, 2.0, atol=1e-6)
    np.testing.assert_allclose(run(sine(3), reference="average")[0].sum(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("tmin_s", [-0.5, -0.496, -0.5025, -0.4975, -0.5075])
def test_cropped_length_does_not_depend_on_where_trials_start(tmin_s):
    config = PreprocessConfig(crop_s=(0.0, 0.5025), scale="none")  # 100.5 samples
    assert filter_trial(sine(3), 200.0, tmin_s, config, CARD)[0].shape == (2, 100)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lowpass_hz": 100.0}, "preprocess.lowpass_hz"),
        ({"highpass_hz": 150.0}, "preprocess.highpass_hz"),
        ({"lowpass_hz": 60.0, "resample_hz": 100.0}, "preprocess.resample_hz"),
        ({"crop_s": (0.0, 9.0)}, "preprocess.crop_s"),
        ({"crop_s": (-1.0, 0.5)}, "preprocess.crop_s"),
    ],
)
def test_impossible_requests_name_the_key(keys, said):
    with pytest.raises(UserError, match=said):
        run(sine(3), **keys)


def test_notch_baseline_and_reference_need_facts():
    card = Card("a", 200.0, ("Oz",), "rsvp", ("x",), "CC0")
    for keys in ({"notch": True}, {"baseline": True}, {"reference": "average"}):
        with pytest.raises(UserError, match=f"preprocess.{next(iter(keys))}"):
            check(PreprocessConfig(**keys), card)


def test_config_refuses_nonsense():
    for keys in ({"highpass_hz": 30.0, "lowpass_hz": 3.0}, {"crop_s": (1.0, 0.0)}, {"clip": 0.0}, {"lowpass_hz": -1.0}):
        with pytest.raises(ValueError, match=next(iter(keys))):
            PreprocessConfig(**keys)


@pytest.mark.parametrize("scale", ["robust", "zscore"])
def test_scale_is_that_of_the_given_trials_per_channel(scale):
    random, config = np.random.default_rng(0), PreprocessConfig(scale=scale, clip=None)
    train = [random.normal([[5], [-100]], [[2], [30]], (2, 500)) for _ in range(40)]
    fitted = fit_scale(iter(train), config)
    np.testing.assert_allclose(fitted["center"], [5, -100], atol=1.5)
    np.testing.assert_allclose(fitted["spread"], [2, 30], rtol=0.05)
    assert fitted["train_trials"] == 40 and fit_scale(train, config) == fitted
    other = apply_scale(np.array([[7.0], [-70.0]]), fitted, config)  # another split is scaled by train's statistics
    np.testing.assert_allclose(other, 1, atol=0.1)


def test_zscore_is_exact():
    train = [np.random.default_rng(i).normal(1e4, 1, (2, 30 + i)) for i in range(5)]
    fitted, whole = fit_scale(train, PreprocessConfig(scale="zscore")), np.concatenate(train, axis=1)
    np.testing.assert_allclose(fitted["center"], whole.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(fitted["spread"], whole.std(axis=1), rtol=1e-9)


def test_robust_memory_is_bounded_and_unbiased():
    trials = (np.full((1, 1000), float(i)) for i in range(1000))  # five times KEPT_VALUES; the median is 499.5
    fitted = fit_scale(trials, PreprocessConfig())
    assert KEPT_VALUES < 1_000_000 and fitted["center"][0] == pytest.approx(499.5, abs=5)


def test_flat_channel_is_not_divided_by_zero():
    config = PreprocessConfig()
    fitted = fit_scale([np.array([[3.0] * 8, list(range(8))])], config)
    assert fitted["flat_channels"] == [0] and (apply_scale(np.full((2, 8), 3.0), fitted, config)[0] == 0).all()


def test_legacy_max_is_two_x_over_max_minus_one():
    config = PreprocessConfig(scale="legacy_max")
    x = np.array([[1.0, -2.0], [4.0, 0.0]])
    np.testing.assert_allclose(apply_scale(x, fit_scale([], config), config), 2 * x / 4 - 1)
    assert np.isfinite(apply_scale(-x[:1] * 0 - 3, fit_scale([], config), config)).all()
    assert np.isfinite(apply_scale(np.zeros((2, 2)), fit_scale([], config), config)).all()


def test_clip_and_description():
    config = PreprocessConfig(scale="none", clip=2.0, crop_s=(0.0, 0.5))
    assert apply_scale(np.array([[-9.0, 1.0]]), fit_scale([], config), config).tolist() == [[-2, 1]]
    assert from_description(describe(config, {"kind": "none"})) == (config, {"kind": "none"})
