"""Which trials train, which select, which test: groups of trials that share something are never divided."""

import difflib
import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.distributed import seed_at

log = logging.getLogger("eeg_gan")
SPLITS = ("train", "val", "test")
CONTEXT = {  # block 3 of one subject is not block 3 of another
    "stimulus": ("stimulus",),
    "concept": ("concept",),
    "subject": ("subject",),
    "recording": ("recording",),
    "session": ("subject", "session"),
    "run": ("subject", "session", "run"),
    "block": ("subject", "session", "run", "recording", "block"),
    "trial": ("key",),
}
NEEDS = "stages that train need train and val, evaluate needs test, or split=val"
Metas = list[dict[str, Any]]


@dataclass(frozen=True)
class SplitConfig:
    """How trials are divided."""

    by: Literal["stimulus", "concept", "block", "run", "session", "subject", "recording", "given", "trial"] = (
        "stimulus"  # what no two splits share; given: the column split decides
    )
    train: float = 0.7  # fraction of the groups
    val: float = 0.1  # fraction of the groups; models are selected on it
    test: float = 0.2  # fraction of the groups
    seed: int = 0  # of the shuffle
    balance: bool = True  # allot the groups of each class by the fractions, where groups belong to one class
    test_groups: tuple[str, ...] = ()  # names of groups held out for test; fractions share the rest
    val_groups: tuple[str, ...] = ()  # names of groups held out for val, for example subjects
    fold: int | None = None  # hold out this group alone for test, counted from 0 in the order of names (S2 before S10)
    unseen_classes: tuple[str, ...] = ()  # names of classes, or of concepts, that make up the test split, all of them
    allow_confounded: bool = False  # divide even where training and test trials then share a block or a stimulus

    def __post_init__(self):
        fractions = (self.train, self.val, self.test)
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or self.train == 0:
            raise ValueError(f"train, val and test are fractions that sum to 1, train above 0; got {fractions}")
        if self.by == "given" and self.val_groups:
            raise ValueError("val_groups needs groups, but by=given takes the column split; drop one")
        both = sorted(set(self.test_groups) & set(self.val_groups))
        if both:
            raise ValueError(f"{', '.join(both)} is in test_groups and in val_groups; keep it in one")
        said = [name for name in ("test_groups", "fold", "unseen_classes") if getattr(self, name) not in ((), None)]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} both say what the test split is; keep one")
        if said and self.by == "given":
            raise ValueError(f"{said[0]} says what the test split is, but by=given takes the column split; drop one")
        if self.fold is not None and self.fold < 0:
            raise ValueError(f"fold counts groups from 0; got {self.fold}")


def assign(trials: Metas, config: SplitConfig, card: Card) -> list[str]:
    """The split of every trial; a function of the trials' metas and the config alone."""
    if config.by == "given":
        assigned = _given(trials)
    else:
        if config.by == "trial" and not config.allow_confounded:
            _refuse_by_trial(trials, card)
        names = [_group(trial, config.by) for trial in trials]
        split_of = _allot_groups(names, trials, config)
        assigned = [split_of[name] for name in names]
    for split in SPLITS:
        if split not in assigned and (getattr(config, split) > 0 or split == "train"):
            raise UserError(
                f"split: {split} would be empty of {len(trials)} trials by {config.by}; "
                f"raise split.{split}, or set it to 0 and give its part to another ({NEEDS})"
            )
    for note in _notes(shared_stimuli(trials, assigned)):
        log.warning("split.by=%s: %s", config.by, note)
    if not config.allow_confounded:
        _refuse_confounded(confounds(trials, assigned, config, card), config, card)
    absent = [split for split in SPLITS if split not in assigned]
    if absent:
        log.warning("no trial is in %s, as its fraction is 0: %s", " and ".join(absent), NEEDS)
    return assigned


def policy(trials: Metas, assigned: list[str], config: SplitConfig, card: Card) -> dict[str, Any]:
    """What index.json records of the division; `confounded` where splits share something else that tells the label.

    `shared_stimuli` and the `notes` on them are there where splits by run, session, recording, block or subject have
    stimuli in common: that is no confound, for recognising a picture takes the brain's answer to it.
    """
    reasons, shared = confounds(trials, assigned, config, card), shared_stimuli(trials, assigned)
    return {
        "by": config.by,
        "seed": config.seed,
        "fractions": {split: getattr(config, split) for split in SPLITS},
        "confounded": bool(reasons),
        "reasons": reasons,
        "shared_stimuli": shared,
        "notes": _notes(shared),
        "digest": digest({s: [t["key"] for t, a in zip(trials, assigned, strict=True) if a == s] for s in SPLITS}),
    }


