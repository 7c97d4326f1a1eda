import numpy as np
import pytest

from eeg_gan.config import UserError
from eeg_gan.metrics import probes
from eeg_gan.metrics.statistics import over_seeds, p_value, shuffled_labels


def blobs(n=120, classes=3, spread=0.4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return 3 * np.eye(classes, 6)[y] + spread * rng.normal(size=(n, 6)), y


def ring(n=200, seed=0):
    """Two classes, one inside the other: no straight line parts them."""
    rng = np.random.default_rng(seed)
    y, angle = np.arange(n) % 2, rng.uniform(0, 2 * np.pi, n)
    return ((1 + 2 * y) + 0.2 * rng.normal(size=n))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), y


@pytest.mark.parametrize("name", probes.PROBES)
def test_probes_know_blobs_and_guess_where_there_is_nothing(name):
    z, y = blobs()
    assert (probes.predicted(name, z[:90], y[:90], z[90:]) == y[90:]).mean() > 0.95
    noise = np.random.default_rng(1).normal(size=z.shape)
    assert (probes.predicted(name, noise[:90], y[:90], noise[90:]) == y[90:]).mean() < 0.7
    with pytest.raises(UserError, match="one class only"):
        probes.predicted(name, z[:9], np.zeros(9, dtype=int), z)


def test_only_the_kernel_machine_parts_a_ring_from_its_middle(monkeypatch):
    z, y = ring()
    right = {name: (probes.predicted(name, z[:150], y[:150], z[150:]) == y[150:]).mean() for name in probes.PROBES}
    assert right["svm_rbf"] > 0.95 and max(right["svm"], right["logistic"]) < 0.75
    monkeypatch.setattr(probes, "LARGEST", 60)
    assert (probes.predicted("svm_rbf", z[:150], y[:150], z[150:]) == y[150:]).mean() > 0.9


def test_folds_keep_groups_together_and_spread_classes():
    y = np.repeat(np.arange(3), 40)
    groups = np.array([f"{label}-{i // 4}" for label in range(3) for i in range(40)])  # 4 of a picture
    folds = probes.folds_of(groups, y, 5)
    assert all(len(set(folds[groups == g].tolist())) == 1 for g in set(groups.tolist()))
    assert all(np.bincount(folds[y == label]).tolist() == [8] * 5 for label in range(3))
    z = 3 * np.eye(3)[y] + 0.3 * np.random.default_rng(0).normal(size=(120, 3))
    assert (probes.predicted_in_folds("knn", z, y, folds) == y).mean() > 0.95
    with pytest.raises(UserError, match="5 folds need 5 groups"):
        probes.folds_of(["a", "a", "b"], np.zeros(3, dtype=int), 5)


def test_a_fold_does_not_teach_itself():
    """Each picture has a code of its own in its features: known pictures would be told, new ones cannot be."""
    rng = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(40), 5), np.repeat(rng.integers(0, 2, 40), 5)
    z = np.repeat(rng.normal(size=(40, 8)), 5, axis=0)
    assert (probes.predicted_in_folds("knn", z, y, probes.folds_of(groups, y, 5)) == y).mean() < 0.75
    assert (probes.predicted_in_folds("knn", z, y, probes.folds_of(np.arange(200), y, 5)) == y).mean() > 0.85


def test_labels_move_with_their_picture_or_around_their_recording():
    y, pictures = np.repeat([0, 1, 0, 1, 1], 3), np.repeat(np.arange(5), 3)
    for moved in shuffled_labels(y, pictures, n=20):
        assert (moved.reshape(5, 3) == moved.reshape(5, 3)[:, :1]).all() and moved.sum() == y.sum()
    recordings, order = np.repeat([0, 1], 6), np.array([5, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 5])
    y = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0])
    seen = {tuple(moved) for moved in shuffled_labels(y, recordings, order, n=200)}
    assert {sum(moved[6:]) for moved in seen} == {2}, "labels stay in their recording"
    neighbours = [np.flatnonzero(np.array(moved[6:])) for moved in seen]
    assert all((pair[1] - pair[0]) in (1, 5) for pair in neighbours), "and keep how they follow one another"
    assert len(seen) == 36


def test_p_is_small_for_what_labels_tell_and_fair_without():
    y = np.arange(60) % 3
    assert p_value(lambda labels: (labels == y).mean(), y, shuffled_labels(y, np.arange(60), n=99)) == 0.01
    said = np.random.default_rng(3).permutation(y)
    assert p_value(lambda labels: (labels == said).mean(), y, shuffled_labels(y, np.arange(60), n=99)) > 0.05


def test_mean_and_spread_over_seeds():
    runs = [{"a": {"value": value}, "b": {"value": None}} for value in (0.5, 0.7, 0.6)]
    found = over_seeds([*runs[:2], {**runs[2], "c": {"value": 1.0}}])
    assert found.keys() == {"a"} and found["a"]["mean"] == pytest.approx(0.6) and found["a"]["sd"] == pytest.approx(0.1)
    assert over_seeds(runs[:1])["a"]["sd"] is None
