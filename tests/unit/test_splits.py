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


def test_stimuli_of_a_block_design_are_recorded_as_confounded():
    metas = trials()
    assert policy(metas, assign(metas, SplitConfig(), card("block")), SplitConfig(), card("block"))["confounded"]
    assert not policy(metas, assign(metas, SplitConfig(), card()), SplitConfig(), card())["confounded"]


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
