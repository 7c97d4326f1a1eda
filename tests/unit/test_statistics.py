import json

import numpy as np
import pytest

from eeg_gan.metrics.statistics import bootstrap_mean, permutation_p, record, wilson


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(2, 1, 400)
    value, low, high = bootstrap_mean(values)
    assert value == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_mean(values) == (value, low, high)
    assert bootstrap_mean(values, seed=1)[1] != low


def test_bootstrap_over_groups_is_wider_when_trials_of_a_group_agree():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"stimulus {i}" for i in range(20)], 30)
    values = np.repeat(rng.random(20) < 0.5, 30).astype(float)
    value, low, high = bootstrap_mean(values, groups)
    alone = bootstrap_mean(values)
    assert value == alone[0]
    assert high - low > 4 * (alone[2] - alone[1])


def test_bootstrap_of_one_value_has_no_width_and_of_none_is_refused():
    assert bootstrap_mean([0.25]) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="empty"):
        bootstrap_mean([])


def test_wilson_known_values():
    assert wilson(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[2] == 1.0
    with pytest.raises(ValueError, match="k of n"):
        wilson(3, 0)


def test_record_is_plain_json():
    entry = record(np.float32(0.5), np.float64(0.4), float("nan"), None, np.int64(7))
    assert json.loads(json.dumps(entry)) == {"value": 0.5, "low": 0.4, "high": None, "chance": None, "n": 7}


def test_permutation_p_of_a_clear_and_of_no_effect():
    labels = np.arange(20) % 2
    signal = labels + np.linspace(0, 0.1, 20)
    observed, p = permutation_p(lambda y: signal[y == 1].mean() - signal[y == 0].mean(), labels, n=199)
    assert observed > 0.9 and p == 1 / 200
    assert permutation_p(lambda y: 0.0, labels, n=50)[1] == 1.0
