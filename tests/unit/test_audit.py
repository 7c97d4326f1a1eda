import numpy as np
import pytest

from eeg_gan.data.audit import decode_from_time, duplicates, eeg_digest, overlaps, report, window_overlaps
from eeg_gan.data.card import Card
from eeg_gan.data.splits import SplitConfig, assign, policy
from eeg_gan.data.trial import complete

CLEAN = {"by": "stimulus", "confounded": False, "reasons": []}


def card(design="event-randomised"):
    return Card("a", 100.0, ("Oz",), design, tuple("abcde"), "CC0")


def recorded(order, subjects=2):
    """Five classes of 20 stimuli, one every 2 s, in the order that a function of (subject) gives."""
    metas = []
    for s in range(subjects):
        for n, (c, i) in enumerate(order(s)):
            metas.append(
                complete(
                    {
                        "key": f"s{s}-c{c}-i{i}",
                        "label": c,
                        "subject": f"s{s}",
                        "recording": f"r{s}",
                        "block": str(n // 20),
                        "onset_s": 2.0 * n,
                        "tmin_s": 0.0,
                        "sfreq": 100.0,
                        "stimulus": f"c{c}-i{i}",
                    }
                )
            )
    return metas


def in_blocks(s):
    return [(c, i) for c in range(5) for i in range(20)]


def at_random(s):
    return [in_blocks(s)[n] for n in np.random.default_rng(s).permutation(100)]


def divided(metas, design, **keys):
    config = SplitConfig(**keys)
    assigned = assign(metas, config, card(design))
    by_split = {s: [m for m, a in zip(metas, assigned, strict=True) if a == s] for s in ("train", "val", "test")}
    return by_split, policy(metas, assigned, config, card(design))


def test_overlaps():
    metas = {"train": [{"stimulus": "a"}, {"stimulus": "b"}], "test": [{"stimulus": "b"}, {"stimulus": None}]}
    assert overlaps(metas, "stimulus") == {"train/test": 1}
    assert overlaps({"train": [{"stimulus": None}], "test": [{"stimulus": None}]}, "stimulus") == {"train/test": 0}


def test_windows():
    def meta(onset, recording="r"):
        return complete({"key": "k", "label": 0, "recording": recording, "onset_s": onset, "tmin_s": -0.2})

    train = [meta(0.0), meta(10.0)]
    near, meets, elsewhere, unknown = meta(0.9), meta(9.0), meta(0.9, "q"), meta(None)
    assert window_overlaps({"train": train, "test": [near]}, 1.0) == {"train/test": 1}
    assert window_overlaps({"train": train, "test": [meets, elsewhere, unknown]}, 1.0) == {"train/test": 0}
    assert window_overlaps({"train": train, "test": [meets]}, 1.1) == {"train/test": 1}


def test_duplicates():
    eeg = np.ones((2, 3), np.float32)
    test = [eeg_digest(eeg.copy()), eeg_digest(eeg * 2)]
    found = duplicates({"train": [eeg_digest(eeg), None], "val": [None], "test": test})
    assert found == {"train/val": 0, "train/test": 1, "val/test": 0}


def test_time_gives_blocks_away_and_not_random_order():
    metas, _ = divided(recorded(in_blocks), "block")
    blocks = decode_from_time(metas["train"], metas["test"], 0)
    assert blocks.accuracy > 0.9 and blocks.chance == pytest.approx(0.2) and blocks.p < 0.001 and blocks.n == 40
    metas, _ = divided(recorded(at_random), "event-randomised")
    free = decode_from_time(metas["train"], metas["test"], 0)
    assert free.accuracy < 0.4 and free.p > 0.01
    assert free == decode_from_time(metas["train"], metas["test"], 0)


def test_verdict_of_a_block_design_is_confounded():
    metas, recorded_policy = divided(recorded(in_blocks), "block")
    found = report(metas, card("block"), recorded_policy, 0.5)
    assert found["verdict"] == "confounded" and any("time of recording" in reason for reason in found["reasons"])


def test_blocks_are_caught_even_where_the_card_says_otherwise():
    metas, recorded_policy = divided(recorded(in_blocks), "event-randomised")
    assert not recorded_policy["confounded"]
    assert report(metas, card(), recorded_policy, 0.5)["verdict"] == "confounded"


def test_verdict_of_random_order_is_clean():
    metas, recorded_policy = divided(recorded(at_random), "event-randomised")
    found = report(metas, card(), recorded_policy, 0.5)
    assert found["verdict"] == "clean" and found["reasons"] == [] and found["notes"]
    assert found["overlaps"]["stimulus"] == {"train/val": 0, "train/test": 0, "val/test": 0}


def test_each_leak_changes_the_verdict():
    metas, _ = divided(recorded(at_random), "event-randomised")
    assert report(metas, card(), CLEAN, 0.5)["verdict"] == "clean"
    leaky = metas | {"test": metas["test"] + [metas["train"][0]]}
    assert "by stimulus" in " ".join(report(leaky, card(), CLEAN, 0.5)["reasons"])
    assert report(metas, card(), CLEAN, 2.5)["verdict"] == "suspicious"  # windows longer than the pause
    assert report(metas, card("windowed"), CLEAN, 2.5)["verdict"] == "confounded"
    same = report(metas, card(), CLEAN, 0.5, eeg_digests={"train": ["x"], "test": ["x"]})
    assert same["verdict"] == "confounded" and "same EEG" in same["reasons"][0]
    pictures = {s: [m | {"image_sha256": "one"} for m in own] for s, own in metas.items()}
    assert report(pictures, card(), CLEAN, 0.5)["verdict"] == "confounded"
    assert report(pictures, card(), CLEAN | {"by": "subject"}, 0.5)["verdict"] == "confounded"  # subjects are shared
    assert report(metas, card(), CLEAN | {"confounded": True}, 0.5)["verdict"] == "confounded"


def test_unknown_onsets():
    metas, _ = divided(recorded(at_random), "event-randomised")
    metas = {s: [m | {"onset_s": None} for m in own] for s, own in metas.items()}
    assert decode_from_time(metas["train"], metas["test"], 0).accuracy is None
    assert report(metas, card(), CLEAN, 0.5)["verdict"] == "clean"
    assert report(metas, card("block"), CLEAN, 0.5)["verdict"] == "suspicious"
