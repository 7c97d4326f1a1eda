from collections import Counter

import pytest

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.splits import SplitConfig, assign, digest, policy
from eeg_gan.data.trial import complete


def card(design="event-randomised"):
    return Card("a", 100.0, ("Oz",), design, ("x", "y", "z", "w"), "CC0")


def trials(classes=4, stimuli=10, repeats=2, subjects=2):
    """Every subject sees every stimulus `repeats` times; a block per class and session."""
    return [
        complete(
            {
                "key": f"s{s}-c{c}-i{i}-r{r}",
                "label": c,
                "subject": f"s{s}",
                "session": str(r),
                "block": str(c),
                "recording": f"s{s}-{r}",
                "stimulus": f"c{c}-i{i}",
                "concept": f"c{c}-{i // 2}",
            }
        )
        for s in range(subjects)
        for r in range(repeats)
        for c in range(classes)
        for i in range(stimuli)
    ]


def groups(metas, assigned, *fields):
    found = {}
    for meta, split in zip(metas, assigned, strict=True):
        found.setdefault(tuple(meta[f] for f in fields), set()).add(split)
    return found


@pytest.mark.parametrize("by", ["stimulus", "concept"])
def test_groups_are_not_divided_and_classes_balanced(by):
    metas = trials()
    assigned = assign(metas, SplitConfig(by=by), card())
    assert all(len(splits) == 1 for splits in groups(metas, assigned, by).values())
    counts = Counter((meta["label"], split) for meta, split in zip(metas, assigned, strict=True))
    assert all(counts[c, split] == counts[0, split] > 0 for c in range(4) for split in ("train", "val", "test"))


def test_fractions():
    counts = Counter(assign(trials(), SplitConfig(), card()))
    assert {split: n / 160 for split, n in counts.items()} == {"train": 0.7, "val": 0.1, "test": 0.2}


def test_deterministic_and_independent_of_order():
    metas = trials()
    assigned = assign(metas, SplitConfig(), card())
    backwards = assign(metas[::-1], SplitConfig(), card())
    assert assigned == assign(metas, SplitConfig(), card()) == backwards[::-1]
    assert assigned != assign(metas, SplitConfig(seed=1), card())


def test_blocks_of_two_subjects_are_different_blocks():
    metas = trials(subjects=4)
    assigned = assign(metas, SplitConfig(by="block"), card("block"))
    found = groups(metas, assigned, "subject", "session", "block")
    assert len(found) == 32 and all(len(splits) == 1 for splits in found.values())
    assert not policy(metas, assigned, SplitConfig(by="block"), card("block"))["confounded"]


def test_named_groups():
    metas = trials(subjects=4)
    config = SplitConfig(by="subject", test_groups=("s3",), val_groups=("s0",))
    found = groups(metas, assign(metas, config, card()), "subject")
    assert found == {("s0",): {"val"}, ("s1",): {"train"}, ("s2",): {"train"}, ("s3",): {"test"}}
    with pytest.raises(UserError, match="split.test_groups.*'s33'.*did you mean s3"):
        assign(metas, SplitConfig(by="subject", test_groups=("s33",)), card())


def test_named_test_alone_shares_the_rest():
    metas = trials(subjects=5)
    found = groups(metas, assign(metas, SplitConfig(by="subject", test_groups=("s3",)), card()), "subject")
    assert found[("s3",)] == {"test"}
    assert Counter(split for splits in found.values() for split in splits) == {"train": 3, "val": 1, "test": 1}


def test_zero_shot_concepts():
    metas = [complete({"key": f"{c}-{i}", "label": c, "concept": f"c{c}"}) for c in range(10) for i in range(3)]
    assigned = assign(metas, SplitConfig(by="concept"), card())
    assert Counter(assigned) == {"train": 21, "val": 3, "test": 6}


def test_by_trial_is_refused_where_it_leaks():
    for design in ("block", "windowed", "imagined-windowed"):
        with pytest.raises(UserError, match=f"by=trial is refused: in a {design}"):
            assign(trials(repeats=1, subjects=1), SplitConfig(by="trial"), card(design))
    with pytest.raises(UserError, match="40 stimuli are repeated"):
        assign(trials(), SplitConfig(by="trial"), card())
    assign(trials(repeats=1, subjects=1), SplitConfig(by="trial"), card())