def digest(keys: Mapping[str, Iterable[str]]) -> str:
    """The identity of a division: SHA-256 of the sorted (split, key) pairs."""
    lines = sorted(f"{split}\t{key}\n" for split, own in keys.items() for key in own)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def confounds(trials: Metas, assigned: list[str], config: SplitConfig, card: Card) -> list[str]:
    """Why a score on this division could come from something else than the brain's answer to the image."""
    reasons = []
    nested = ("subject", "session", "run", "recording")  # no block reaches over two of these
    if card.design == "block" and config.by not in nested and _shared(trials, assigned, "block"):
        reasons.append("block design, and train shares a block with another split: slow drifts tell the class")
    windowed = card.design in ("windowed", "imagined-windowed") and config.by not in nested
    if windowed and _shared(trials, assigned, "recording"):
        reasons.append("windows of one recording are in train and in another split: they may share samples")
    if config.by in ("trial", "given") and _shared(trials, assigned, "stimulus", unknown=False):
        reasons.append("a stimulus is in train and in another split: an image can be recognised instead of its class")
    return reasons


def shared_stimuli(trials: Metas, assigned: list[str]) -> dict[str, dict[str, int]]:
    """Split -> {stimuli: how many of its stimuli are in train too, of: how many it has, trials: its trials of those}.

    Only splits that share any are there; trials whose stimulus is unknown are passed over.
    """
    held = defaultdict(Counter)
    for trial, split in zip(trials, assigned, strict=True):
        if trial["stimulus"] is not None:
            held[split][trial["stimulus"]] += 1
    found = {}
    for split in ("val", "test"):
        both = held[split].keys() & held["train"].keys()
        if both:
            n = sum(held[split][name] for name in both)
            found[split] = {"stimuli": len(both), "of": len(held[split]), "trials": n}
    return found


def _notes(shared: dict[str, dict[str, int]]) -> list[str]:
    return [
        f"{own['stimuli']} of {own['of']} stimuli of {split} are in train too ({own['trials']} trials): its scores do "
        "not say what happens with new images; split.by=stimulus would"
        for split, own in shared.items()
    ]


def _shared(trials: Metas, assigned: list[str], by: str, unknown: bool = True) -> bool:
    """Whether train and another split share a group; `unknown` is the answer where the trials do not say."""
    if all(trial[by] is None for trial in trials):
        return unknown
    train, other = set(), set()
    for trial, split in zip(trials, assigned, strict=True):
        if trial[by] is not None:
            (train if split == "train" else other).add(_group(trial, by))
    return bool(train & other)


def _refuse_by_trial(trials: Metas, card: Card) -> None:
    accept = "or accept it with split.allow_confounded=true"
    if card.design in ("block", "windowed", "imagined-windowed"):
        raise UserError(
            f"split.by=trial is refused: in a {card.design} design neighbouring trials share label and drift, "
            f"so test accuracy would be inflated; choose split.by=block, run, recording or subject, {accept}"
        )
    repeated = [name for name, n in Counter(t["stimulus"] for t in trials if t["stimulus"]).items() if n > 1]
    if repeated:
        raise UserError(
            f"split.by=trial is refused: {len(repeated)} stimuli are repeated (for example {repeated[0]}), so the "
            f"test split would hold images that were trained on; choose split.by=stimulus, {accept}"
        )


def _refuse_confounded(reasons: list[str], config: SplitConfig, card: Card) -> None:
    if reasons:
        raise UserError(
            f"split.by={config.by} is refused for this {card.design} design: {'; '.join(reasons)}. Choose "
            "split.by=block, run, session, recording or subject, whichever holds whole blocks, or accept it with "
            "split.allow_confounded=true: everything made from these shards then says that it is confounded"
        )


def _given(trials: Metas) -> list[str]:
    for trial in trials:
        if trial["split"] not in SPLITS:
            raise UserError(
                f"split.by=given: trial {trial['key']} has split {trial['split']!r}; "
                "write train, val or test for every trial, or choose another split.by"
            )
    return [trial["split"] for trial in trials]


def _group(trial: dict[str, Any], by: str) -> str:
    if trial[CONTEXT[by][-1]] is None:
        raise UserError(
            f"split.by={by}: trial {trial['key']} has no {by}; fill that column in every row, or choose another key"
        )
    return "/".join(str(trial[name]) for name in CONTEXT[by] if trial[name] is not None)


