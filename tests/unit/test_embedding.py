import numpy as np
import pytest

from eeg_gan.metrics.embedding import (
    balanced_accuracy,
    clusters,
    decimate,
    kmeans_accuracy,
    knn_accuracy,
    lda_baseline,
    linear_svm,
    matched_accuracy,
    nmi_ari,
)


def blobs(n, classes, seed, distance=6.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return np.eye(classes, 8)[labels] * distance + rng.normal(size=(n, 8)), labels


def test_matched_accuracy_by_hand():
    found, labels = np.array([2, 2, 2, 0, 0, 1]), np.array([7, 7, 9, 9, 9, 7])
    accuracy, correct = matched_accuracy(found, labels)
    assert correct.tolist() == [True, True, False, True, True, False]
    assert accuracy == pytest.approx(4 / 6)


def test_kmeans_finds_blobs_whatever_their_names_are():
    z, labels = blobs(120, 4, 0)
    accuracy, correct = kmeans_accuracy(z, 10 - 3 * labels, 4, seed=0)
    assert accuracy == correct.mean() >= 0.99
    nmi, ari = nmi_ari(clusters(z, 4, 0), labels)
    assert nmi > 0.95 and ari > 0.95
    with pytest.raises(ValueError, match="4 samples or more"):
        kmeans_accuracy(z[:3], labels[:3], 4)


def test_classifiers_know_blobs_and_not_noise():
    z, labels = blobs(200, 3, 1)
    noise = np.random.default_rng(2).normal(size=z.shape)
    for score in (knn_accuracy, linear_svm):
        assert score(z[:100], labels[:100], z[100:], labels[100:]).mean() > 0.95
        assert score(noise[:100], labels[:100], noise[100:], labels[100:]).mean() < 0.5
    assert score(z[:100], labels[:100], z[100:], labels[100:]).dtype == bool


def test_lda_baseline_sees_a_deflection():
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 2
    x = rng.normal(size=(160, 4, 64)).astype(np.float32)
    x[labels == 1, 2, 20:30] += 1.0
    assert lda_baseline(x[:80], labels[:80], x[80:], labels[80:]).mean() > 0.85


def test_decimate_takes_means_of_equal_stretches():
    x = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    assert decimate(x, 5).ravel().tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert decimate(x, 50).shape == (1, 1, 10)


def test_balanced_accuracy_of_a_constant_guess_is_one_over_classes():
    labels = np.array([0] * 90 + [5] * 10)
    assert balanced_accuracy(labels == 0, labels) == 0.5
