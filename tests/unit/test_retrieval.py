import itertools

import numpy as np

from eeg_gan.metrics.linear_map import ridge_to
from eeg_gan.metrics.retrieval import (
    chance_top_k,
    class_ranks,
    k_way,
    ranks,
    ranks_of_answers,
    repetitions,
    top_k,
    within_class_ranks,
)


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


def test_a_smaller_gallery_is_the_mean_over_all_draws():
    """Against every draw of distractors, one by one."""
    size = 6
    for rank in range(size):
        nearer = np.arange(size - 1) < rank  # of the others
        for k in (2, 4, 6):
            for top in (1, 2):
                draws = [nearer[list(own)].sum() < top for own in itertools.combinations(range(size - 1), k - 1)]
                assert abs(k_way(np.array([rank]), size, k, top)[0] - np.mean(draws)) < 1e-12
    assert k_way(np.array([0, 3]), size, size).tolist() == [1, 0], "all others: the plain rank"


def test_chance_of_a_smaller_gallery_is_one_in_k():
    rank = np.arange(50)  # every rank once, as guessing gives
    for k in (2, 10, 50):
        assert abs(k_way(rank, 50, k).mean() - 1 / k) < 1e-12


def test_a_class_is_as_near_as_its_best_item():
    gallery, labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [-1.0, 0.0]]), np.array([3, 5, 5, 8])
    query = np.array([[1.0, 0.05], [1.0, 0.05], [1.0, 0.05], [0.0, 1.0]])
    rank, classes = class_ranks(query, gallery, np.array([3, 5, 8, 7]), labels)
    assert rank.tolist() == [0, 1, 2, 3] and classes == 3, "a class that the gallery lacks comes last"
    assert class_ranks(np.full((1, 2), np.nan), gallery, np.array([3]), labels)[0].tolist() == [2]


def test_trials_of_the_same_picture_do_not_compete():
    pictures = np.array([[1.0, 0.0], [0.0, 1.0]])
    trials = np.array([[1.0, 0.1], [0.5, 0.6], [0.7, 0.5]])  # two of picture 0, one of picture 1
    rank, size = ranks_of_answers(pictures, trials, np.array([0, 0, 1]))
    assert rank.tolist() == [0, 1, 1] and size.tolist() == [2, 2, 3]


def test_repetitions_are_disjoint_and_of_one_name():
    names = ["a"] * 5 + ["b"] * 2 + ["c"]
    two = repetitions(names, 2, seed=0)
    assert sorted(map(len, two)) == [2, 2, 2] and len(set(np.concatenate(two).tolist())) == 6
    assert all(len({names[i] for i in own}) == 1 for own in two)
    assert sorted(map(len, repetitions(names, None, seed=0))) == [2, 5]
    assert repetitions(names, 8, seed=0) == []
    assert [own.tolist() for own in two] == [own.tolist() for own in repetitions(names, 2, seed=0)]


def test_a_linear_map_is_found_and_judged_on_others():
    rng = np.random.default_rng(0)
    z, true = rng.normal(size=(400, 6)), rng.normal(size=(6, 9))
    pictures = z @ true + 0.1 * rng.normal(size=(400, 9)) + 5.0  # a common offset, as towers have
    query, gallery = ridge_to(z[:300], pictures[:300], z[300:], pictures[300:])
    assert top_k(ranks(query, gallery, np.arange(100)), 1).mean() > 0.8
    shuffled, gallery = ridge_to(z[:300], pictures[rng.permutation(300)], z[300:], pictures[300:])
    assert top_k(ranks(shuffled, gallery, np.arange(100)), 1).mean() < 0.1