@pytest.mark.parametrize("design", ["block", "windowed", "event-randomised"])
def test_an_allowed_confound_is_recorded(design):
    config, metas = SplitConfig(by="trial", allow_confounded=True), trials()
    recorded = policy(metas, assign(metas, config, card(design)), config, card(design))
    assert recorded["confounded"] and recorded["reasons"] and recorded["by"] == "trial"


def test_stimuli_of_a_block_design_are_refused_or_recorded_as_confounded():
    metas, allowed = trials(), SplitConfig(allow_confounded=True)
    with pytest.raises(UserError, match="split.by=stimulus is refused for this block design.*allow_confounded=true"):
        assign(metas, SplitConfig(), card("block"))
    assert policy(metas, assign(metas, allowed, card("block")), allowed, card("block"))["confounded"]
    assert not policy(metas, assign(metas, allowed, card()), allowed, card())["confounded"]


def test_every_split_that_the_design_makes_unsafe_is_refused():
    metas = trials(repeats=1, subjects=3)
    with pytest.raises(UserError, match="windows of one recording are in train"):
        assign(metas, SplitConfig(by="stimulus"), card("windowed"))
    official = [meta | {"split": ("train", "val", "test", "train")[i % 4]} for i, meta in enumerate(metas)]
    official += [meta | {"key": meta["key"] + "-2", "split": "test"} for meta in official]
    with pytest.raises(UserError, match="split.by=given is refused.*a stimulus is in train and in another split"):
        assign(official, SplitConfig(by="given"), card())
    for by in ("subject", "recording", "session"):
        config = SplitConfig(by=by)
        assert not policy(metas, assign(metas, config, card("block")), config, card("block"))["confounded"]


@pytest.mark.parametrize("by", ["run", "session", "recording", "block", "subject", "stimulus", "concept"])
def test_stimuli_in_two_splits_are_counted_and_said(by, caplog):
    metas = [meta | {"run": meta["session"]} for meta in trials(repeats=4, subjects=4)]
    config = SplitConfig(by=by)
    recorded = policy(metas, assign(metas, config, card()), config, card())
    if by in ("stimulus", "concept"):
        assert recorded["shared_stimuli"] == {} and recorded["notes"] == [] and "are in train too" not in caplog.text
        return
    assert not recorded["confounded"] and set(recorded["shared_stimuli"]) == {"val", "test"}
    held = recorded["shared_stimuli"]["test"]
    if by != "block":  # whose blocks of a class leave some stimuli out
        assert held["stimuli"] == held["of"] == 40 and held["trials"] >= 40
    assert f"split.by={by}: {held['stimuli']} of {held['of']} stimuli of test are in train too" in caplog.text
    assert "do not say what happens with new images" in recorded["notes"][1]


@pytest.mark.parametrize("by", ["run", "session", "recording", "block"])
def test_groups_of_every_kind_are_held_together_and_classes_in_proportion(by):
    metas = [meta | {"run": meta["session"]} for meta in trials(repeats=5, subjects=4)]
    assigned = assign(metas, SplitConfig(by=by), card())
    names = {"run": ("subject", "run"), "session": ("subject", "session"), "recording": ("recording",)}
    found = groups(metas, assigned, *names.get(by, ("recording", "block")))
    assert all(len(splits) == 1 for splits in found.values()) and len(found) == (80 if by == "block" else 20)
    counts = Counter((meta["label"], split) for meta, split in zip(metas, assigned, strict=True))
    assert all(counts[c, s] == counts[0, s] > 0 for c in range(4) for s in ("train", "val", "test"))


def test_random_trials_hold_classes_in_proportion():
    metas = trials(repeats=1, subjects=1)
    counts = Counter(
        (m["label"], s) for m, s in zip(metas, assign(metas, SplitConfig(by="trial"), card()), strict=True)
    )
    assert all(counts[c, s] == counts[0, s] > 0 for c in range(4) for s in ("train", "val", "test"))


def test_folds_leave_one_subject_out():
    metas, held = trials(subjects=11), []
    for fold in range(11):
        found = groups(metas, assign(metas, SplitConfig(by="subject", fold=fold), card("block")), "subject")
        assert all(len(splits) == 1 for splits in found.values())
        held += [name for (name,), splits in found.items() if splits == {"test"}]
        assert Counter(s for splits in found.values() for s in splits) == {"train": 9, "val": 1, "test": 1}
    assert held == [f"s{i}" for i in range(11)]  # s2 before s10
    with pytest.raises(UserError, match="split.fold=11: there are 11 groups by subject.*0 to 10"):
        assign(metas, SplitConfig(by="subject", fold=11), card())


