from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from eeg_gan.data.audit import duplicates, eeg_digest, fitted_on, judge, leaks, overlaps, window_overlaps
from eeg_gan.data.card import Card
from eeg_gan.data.controls import Control, Trials, time_alone
from eeg_gan.data.likeness import fingerprint, near_duplicates
from eeg_gan.data.splits import SplitConfig, assign, policy
from eeg_gan.data.trial import complete

NOTHING = Control(0.2, 0.2, 0.5, 40)
CLEAN = {"by": "stimulus", "confounded": False, "reasons": []}


def card(design="event-randomised", **keys):
    return Card("a", 100.0, ("Oz",), design, tuple("abcde"), "CC0", **keys)


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
    return [(c, i) for c in np.random.default_rng(s).permutation(5).tolist() for i in range(20)]


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


def verdict(metas, the_card, policy, duration_s=0.5, **found):
    """By leaks and time alone; the other deciding controls found nothing."""
    time = time_alone(Trials(metas["train"], metas["test"], the_card, 3000, 0))
    quiet = dict.fromkeys(("pre_stimulus", "between_blocks"), NOTHING)
    return judge(leaks(metas, duration_s) | found, {"time": time, **quiet}, the_card, policy)


def test_verdict_of_a_block_design_is_confounded():
    metas, recorded_policy = divided(recorded(in_blocks), "block", allow_confounded=True)
    found = verdict(metas, card("block"), recorded_policy)
    assert found.verdict == "confounded" and any("time of recording" in reason for reason in found.reasons)


def test_blocks_are_caught_even_where_the_card_says_otherwise():
    metas, recorded_policy = divided(recorded(in_blocks), "event-randomised")
    assert not recorded_policy["confounded"]
    assert verdict(metas, card(), recorded_policy).verdict == "confounded"


def test_verdict_of_random_order_is_clean():
    metas, recorded_policy = divided(recorded(at_random), "event-randomised")
    found = verdict(metas, card(), recorded_policy)
    assert found.verdict == "clean" and found.reasons == [] and found.notes
    assert leaks(metas, 0.5)["overlaps"]["stimulus"] == {"train/val": 0, "train/test": 0, "val/test": 0}


def test_each_leak_changes_the_verdict():
    metas, _ = divided(recorded(at_random), "event-randomised")
    assert verdict(metas, card(), CLEAN).verdict == "clean"
    leaky = metas | {"test": metas["test"] + [metas["train"][0]]}
    assert "by stimulus" in " ".join(verdict(leaky, card(), CLEAN).reasons)
    assert verdict(metas, card(), CLEAN, 2.5).verdict == "suspicious"  # windows longer than the pause
    assert "windows share samples" in " ".join(verdict(metas, card("windowed"), CLEAN, 2.5).reasons)
    same = verdict(metas, card(), CLEAN, duplicate_eeg=duplicates({"train": ["x"], "test": ["x"]}))
    assert same.verdict == "confounded" and "same EEG" in same.reasons[0]
    pictures = {s: [m | {"image_sha256": "one"} for m in own] for s, own in metas.items()}
    assert verdict(pictures, card(), CLEAN).verdict == "confounded"
    assert verdict(pictures, card(), CLEAN | {"by": "subject"}).verdict == "confounded"  # subjects are shared
    assert verdict(metas, card(), CLEAN | {"confounded": True}).verdict == "confounded"
    alike = {"train/test": 2}
    assert verdict(metas, card(), CLEAN, near_duplicate_images=alike).verdict == "suspicious"
    assert "pairs of pictures look the same: 2 between train and test" in " ".join(
        verdict(metas, card(), CLEAN | {"by": "run"}, near_duplicate_images=alike).notes
    )


def test_statistics_fitted_on_other_trials_are_a_leak():
    scale = {"kind": "robust", "train_trials": 120}
    metas, _ = divided(recorded(at_random), "event-randomised")
    assert fitted_on({"scale": scale}, {"train": 120})["leak"] is False
    assert fitted_on({"scale": {"kind": "none"}}, {"train": 120})["leak"] is False
    unknown = fitted_on({"scale": {"kind": "zscore"}}, {"train": 120})
    assert unknown["leak"] is None and "does not say" in verdict(metas, card(), CLEAN, fitted_on=unknown).notes[0]
    found = verdict(metas, card(), CLEAN, fitted_on=fitted_on({"scale": scale}, {"train": 84, "test": 36}))
    assert found.verdict == "confounded" and "fitted on 120 trials, but the training split holds 84" in found.reasons[0]
    whitened = verdict(metas, card(fitted_on="all"), CLEAN)
    assert whitened.verdict == "suspicious" and "on test trials too" in whitened.reasons[0]
    assert verdict(metas, card(fitted_on="train"), CLEAN).verdict == "clean"


