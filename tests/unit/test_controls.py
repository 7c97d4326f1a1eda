import numpy as np
import pytest

from eeg_gan.data import controls, summary, units
from eeg_gan.data.baseline import Quiet, quiet
from eeg_gan.data.card import Card
from eeg_gan.data.controls import (
    Trials,
    answered,
    between_blocks,
    judged,
    parts,
    permutation_p,
    shuffled_eeg,
    time_alone,
)
from eeg_gan.data.preprocess import PreprocessConfig, apply_scale, describe, filter_trial
from eeg_gan.data.ridge import Decoder
from eeg_gan.data.trial import complete

CLASSES, STIMULI = 4, 20


def card(design="event-randomised", **keys):
    return Card("a", 100.0, ("Oz", "Pz"), design, tuple("abcd"), "CC0", **keys)


def recorded(seed, blocked=False, subjects=3, playlists=None, **changed):
    """Every subject sees 20 stimuli of each of 4 classes once, 2 s apart, at random or class by class; 4 blocks.

    Each has an order of its own, or one of so many playlists.
    """
    random, metas = np.random.default_rng(seed), []
    drawn = [(random.permutation(CLASSES * STIMULI), random.permutation(CLASSES)) for _ in range(subjects)]
    for s in range(subjects):
        order, classes = drawn[s if playlists is None else s % playlists]
        order = order[np.argsort(classes[order // STIMULI], kind="stable")] if blocked else order
        for n, i in enumerate(order.tolist()):
            known = {"subject": f"s{s}", "recording": f"r{s}", "block": str(n // STIMULI), "onset_s": 2.0 * n}
            known |= {"key": f"s{s}-{i}", "label": i // STIMULI, "stimulus": f"i{i}", "tmin_s": 0.0}
            metas.append(complete({**known, **changed}))
    return metas


def trials(metas, design="event-randomised", permutations=999, seed=0):
    """A quarter of the stimuli is scored."""
    held = [int(m["stimulus"][1:]) % 4 == 0 for m in metas]
    fit, score = ([m for m, h in zip(metas, held, strict=True) if h == want] for want in (False, True))
    return Trials(fit, score, card(design), permutations, seed)


def decoder(found, x_of, seed=0):
    """On features [N, 6]: x_of(meta) plus noise."""
    random = np.random.default_rng(seed)
    x = np.array([np.asarray(x_of(m)) + random.normal(size=6) for m in [*found.fit, *found.score]])
    places = units.numbered([m["recording"] for m in [*found.fit, *found.score]])
    n = len(found.fit)
    return Decoder(x[:n], x[n:], found.y_fit, places[:n], places[n:])


def drift(meta, size=3.0):
    """Slow and different in every recording."""
    waves = np.random.default_rng(int(meta["recording"][1:])).uniform(0, 6, 6)
    return size * np.sin(meta["onset_s"] / np.linspace(20, 60, 6) + waves)


def response(meta, size=2.0):
    return size * np.eye(6)[meta["label"]]


def test_time_alone_gives_blocks_away_and_not_random_order():
    for design in ("block", "event-randomised"):  # what the card says changes the null, not the score
        found = time_alone(trials(recorded(0, blocked=True), design))
        assert found.value > 0.85 and found.chance == 0.25 and found.p == 0.001 and found.n == 60
    free = time_alone(trials(recorded(1)))
    assert free.value < 0.45 and free.p > 0.01 and free.p == time_alone(trials(recorded(1))).p
    assert free.correct.mean() == pytest.approx(free.value)


def test_labels_moved_between_blocks_are_decoded_where_blocks_have_classes_and_drift():
    blocked = trials(recorded(0, blocked=True), "block")
    found = between_blocks(blocked, decoder(blocked, drift))
    assert found.value > 0.6 and found.p == 0.001
    free = trials(recorded(0))
    assert answered(free, decoder(free, response).predict(free.y_fit), "ridge").value > 0.7
    many = trials(recorded(0, subjects=12))
    moved = between_blocks(many, decoder(many, lambda m: drift(m) + response(m)))
    assert abs(moved.value - 0.25) < 0.08 and moved.p > 0.01


def test_moving_labels_gives_every_block_another_blocks_sequence():
    metas = recorded(3)
    blocks, random = units.blocks_of(metas), np.random.default_rng(0)
    labels = np.array([m["label"] for m in metas])
    moved = units.moved_between_blocks(metas, blocks, np.arange(len(metas)), random)
    assert len(set(blocks)) == 12
    for subject in ("s0", "s1", "s2"):
        own = [b for b in set(blocks) if metas[np.flatnonzero(blocks == b)[0]]["subject"] == subject]
        before = {tuple(labels[blocks == b]) for b in own}
        assert {tuple(moved[blocks == b]) for b in own} == before
        assert all(tuple(moved[blocks == b]) != tuple(labels[blocks == b]) for b in own)


def test_blocks_are_runs_or_tenths_where_none_are_named():
    assert len(set(units.blocks_of(recorded(0, block=None)))) == 30  # tenths of three recordings
    assert len(set(units.blocks_of(recorded(0, block="1")))) == 30  # one block is none
    assert units.blocks_of(recorded(0, block=None, onset_s=None)) is None
    found = trials(recorded(0, block=None, onset_s=None))
    assert "onsets are known" in between_blocks(found, decoder(found, response)).note
    alone = [m for m in found.score if m["subject"] == "s0"]
    apart = Trials([m for m in found.fit if m["subject"] != "s0"], alone, card(), 99, 0)
    apart = Trials(
        *([m | {"onset_s": 1.0 * i, "block": "1"} for i, m in enumerate(own)] for own in (apart.fit, alone)),
        card(),
        99,
        0,
    )
    assert "no block is in both" in between_blocks(apart, decoder(apart, response)).note


def test_units_are_what_drew_the_label():
    metas = recorded(0, blocked=True)
    assert len(set(units.exchange_units(metas, card()))) == len(metas)
    assert len(set(units.exchange_units(metas, card("block")))) == 12
    assert len(set(units.exchange_units([m | {"onset_s": None} for m in metas], card("block")))) == 12
    assert len(set(units.stimulus_units(metas, card()))) == 80
    assert units.stimulus_units(metas, card("block")) is None
    own = units.exchange_units(metas, card("block"))
    assert len(set(units.exchange_groups(metas, own))) == 3  # within recordings
    single = [m | {"recording": f"{m['subject']}-{m['label']}"} for m in metas]  # a recording per class
    assert (
        len(set(units.exchange_groups(single, units.exchange_units(single, card("windowed"))))) == 3
    )  # within subjects
    same = [m | {"label": int(m["subject"][1:]), "recording": m["subject"]} for m in metas]
    assert len(set(units.exchange_groups(same, units.exchange_units(same, card("windowed"))))) == 1  # over all


def test_recordings_of_one_playlist_draw_once():
    shared = trials(recorded(0, subjects=6, playlists=2))
    own, groups = shared.drawn
    assert len(set(own)) == 40 and len(set(groups)) == 2 and len(own) == 120
    alone = trials(recorded(0, subjects=6))
    assert len(set(alone.drawn[0])) == 120 and len(set(alone.drawn[1])) == 6
    metas = recorded(0, subjects=6, playlists=1)
    blocks, together = units.blocks_of(metas), trials(metas).places_in_order
    back = {m["key"]: i for i, m in enumerate([*trials(metas).fit, *trials(metas).score])}
    together = together[[back[m["key"]] for m in metas]]
    moved = units.moved_between_blocks(metas, blocks, together, np.random.default_rng(0)).reshape(6, -1)
    labels = np.array([m["label"] for m in metas]).reshape(6, -1)
    assert (moved == moved[0]).all() and (moved != labels).any()


def test_a_playlist_that_everybody_saw_is_no_evidence():
    """20 people with one random order: what is lucky for one is lucky for all."""
    small = [time_alone(trials(recorded(seed, subjects=20, playlists=1), permutations=199)).p for seed in range(40)]
    assert 1 <= sum(p <= 0.2 for p in small) <= 17, small  # 8 expected; 3.5 standard deviations
    blocked = time_alone(trials(recorded(0, blocked=True, playlists=1)))  # by trial: no random order is like that
    assert blocked.p == 0.001
    few = time_alone(trials(recorded(0, blocked=True, playlists=1), "block"))
    assert few.least == 1 / 24 and few.value > 0.85 and few.known == 1
    assert blocked.known == 0 and time_alone(trials(recorded(0, subjects=20, playlists=1))).known == 0


def test_windows_of_one_stretch_do_not_count_as_independent():
    """One label per recording: predictions that hang together are luck, though 200 windows agree."""
    metas = [
        complete({"key": f"{r}-{i}", "label": r % 2, "subject": f"s{r}", "recording": f"r{r}", "onset_s": 1.0 * i})
        for r in range(8)
        for i in range(50)
    ]
    found = Trials(metas[:200], metas[200:], card("windowed"), 999, 0)
    lucky = np.array([int(m["recording"][1:]) % 2 for m in found.score])  # four recordings guessed right
    assert judged(found, lucky, "time").value == 1 and judged(found, lucky, "time").p > 0.1
    assert judged(Trials(found.fit, found.score, card("rsvp"), 999, 0), lucky, "time").p == 0.001


def test_p_values_are_uniform_where_there_is_nothing():
    """60 data sets of random order with drift: p below .1 in about a tenth, for each deciding control."""
    small = {"time": 0, "pre": 0, "blocks": 0}
    for seed in range(60):
        found = trials(recorded(seed, subjects=2), permutations=199, seed=seed)
        drifting = decoder(found, drift, seed)
        small["time"] += time_alone(found).p <= 0.1
        small["pre"] += judged(found, drifting.predict(found.y_fit), "pre").p <= 0.1
        small["blocks"] += between_blocks(found, decoder(found, lambda m: drift(m) + response(m), seed)).p <= 0.1
    assert all(n <= 14 for n in small.values()), small  # 6 expected; 3.5 standard deviations


def test_permutation_p_agrees_with_counting():
    """Two units a group: the label of each may change places, four arrangements of which one is as good."""
    gains = np.eye(2)[[0, 1, 0, 1]]
    labels, own, groups = np.array([0, 1, 0, 1]), np.arange(4), np.array([0, 0, 1, 1])
    value, p = permutation_p(gains, labels, own, groups, 4000, np.random.default_rng(0))
    assert value == 4 and p == pytest.approx(0.25, abs=0.03)
    _, joint = permutation_p(gains, labels, np.array([0, 0, 1, 1]), np.zeros(4, int), 500, np.random.default_rng(0))
    assert joint == 1  # whole units of one label each


def test_balanced_accuracy_gives_rare_classes_an_equal_say():
    metas = [m for m in recorded(0) if m["label"] == 0 or int(m["stimulus"][1:]) % 8 < 2]
    found = trials(metas)
    always = answered(found, np.zeros(len(found.score), dtype=int), "ridge")
    assert always.value == pytest.approx(0.25) and always.p > 0.5
    assert answered(found, decoder(found, lambda m: response(m, 4)).predict(found.y_fit), "ridge").value > 0.8


def test_shuffled_eeg_is_at_chance():
    found = trials(recorded(0))
    shuffled = shuffled_eeg(found, decoder(found, lambda m: response(m, 5)))
    assert shuffled.value < 0.45 and shuffled.p > 0.001


def test_what_cannot_be_decided_says_why():
    metas = recorded(0)
    empty = Trials(metas, [], card(), 99, 0)
    assert time_alone(empty).value is None and "none to score" in time_alone(empty).note
    found = time_alone(trials(recorded(0, onset_s=None)))
    assert found.value is None and found.chance == 0.25 and "onsets or recordings are unknown" in found.note


def test_parts():
    metas = recorded(0)
    halves = {"train": [m for m in metas if m["label"] < 2], "test": [m for m in metas if m["label"] >= 2]}
    fit, score, note = parts(halves)
    assert (
        {split for split, _ in fit + score} == {"test"} and len(fit) == len(score) and "fewer than two classes" in note
    )
    assert not {halves["test"][i]["stimulus"] for _, i in fit} & {halves["test"][i]["stimulus"] for _, i in score}
    assert (
        parts({"train": metas, "val": metas})[1][0][0] == "val"
        and "test split is empty" in parts({"train": metas, "val": metas})[2]
    )
    assert parts({"train": metas}) == (
        [],
        [],
        "only one split holds trials, so controls that compare two cannot be made",
    )
    assert len(controls.thinned(list(range(10)), 4)) == 4


def filtered(config, n=240, size=8.0, seed=0):
    """Trials of pure noise before the stimulus and a late response by class, filtered; [N, C, T] and their labels."""
    random, the_card = np.random.default_rng(seed), card(tmin_s=-0.4)
    labels, times = np.arange(n) % 2, np.arange(-40, 80) / 100
    eeg = random.normal(size=(n, 2, 120)).cumsum(axis=2) * 0.2 + random.normal(size=(n, 2, 120))
    eeg += size * ((times > 0.02) * (2 * labels[:, None] - 1))[:, None]
    done = [filter_trial(x.astype(np.float32), 100.0, -0.4, config, the_card)[0] for x in eeg]
    scale = {"kind": "none"}
    about = {**describe(config, scale), "sfreq": 100.0, "tmin_s": -0.4, "raw_samples": 120}
    return np.stack([apply_scale(x, scale, config) for x in done]), labels, about, the_card


@pytest.mark.parametrize(
    "keys", [{"highpass_hz": 0.5, "lowpass_hz": 30.0}, {"lowpass_hz": 10.0}, {"highpass_hz": 1.0, "baseline": True}]
)
def test_a_filter_over_the_onset_does_not_fool_the_baseline(keys):
    eeg, labels, about, the_card = filtered(PreprocessConfig(**keys, scale="none", clip=None))
    free, places = quiet(about, the_card, 120), np.zeros(120, dtype=int)
    assert free.directions.shape[1] >= 6

    def score(window):
        x = summary.before(eeg, window)
        return (Decoder(x[:120], x[120:], labels[:120], places, places).predict(labels[:120]) == labels[120:]).mean()

    assert score(Quiet(np.eye(40), "")) > 0.9  # the smear
    assert score(free) < 0.65


def test_the_baseline_keeps_what_is_its_own():
    """A difference before the stimulus is still found after projection."""
    eeg, labels, about, the_card = filtered(PreprocessConfig(highpass_hz=0.5, lowpass_hz=30.0, scale="none"), size=0)
    eeg[:, 0, :40] += (2 * labels[:, None] - 1) * np.sin(2 * np.pi * 12 * np.arange(40) / 100)
    x, places = summary.before(eeg, quiet(about, the_card, 120)), np.zeros(120, dtype=int)
    assert (Decoder(x[:120], x[120:], labels[:120], places, places).predict(labels[:120]) == labels[120:]).mean() > 0.9


def test_there_may_be_no_baseline_to_look_at():
    about = {**describe(PreprocessConfig(), {"kind": "robust"}), "sfreq": 100.0, "tmin_s": 0.02}
    assert "nothing precedes the stimulus" in quiet(about, card(tmin_s=0.02), 100).reason
    legacy = {**describe(PreprocessConfig(scale="legacy_max"), {"kind": "legacy_max"}), "sfreq": 100.0, "tmin_s": -0.2}
    assert "maximum of the whole trial" in quiet(legacy, card(tmin_s=-0.2), 100).reason
    cropped = {**describe(PreprocessConfig(crop_s=(-0.2, 0.5)), {"kind": "robust"}), "sfreq": 100.0, "tmin_s": -0.2}
    assert "does not say how long" in quiet(cropped, card(tmin_s=-0.4), 70).reason
    unfiltered = quiet(cropped | {"raw_samples": 120}, card(tmin_s=-0.4), 70)
    assert unfiltered.directions.shape == (20, 20) and "no filter" in unfiltered.reason
