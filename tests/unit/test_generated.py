"""Figures of toy sets whose answers are known."""

import numpy as np
import pytest

from eeg_gan.config import UserError
from eeg_gan.metrics.generated import METRICS, MetricName, Seen, Sets, ceilings, figures, linear_probe


def seen(seed, n=60, shift=0.0, scale=1.0):
    """Two classes, 6 apart along the first of four axes; logits tell them apart."""
    labels = np.arange(n) % 2
    features = scale * np.random.default_rng(seed).normal(size=(n, 4)) + shift
    features[:, 0] += 6 * labels
    return Seen(features.astype(np.float32), 9 * np.eye(2)[labels], labels, np.arange(n) // 2)


def sets(fake, predict=lambda s: s.logits.argmax(1)):
    return Sets(fake, seen(1), seen(2, 90), predict)


def test_every_metric_has_its_name():
    assert MetricName.__args__ == tuple(METRICS)


def test_a_good_generator_scores_like_real_pictures():
    fake = seen(3)
    fake.path_lengths, fake.pair_distances = np.arange(200.0), np.ones(5)
    found = figures(tuple(METRICS), sets(fake))
    far = figures(["kid"], sets(seen(3, shift=1.0)))["kid"].mean
    assert abs(found["kid"].mean) < 0.1 * far and found["fid"].mean < 1 and found["inception_score"].mean > 1.9
    assert min(found[name].mean for name in ("precision", "recall", "density", "coverage")) > 0.7
    assert found["class_accuracy"].mean == 1 and found["copies"].mean < 0.2
    assert found["ppl"].mean == pytest.approx(99.5) and found["ppl"].values.max() < 199
    assert found["perceptual_diversity"].mean == 1


def test_collapse_copies_and_wrong_classes_are_seen():
    flat = seen(3, scale=0.0)
    flat.conditions = flat.labels
    found = figures(tuple(METRICS), sets(flat))
    assert found["diversity"].mean == 0 and found["recall"].mean < 0.2 and found["coverage"].mean < 0.9
    copied = sets(seen(3))
    copied.fake = copied.train.at(range(60))
    found = figures(tuple(METRICS), copied)
    assert found["copies"].mean == 1 and found["nearest_train"].mean == pytest.approx(0, abs=1e-5)
    wrong = seen(3)
    wrong.labels = 1 - wrong.labels
    assert figures(["class_accuracy", "intra_fid"], sets(wrong))["class_accuracy"].mean == 0
    assert figures(["intra_fid"], sets(wrong))["intra_fid"].mean > 30 > 5 * figures(["fid"], sets(wrong))["fid"].mean


def test_ceilings_are_of_real_pictures():
    given = sets(seen(3, shift=50.0))
    found = ceilings(tuple(METRICS), given, range(60))
    assert found["fid"].mean < 1 and found["class_accuracy"].mean == 1
    assert found["diversity"].mean > 1, "within a class"
    assert not {"copies", "kid_train", "ppl"} & found.keys()


def test_a_detector_without_logits_is_probed():
    train = seen(2, 90)
    predict = linear_probe(train, 2)
    assert (predict(seen(5)) == seen(5).labels).mean() > 0.95
    train.labels = np.zeros(90, int)
    with pytest.raises(UserError, match="1 of 2 classes"):
        linear_probe(train, 2)
    blind = seen(3)
    blind.logits = np.zeros((60, 0))
    assert figures(["inception_score", "class_accuracy"], sets(blind, None)) == {}