def test_the_controls_that_decide():
    metas, _ = divided(recorded(at_random), "event-randomised")
    found, ridge = leaks(metas, 0.5), Control(0.6, 0.2, 1e-4, 40)

    def outcome(**changed):
        controls = dict.fromkeys(("time", "pre_stimulus", "between_blocks"), NOTHING) | {"ridge": ridge} | changed
        return judge(found, controls, card(), CLEAN)

    strong, weak = Control(0.5, 0.2, 1e-4, 40), Control(0.22, 0.2, 1e-4, 40)
    for name in ("time", "pre_stimulus", "between_blocks"):
        assert outcome(**{name: strong}).verdict == "confounded"
        assert outcome(**{name: weak}).verdict == "suspicious"  # it explains little of what the ridge reaches
        assert outcome(**{name: Control(0.5, 0.2, 0.0005, 40)}).verdict == "clean"  # .001 is for the three together
        unknown = outcome(**{name: Control(note="trials start at 0 s")})
        assert unknown.verdict == "clean" and "not applicable, as trials start" in " ".join(unknown.notes)
        few = outcome(**{name: replace(strong, p=0.05, least=1 / 24)})
        assert few.verdict == "clean" and "exchanged in 24 ways only" in " ".join(few.notes)
    assert outcome(below_2hz=strong, shuffled_eeg=strong).verdict == "clean"
    assert outcome(pre_stimulus=Control(0.26, 0.2, 1e-4, 40), ridge=Control(0.3, 0.2, 1e-4, 40)).verdict == "confounded"


def test_an_order_that_training_and_test_share_is_no_luck():
    """Five stretches in the same order for everybody: too few for a p, and yet time alone tells the class."""
    metas = recorded(lambda s: in_blocks(0), subjects=3)
    by_split = {"train": metas[:100], "val": metas[100:200], "test": metas[200:]}
    time = time_alone(Trials(by_split["train"], by_split["test"], card("windowed"), 3000, 0, metas))
    assert time.value == 1 and time.known == 1 and time.least == pytest.approx(1 / 120)
    controls = {"time": time, "pre_stimulus": NOTHING, "between_blocks": NOTHING}
    found = judge(leaks(by_split, 0.5), controls, card("windowed"), CLEAN | {"by": "subject"})
    assert found.verdict == "confounded" and "in the order of training trials" in found.reasons[0]
    chance = controls | {"time": replace(time, value=0.22)}
    assert judge(leaks(by_split, 0.5), chance, card("windowed"), CLEAN | {"by": "subject"}).verdict == "clean"


@pytest.mark.parametrize("nothing", [Control(note="trials start at 0 s"), replace(NOTHING, least=1 / 24)])
def test_data_that_no_control_decides_are_not_clean(nothing):
    metas, _ = divided(recorded(at_random), "event-randomised")
    controls = dict.fromkeys(("time", "pre_stimulus", "between_blocks"), nothing)
    found = judge(leaks(metas, 0.5), controls, card(), CLEAN)
    assert found.verdict == "suspicious" and found.reasons[0].startswith("not decidable: none of the three")
    assert judge(leaks(metas, 0.5), controls | {"time": NOTHING}, card(), CLEAN).verdict == "clean"


def test_unknown_onsets():
    metas, _ = divided(recorded(at_random), "event-randomised")
    metas = {s: [m | {"onset_s": None} for m in own] for s, own in metas.items()}
    assert verdict(metas, card(), CLEAN).verdict == "clean"
    assert verdict(metas, card("block"), CLEAN).verdict == "suspicious"


def photograph(seed, size=64):
    """Smooth colours with an edge: what a picture looks like to a hash."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    waves = 0
    for angle in random.uniform(0, 6, 8):
        place = rows * np.cos(angle) + columns * np.sin(angle)
        waves = waves + random.normal() * np.sin(random.uniform(2, 12) * place + random.uniform(0, 6))
    grey = 128 + 30 * waves + 60 * (columns > random.uniform(0.2, 0.8))
    return np.stack([grey, 0.9 * grey, 0.8 * grey + 20], axis=2).clip(0, 255).astype(np.uint8)


def test_copies_of_a_picture_are_found_and_others_are_not():
    train = {f"a{i}": fingerprint(photograph(i)) for i in range(100)}
    noisy = (photograph(0) * 0.97 + np.random.default_rng(0).uniform(0, 7, (64, 64, 3))).astype(np.uint8)
    small = np.asarray(Image.fromarray(photograph(1)).resize((48, 48)))
    darker = (photograph(2) * 0.8 + 20).astype(np.uint8)
    test = {f"b{i}": fingerprint(photograph(1000 + i)) for i in range(100)}
    test |= {f"copy{i}": fingerprint(image) for i, image in enumerate((noisy, small, darker))}
    test["a7"] = train["a7"]  # the same digest is not a near duplicate
    found = near_duplicates({"train": train, "val": {}, "test": test})
    assert found == {"train/val": [], "train/test": [("a0", "copy0"), ("a1", "copy1"), ("a2", "copy2")], "val/test": []}
