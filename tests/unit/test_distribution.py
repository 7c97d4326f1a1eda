import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from eeg_gan.metrics import distribution
from eeg_gan.metrics.distribution import (
    density_coverage,
    frechet,
    frechet_by_class,
    inception_score,
    inside,
    kid,
    nearest,
    precision_recall,
)
from eeg_gan.torchvision_compat import load


def test_frechet_is_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(200, 6)) + 0.5
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * sqrtm(s_a @ s_b).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(a[:5], b) == pytest.approx(frechet(b, a[:5]), rel=1e-8)


@pytest.mark.parametrize("n", [2, 10, 100])
def test_frechet_of_a_set_and_itself_is_zero_even_with_fewer_samples_than_features(n):
    a = np.random.default_rng(0).normal(size=(n, 32))
    assert 0 <= frechet(a, a) < 1e-8
    assert frechet(a, a + 1) == pytest.approx(32, rel=1e-6)


def test_frechet_refuses_one_sample_and_nan():
    with pytest.raises(ValueError, match="2 samples or more"):
        frechet(np.ones((1, 4)), np.ones((8, 4)))
    with pytest.raises(ValueError, match="not finite"):
        frechet(np.full((4, 4), np.nan), np.ones((8, 4)))


def test_kid_is_unbiased_and_grows_with_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 8)), rng.normal(size=(500, 8))
    same, spread = kid(a, b, subsets=50, size=50)
    assert abs(same) < 3 * spread / 50**0.5 + 0.02
    assert kid(a, b + 1, subsets=20, size=100)[0] > kid(a, b + 0.5, subsets=20, size=100)[0] > 0.1
    assert kid(a, b, subsets=5, size=50, seed=3) == kid(a, b, subsets=5, size=50, seed=3)
    assert kid(a[:10], b, subsets=2, size=1000)[0] is not None


def test_precision_and_recall_see_collapse_and_strangers():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    assert precision_recall(real, real) == (1.0, 1.0)
    precision, recall = precision_recall(real, 0.01 * rng.normal(size=(200, 4)))
    assert precision > 0.95 and recall < 0.05
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_density_and_coverage_see_collapse():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    density, coverage = density_coverage(real, fake)
    assert 0.8 < density < 1.2 and coverage > 0.85
    assert density_coverage(real, np.zeros((50, 4)))[1] < 0.2
    assert density_coverage(real, fake + 100) == (0.0, 0.0)


def test_frechet_of_gaussians_is_the_formula():
    """Samples whose moments are exact: m = 0 and 1, standard deviations 1, 2 and 3, 1."""
    corners = np.array([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]) * (3 / 4) ** 0.5  # unbiased variance 1
    expected = 2 + (1 - 3) ** 2 + (2 - 1) ** 2
    assert frechet(corners * [1, 2], corners * [3, 1] + 1) == pytest.approx(expected)


def test_kid_is_unbiased():
    """The mean over all splits of one small set in two is 0 to rounding only if it is: the biased one is above 0."""
    rng = np.random.default_rng(0)
    values = [kid(*rng.permutation(rng.normal(size=(12, 3))).reshape(2, 6, 3), 1, 6)[0] for _ in range(3000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 3000**0.5


def test_frechet_by_class_leaves_out_what_cannot_be_measured():
    a = np.arange(12.0).reshape(6, 2)
    found = frechet_by_class(a, a + 1, np.array([0, 0, 1, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1]))
    assert found == pytest.approx({0: 2.0, 1: frechet(a[2:5], a[2:] + 1)})


def test_inception_score_of_sure_and_of_blind_predictions():
    sure = 50 * np.eye(4)[np.arange(40) % 4]
    assert inception_score(sure, 10) == pytest.approx((4, 0))
    assert inception_score(np.zeros((40, 4)), 10) == pytest.approx((1, 0))
    assert inception_score(50 * np.eye(4)[np.zeros(40, int)], 1)[0] == pytest.approx(1)


def test_balls_and_nearest_on_a_line():
    centres, points = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [2.0], [9.0]])
    per_point, per_centre = inside(points, centres, 1)  # radii 1, 1, 2
    assert per_point.tolist() == [2, 2, 0] and per_centre.tolist() == [1, 2, 1]
    assert nearest(points, centres).tolist() == [0.5, 1.0, 6.0]


def test_parts_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(60, 4)).astype(np.float32)

    def figures():
        return [frechet(a, b), *precision_recall(a, b), *density_coverage(a, b), nearest(a, b).sum()]

    whole = figures()
    monkeypatch.setattr(distribution, "CHUNK", 7)
    monkeypatch.setattr(distribution, "ENTRIES", 130)
    assert figures() == pytest.approx(whole)


def two_sets():
    rng = np.random.default_rng(4)
    return rng.normal(size=(40, 3)), rng.normal(size=(55, 3)) * [1.5, 0.5, 1] + 0.4


def test_kid_is_the_double_sum_of_its_definition():
    a, b = two_sets()

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    def within(x):
        return np.mean([kernel(p, q) for p, q in itertools.permutations(x, 2)])

    expected = within(a) + within(b) - 2 * np.mean([kernel(p, q) for p, q in itertools.product(a, b)])
    assert kid(a, b)[0] == pytest.approx(expected, rel=1e-10)


def test_manifolds_by_brute_force():
    real, fake = two_sets()

    def reach(points, i, k):
        return sorted(np.linalg.norm(points[i] - q) for j, q in enumerate(points) if j != i)[k - 1]

    def held(points, centres, k):
        """[points, centres]"""
        radii = [reach(centres, i, k) for i in range(len(centres))]
        return np.array([[np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)] for p in points])

    precision, recall = held(fake, real, 3).any(1).mean(), held(real, fake, 3).any(1).mean()
    assert precision_recall(real, fake) == pytest.approx((precision, recall)) and 0 < recall < precision < 1
    balls = held(fake, real, 5)
    assert density_coverage(real, fake) == pytest.approx((balls.sum() / (5 * len(fake)), balls.any(0).mean()))


def test_figures_are_those_of_torch_fidelity():
    """Whose numbers are the published ones, on the same features; subsets are as large as the sets."""
    real, fake = (x[:40] for x in two_sets())
    of = {name: load(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "isc", "prc")}
    tensors = [torch.from_numpy(x) for x in (fake, real)]
    stats = [of["fid"].fid_features_to_statistics(x) for x in tensors]
    theirs = of["fid"].fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert frechet(real, fake) == pytest.approx(theirs, rel=1e-6)
    words = {"kid_subsets": 2, "kid_subset_size": 40, "kid_degree": 3, "kid_gamma": None, "kid_coef0": 1}
    found = of["kid"].kid_features_to_metric(*tensors, **words, verbose=False, rng_seed=0)
    assert kid(real, fake, 2, 40)[0] == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-6)
    found = of["isc"].isc_features_to_metric(tensors[0], splits=4, shuffle=False)
    values = (found["inception_score_mean"], found["inception_score_std"])
    assert inception_score(fake, 4) == pytest.approx(values, rel=1e-9)
    found = of["prc"].prc_features_to_metric(*tensors, prc_neighborhood=3, prc_batch_size=16, verbose=False)
    assert precision_recall(real, fake) == pytest.approx((found["precision"], found["recall"]))
