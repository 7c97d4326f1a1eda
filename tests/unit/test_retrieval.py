import numpy as np

from eeg_gan.metrics.retrieval import chance_top_k, ranks, top_k, within_class_ranks


def test_ranks_by_hand():
    gallery = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    query = np.array([[3.0, 0.1], [3.0, 0.1], [0.0, 1.0]])
    assert ranks(query, gallery, np.array([0, 2, 0])).tolist() == [0, 1, 2]
    assert top_k(np.array([0, 1, 2]), 2).tolist() == [True, True, False]


def test_ties_and_nan_count_against_us():
    gallery = np.ones((5, 4)) * np.linspace(1, 2, 5)[:, None]
    target = np.arange(5)
    assert ranks(np.ones((5, 4)), gallery, target).tolist() == [4] * 5
    assert ranks(np.full((5, 4), np.nan), gallery, target).tolist() == [4] * 5
    assert ranks(np.zeros((5, 4)), gallery, target).tolist() == [4] * 5


def test_within_class_leaves_out_the_other_classes():
    gallery = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])
    rank, size = within_class_ranks(np.array([[1.0, 0.0]] * 3), gallery, np.array([0, 2, 3]), labels)
    assert rank.tolist() == [0, 1, 1]
    assert size.tolist() == [2, 2, 2]
    assert chance_top_k(np.array([2, 10]), 5).tolist() == [1.0, 0.5]


def test_random_queries_are_at_chance():
    rng = np.random.default_rng(0)
    rank = ranks(rng.normal(size=(3000, 16)), rng.normal(size=(50, 16)), rng.integers(50, size=3000))
    assert abs(top_k(rank, 5).mean() - 0.1) < 0.02
    assert rank.min() == 0 and rank.max() == 49
