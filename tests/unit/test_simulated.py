import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfiltfilt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.tree import DecisionTreeClassifier

from eeg_gan.data.sources import rendering
from eeg_gan.data.sources.physiology import PREFERRED, sensor_positions
from eeg_gan.data.sources.simulated import Simulated, SimulatedConfig
from eeg_gan.data.trial import complete, is_safe_key

SMALL = dict(n_classes=3, images_per_class=4, subjects=2, n_chans=16, image_size=16)


def labels_of(source):
    return np.array([meta["label"] for meta in source.trials])


def numbers_of(source):
    """The place of each trial's image within its class: splits by it are splits by image."""
    return np.array([int(meta["stimulus"].rsplit("_", 1)[1]) for meta in source.trials])


def windows(source):
    """[trials, C, T'] band-passed and at a quarter of the rate."""
    eeg = np.stack([source.eeg(i) for i in range(len(source.trials))])
    eeg = sosfiltfilt(butter(4, [0.5, 40], "band", fs=source.config.sfreq, output="sos"), eeg, axis=2)
    return resample_poly(eeg, 1, 4, axis=2)[:, :, source.times[::4] >= 0]


def lda_score(x, y, train, test):
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return model.fit(x[train], y[train]).score(x[test], y[test])


def within_class_top1(source, x, train, test):
    """How often the features that ridge regression predicts lie nearest to the seen image among those of its class."""
    seen = np.array([plan.image for plan in source.plan])
    scale = x[train].std(axis=0)
    predicted = Ridge(alpha=3000.0).fit(x[train] / scale, source.drive[seen[train]]).predict(x[test] / scale)
    predicted -= predicted.mean(axis=0)
    gallery = np.unique(seen[test])
    goal = source.drive[gallery] - source.drive[seen[train]].mean(axis=0)
    cosine = predicted @ (goal / np.linalg.norm(goal, axis=1, keepdims=True)).T
    per_class = source.config.images_per_class
    cosine[gallery[None] // per_class != seen[test][:, None] // per_class] = -np.inf
    return (gallery[cosine.argmax(axis=1)] == seen[test]).mean()


@pytest.fixture(scope="module")
def default_source():
    return Simulated(SimulatedConfig())


@pytest.fixture(scope="module")
def default_windows(default_source):
    return windows(default_source).reshape(len(default_source.trials), -1)


def test_trials_are_the_same_in_any_order():
    one, two = (Simulated(SimulatedConfig(**SMALL, seed=7)) for _ in range(2))
    order = np.random.default_rng(0).permutation(len(one.trials))
    backward = {i: (two.eeg(i).tobytes(), two.image(i).tobytes()) for i in order}
    assert one.trials == two.trials
    assert all((one.eeg(i).tobytes(), one.image(i).tobytes()) == backward[i] for i in range(len(one.trials)))
    other = Simulated(SimulatedConfig(**SMALL, seed=8))
    assert not np.array_equal(one.eeg(0), other.eeg(0))


def test_trials_and_card_say_what_the_arrays_hold():
    source = Simulated(SimulatedConfig(**SMALL, repeats=2))
    assert len(source.trials) == 3 * 4 * 2 * 2
    eeg, image = source.eeg(0), source.image(0)
    assert eeg.dtype == np.float32 and eeg.shape == (16, 128) and np.isfinite(eeg).all()
    assert image.dtype == np.uint8 and image.shape == (16, 16, 3)
    assert source.card.ch_names == source.ch_names and len(set(source.ch_names)) == 16
    assert {"Oz", "Fz", "P7"} <= set(source.ch_names) <= set(sensor_positions()) == set(PREFERRED)
    assert source.card.tmin_s == source.times[0] <= -0.1 and source.card.design == "event-randomised"
    keys = [meta["key"] for meta in source.trials]
    assert len(set(keys)) == len(keys) and all(map(is_safe_key, keys))
    assert all(complete(meta)["class_name"] == source.card.class_names[meta["label"]] for meta in source.trials)


def test_one_stimulus_is_one_image_for_every_subject():
    source = Simulated(SimulatedConfig(**SMALL))
    images = {}
    for i, meta in enumerate(source.trials):
        images.setdefault(meta["stimulus"], set()).add(source.image(i).tobytes())
    assert len(images) == 12 and all(len(same) == 1 for same in images.values())
    assert len(set.union(*images.values())) == 12


def test_onsets_increase_within_a_recording_with_jitter():
    source = Simulated(SimulatedConfig(**SMALL))
    for recording in ("S1_session-1", "S2_session-1"):
        onsets = [meta["onset_s"] for meta in source.trials if meta["recording"] == recording]
        gaps = np.diff(onsets)
        assert gaps.min() > 1.0 and gaps.std() > 0.05


@pytest.mark.parametrize("size", [16, 32, 64])
def test_eeg_does_not_depend_on_the_size_of_the_images(size):
    source = Simulated(SimulatedConfig(**SMALL | {"image_size": size}))
    assert source.image(3).shape == (size, size, 3)
    np.testing.assert_array_equal(source.eeg(3), Simulated(SimulatedConfig(**SMALL)).eeg(3))


def test_twenty_classes_look_different():
    looks = rendering.class_looks(0, 20)
    assert len({look.name for look in looks}) == 20
    gaps = np.diff(sorted(look.hue for look in looks))
    np.testing.assert_allclose(gaps, 0.05, atol=1e-9)


@pytest.mark.parametrize("snr_db", [-12.0, 3.0])
def test_snr_is_as_asked(snr_db):
    source = Simulated(SimulatedConfig(n_classes=4, images_per_class=20, subjects=2, snr_db=snr_db))
    after = source.times >= 0
    part = range(1, len(source.trials), 2)
    evoked, noise = (np.mean([(f(i)[:, after] ** 2).mean() for i in part]) for f in (source.evoked, source.noise))
    assert abs(10 * np.log10(evoked / noise) - snr_db) < 1


def test_response_starts_after_the_stimulus_and_follows_features():
    source = Simulated(SimulatedConfig(**SMALL))
    assert not source.evoked(0)[:, source.times <= 0].any()
    same = [i for i, meta in enumerate(source.trials) if meta["subject"] == "S1" and meta["label"] == 0]
    responses = np.stack([source.evoked(i).ravel() for i in same])
    assert np.abs(np.corrcoef(responses)[np.triu_indices(len(same), 1)]).max() < 0.99  # no class code


def test_place_is_seen_on_opposite_sides_of_the_head():
    source = Simulated(SimulatedConfig(n_classes=2, images_per_class=60, subjects=1))
    evoked = np.stack([source.evoked(i) for i in range(120)])
    column = list(rendering.features(source._look(0))).index("place_x")
    place = source.drive[[plan.image for plan in source.plan], column]
    topography = np.einsum("n,nct->ct", place, evoked)[:, np.argmin(np.abs(source.times - 0.105))]
    left, right = (topography[source.ch_names.index(name)] for name in ("PO3", "PO4"))
    assert np.sign(left) != np.sign(right)


def test_noise_is_pink_with_alpha_mains_and_blinks():
    source = Simulated(SimulatedConfig(n_classes=4, images_per_class=25, subjects=1))
    freqs = np.fft.rfftfreq(128, 1 / 128)
    oz, front = source.ch_names.index("Oz"), source.ch_names.index("Fp1")
    noise = np.stack([source.noise(i) for i in range(100)])
    power = (np.abs(np.fft.rfft(noise * np.hanning(128), axis=2)) ** 2).mean(axis=0)
    assert power[:, 2:5].mean() > 4 * power[:, 25:40].mean()
    assert power[oz, (freqs >= 9) & (freqs <= 11)].mean() > 2 * power[oz, (freqs >= 15) & (freqs <= 17)].mean()
    artefacts = np.stack([source.artefacts(i) for i in range(100)])
    spectrum = np.abs(np.fft.rfft(artefacts * np.hanning(128), axis=2)).mean(axis=(0, 1))
    assert spectrum[50] > 5 * spectrum[40]
    blinks = np.ptp(artefacts, axis=2)
    assert 1 <= (blinks[:, front] > blinks[:, oz] + 40).sum() <= 25


def test_drift_and_alpha_are_continuous_in_recording_time():
    source = Simulated(SimulatedConfig(**SMALL))
    person = source._people[0]
    for waves in (person.drift, person.alpha, person.line):
        whole = waves.at(np.linspace(10, 12, 257))
        np.testing.assert_allclose(waves.at(np.linspace(11, 12, 129)), whole[:, 128:], atol=1e-9)


@pytest.mark.parametrize("design", ["event-randomised", "block"])
def test_time_alone_tells_the_class_only_in_the_block_design(design):
    source = Simulated(SimulatedConfig(images_per_class=40, subjects=1, n_chans=16, design=design))
    y, number = labels_of(source), numbers_of(source)
    onset = np.array([[meta["onset_s"]] for meta in source.trials])
    model = DecisionTreeClassifier(min_samples_leaf=3, random_state=0).fit(onset[number < 30], y[number < 30])
    by_time = model.score(onset[number >= 30], y[number >= 30])
    before = np.stack([source.eeg(i)[:, source.times < 0].mean(axis=1) for i in range(len(y))])
    by_drift = lda_score(before, y, number < 30, number >= 30)
    if design == "block":
        assert by_time > 0.95 and by_drift > 0.3
    else:
        assert by_time < 0.2 and by_drift < 0.25


def test_default_gives_the_documented_lda_score(default_source, default_windows):
    y, number = labels_of(default_source), numbers_of(default_source)
    assert 0.40 < lda_score(default_windows, y, number < 45, number >= 48) < 0.65


def test_default_tells_images_of_one_class_apart(default_source, default_windows):
    number = numbers_of(default_source)
    assert within_class_top1(default_source, default_windows, number < 45, number >= 48) > 0.25  # chance 1 of 12


def test_without_class_means_only_the_class_is_lost():
    source = Simulated(SimulatedConfig(images_per_class=40, subjects=1, class_means=False))
    x, y, number = windows(source).reshape(len(source.trials), -1), labels_of(source), numbers_of(source)
    assert lda_score(x, y, number < 30, number >= 30) < 0.2
    assert within_class_top1(source, x, number < 30, number >= 30) > 0.25  # chance 1 of 10


@pytest.mark.parametrize(
    "wrong", [{"n_classes": 1}, {"image_size": 48}, {"tmin_s": 0.0}, {"n_chans": 100}, {"design": "rsvp"}, {"seed": -1}]
)
def test_nonsense_is_rejected_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SimulatedConfig(**wrong)