def _allot_groups(names: list[str], trials: Metas, config: SplitConfig) -> dict[str, str]:
    held = _held_out(names, trials, config)
    classes = defaultdict(set)
    for name, trial in zip(names, trials, strict=True):
        if name not in held:
            classes[name].add(trial["label"])
    pools = defaultdict(list)
    one_class_each = all(len(labels) == 1 for labels in classes.values())
    # a concept that is a whole class cannot be in two splits: zero-shot, divided over all classes at once
    zero_shot = config.by == "concept" and len({min(labels) for labels in classes.values()}) == len(classes)
    stratify = config.balance and one_class_each and not zero_shot
    for name in sorted(classes):
        pools[min(classes[name]) if stratify else None].append(name)
    split_of = dict(held)
    for label, pool in pools.items():
        parts = _allot(len(pool), config, label)
        for place, split in zip(_order(config.seed, label, len(pool)), parts, strict=True):
            split_of[pool[place]] = split
    return split_of


def _order(seed: int, label: int | None, n: int) -> np.ndarray:
    return np.random.default_rng(seed_at(seed, "splits", 0 if label is None else label + 1)).permutation(n)


def _held_out(names: list[str], trials: Metas, config: SplitConfig) -> dict[str, str]:
    """Group -> split for the groups that the config names, by full name or by the last part of it, or by class."""
    held = dict.fromkeys(_fold(names, config) if config.fold is not None else _unseen(names, trials, config), "test")
    known = defaultdict(set)
    for name, trial in zip(names, trials, strict=True):
        known[name].add(name)
        known[str(trial["key" if config.by == "trial" else config.by])].add(name)
    for split, wanted in (("test", config.test_groups), ("val", config.val_groups)):
        for group in wanted:
            if group not in known:
                close = difflib.get_close_matches(group, list(known), 1, 0.5)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known)[:20])}"
                raise UserError(f"split.{split}_groups: no {config.by} is named {group!r}; {hint}")
            both = [name for name in known[group] if held.get(name, split) != split]
            if both:
                raise UserError(f"split.{split}_groups: {both[0]} is held out for {held[both[0]]} already; drop one")
            held |= dict.fromkeys(known[group], split)
    return held


def _fold(names: list[str], config: SplitConfig) -> list[str]:
    groups = sorted(set(names), key=natural)
    if config.fold >= len(groups):
        raise UserError(
            f"split.fold={config.fold}: there are {len(groups)} groups by {config.by} "
            f"({', '.join(groups[:20])}), so folds run from 0 to {len(groups) - 1}"
        )
    return [groups[config.fold]]


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts S2 before S10."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _unseen(names: list[str], trials: Metas, config: SplitConfig) -> list[str]:
    """The groups of the classes that training never sees."""
    wanted = set(config.unseen_classes)
    if not wanted:
        return []
    known = {str(trial[field]) for trial in trials for field in ("class_name", "concept") if trial[field] is not None}
    for name in sorted(wanted - known):
        close = difflib.get_close_matches(name, list(known), 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known)[:20])}"
        raise UserError(f"split.unseen_classes: no class and no concept is named {name!r}; {hint}")
    unseen, seen = set(), set()
    for name, trial in zip(names, trials, strict=True):
        (unseen if {trial["class_name"], trial["concept"]} & wanted else seen).add(name)
    if unseen & seen:
        raise UserError(
            f"split.unseen_classes: {sorted(unseen & seen)[0]} holds trials of unseen and of other classes, so "
            f"split.by={config.by} cannot keep them apart; choose split.by=stimulus or concept"
        )
    return sorted(unseen)


def _allot(n_groups: int, config: SplitConfig, label: int | None) -> list[str]:
    """`n_groups` split names by largest remainder, at least one group for every split that has a fraction."""
    given_test = config.test_groups or config.unseen_classes or config.fold is not None
    named = {"test": given_test, "val": config.val_groups, "train": ()}
    wanted = {split: getattr(config, split) for split in SPLITS if getattr(config, split) > 0 and not named[split]}
    if n_groups < len(wanted):
        where = f"class {label} has" if label is not None else "there are"
        cure = "; split.balance=false divides over all classes at once" if label is not None else ""
        raise UserError(
            f"split.by={config.by}: {where} {n_groups} groups, too few for {len(wanted)} splits ({', '.join(wanted)})"
            f"; choose a finer split.by, or set a fraction to 0 ({NEEDS}){cure}"
        )
    exact = {split: fraction / sum(wanted.values()) * n_groups for split, fraction in wanted.items()}
    counts = {split: max(1, int(value + 1e-9)) for split, value in exact.items()}
    while sum(counts.values()) != n_groups:
        step = 1 if sum(counts.values()) < n_groups else -1
        able = [split for split in counts if step > 0 or counts[split] > 1]
        counts[max(able, key=lambda split: step * (exact[split] - counts[split]))] += step
    return [split for split in counts for _ in range(counts[split])]
