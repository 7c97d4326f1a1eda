"""Orders that recordings share are found in their labels, dropped trials or not, and own orders are left alone."""

import numpy as np
import pytest

from eeg_gan.data import orders
from eeg_gan.data.trial import complete


def metas_of(*recordings, run=None, start=0.0):
    """Recordings as lists of labels; `run` is the number of trials of a run."""
    return [
        complete(
            {
                "key": f"{r}-{i}",
                "label": label,
                "recording": f"r{r:03d}",
                "subject": f"s{r}",
                "onset_s": start + i + r / 10,
                "run": None if run is None else str(i // run),
            }
        )
        for r, labels in enumerate(recordings)
        for i, label in enumerate(labels)
    ]


def merged(metas):
    found = orders.merged(metas, np.arange(len(metas)))
    labels = np.array([m["label"] for m in metas])
    assert all(len(set(labels[found == unit])) == 1 for unit in set(found.tolist()))
    return found


def drawn(seed, n=80, classes=4):
    return np.random.default_rng(seed).permutation(np.arange(n) % classes).tolist()


def without(labels, share, seed):
    return [x for x, kept in zip(labels, np.random.default_rng(seed).random(len(labels)) > share, strict=True) if kept]


@pytest.mark.parametrize("n, classes", [(80, 4), (400, 2), (40, 10), (12, 3)])
def test_own_orders_stay_apart(n, classes):
    metas = metas_of(*(drawn(seed, n, classes) for seed in range(20)))
    assert len(set(merged(metas))) == len(metas)


def test_one_playlist_and_two():
    assert len(set(merged(metas_of(*[drawn(0)] * 5)))) == 80
    assert len(set(merged(metas_of(*[drawn(0), drawn(1)] * 4)))) == 160
    mixed = merged(metas_of(drawn(0), drawn(1), drawn(0), drawn(2)))
    assert len(set(mixed)) == 240 and (mixed[:80] == mixed[160:240]).all()


def test_short_playlists_count_where_many_agree():
    few = [0, 1, 1, 0, 1, 0]
    assert len(set(merged(metas_of(*[few] * 20)))) == 6
    assert len(set(merged(metas_of(few, few)))) == 12  # one of twenty pairs is equal by chance
    constant = metas_of(*[[1, 1, 1]] * 10)
    assert len(set(merged(constant))) == 30  # nothing was drawn


@pytest.mark.parametrize("classes", [2, 4])
def test_dropped_trials_do_not_hide_a_playlist(classes):
    playlist = drawn(0, 200, classes)
    metas = metas_of(*(without(playlist, 0.05, seed) for seed in range(6)), drawn(9, 200, classes))
    found = merged(metas)
    own = [m["recording"] for m in metas].index("r006")
    assert len(set(found[:own])) < 280, "six times 190 trials, 200 draws"
    assert len(set(found[own:])) == 200 and not set(found[own:]) & set(found[:own])


def test_playlists_that_come_again_in_runs_of_one_recording():
    playlist, other = drawn(0), drawn(1)
    again = merged(metas_of(playlist * 3, playlist * 3, run=80))
    assert len(set(again)) == 80
    swapped = merged(metas_of(playlist + other, other + playlist, run=80))
    assert len(set(swapped)) == 160
    assert len(set(merged(metas_of(playlist + other, drawn(2, 160), run=80)))) == 320


def test_long_orders_are_aligned_in_parts(monkeypatch):
    playlist = drawn(0, 300, 5)
    metas = metas_of(without(playlist, 0.1, 1), without(playlist, 0.1, 2))
    whole = len(set(merged(metas)))
    monkeypatch.setattr(orders, "TABLE", 500)
    assert len(set(merged(metas))) == whole < 340


def test_unknown_onsets_change_nothing():
    metas = [meta | {"onset_s": None} for meta in metas_of(*[drawn(0)] * 3)]
    assert len(set(merged(metas))) == 240


def test_groups_join_what_is_shared_alone():
    groups, units = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 2, 3, 4])
    found = orders.shared_groups(groups, units)
    assert found[0] == found[2] and len(set(found.tolist())) == 4 and found[4] == found[5]


def test_arrangements():
    labels, groups = np.array([0, 1, 2, 3, 0, 1]), np.array([0, 0, 0, 0, 1, 1])
    assert np.exp(orders.log_arrangements(labels, groups)) == pytest.approx(24 * 2)
    assert orders.log_arrangements(np.array([1, 1]), np.array([0, 0])) == 0