def test_unseen_classes_are_the_test_split_alone():
    metas = [meta | {"class_name": f"name-{meta['label']}"} for meta in trials()]
    config = SplitConfig(by="stimulus", unseen_classes=("name-1", "name-3"))
    assigned = assign(metas, config, card())
    for meta, split in zip(metas, assigned, strict=True):
        assert (split == "test") == (meta["label"] in (1, 3))
    assert all(len(splits) == 1 for splits in groups(metas, assigned, "stimulus").values())
    seen = Counter((m["label"], s) for m, s in zip(metas, assigned, strict=True) if s != "test")
    assert seen[0, "val"] == seen[2, "val"] > 0 and seen[0, "train"] == seen[2, "train"]
    by_concept = assign(metas, SplitConfig(by="concept", unseen_classes=("c1-0",)), card())
    assert {m["concept"] for m, s in zip(metas, by_concept, strict=True) if s == "test"} == {"c1-0"}
    with pytest.raises(UserError, match="no class and no concept is named 'name-7'.*did you mean name-"):
        assign(metas, SplitConfig(unseen_classes=("name-7",)), card())
    with pytest.raises(UserError, match="s0 holds trials of unseen and of other classes.*split.by=stimulus"):
        assign(metas, SplitConfig(by="subject", unseen_classes=("name-1",)), card())


def test_what_the_test_split_is_can_be_said_once():
    with pytest.raises(ValueError, match="test_groups and fold both say"):
        SplitConfig(by="subject", test_groups=("a",), fold=0)
    with pytest.raises(ValueError, match="unseen_classes says what the test split is, but by=given"):
        SplitConfig(by="given", unseen_classes=("a",))
    with pytest.raises(ValueError, match="counts groups from 0"):
        SplitConfig(fold=-1)
    metas = trials(subjects=4)
    with pytest.raises(UserError, match="split.val_groups: s0 is held out for test already"):
        assign(metas, SplitConfig(by="subject", fold=0, val_groups=("s0",)), card())


def test_given():
    metas = [complete({"key": str(i), "label": 0, "split": s}) for i, s in enumerate(["train", "val", "test"])]
    assert assign(metas, SplitConfig(by="given"), card()) == ["train", "val", "test"]
    with pytest.raises(UserError, match="trial 0 has split 'dev'"):
        assign([metas[0] | {"split": "dev"}], SplitConfig(by="given"), card())


def test_mistakes():
    with pytest.raises(UserError, match="has no run"):
        assign(trials(), SplitConfig(by="run"), card())
    with pytest.raises(UserError, match="there are 2 groups, too few for 3 splits"):
        assign(trials(), SplitConfig(by="subject"), card())
    with pytest.raises(UserError, match="class 0 has 2 groups"):
        assign(trials(stimuli=2), SplitConfig(), card())
    with pytest.raises(UserError, match="train would be empty"):
        assign(trials(), SplitConfig(by="subject", test_groups=("s0",), val_groups=("s1",)), card())
    with pytest.raises(ValueError, match="sum to 1"):
        SplitConfig(train=0.9)


def test_digest_depends_on_membership_only():
    assert digest({"train": ["a", "b"], "val": ["c"]}) == digest({"val": ["c"], "train": ["b", "a"]})
    assert digest({"train": ["a", "b"], "val": ["c"]}) != digest({"train": ["a"], "val": ["b", "c"]})


def test_an_empty_split_says_who_needs_it(caplog):
    assign(trials(), SplitConfig(train=0.8, val=0.0, test=0.2), card())
    assert "no trial is in val" in caplog.text and "stages that train need train and val" in caplog.text
    with pytest.raises(UserError, match="split.by=subject: there are 2 groups.*set a fraction to 0 .stages that train"):
        assign(trials(), SplitConfig(by="subject"), card())
    with pytest.raises(UserError, match="split.by=trial is refused.*split.allow_confounded=true"):
        assign(trials(), SplitConfig(by="trial"), card())
