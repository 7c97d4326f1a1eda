"""Looks for leaks between splits, and for labels that the time of recording alone gives away."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from eeg_gan.data.card import Card
from eeg_gan.distributed import seed_at

# N trial, k neighbour

NEIGHBOURS = 5
SIGNIFICANT, DOUBTFUL = 0.001, 0.05  # permutation p-values
Metas = list[dict[str, Any]]
CONTEXT = {"block": ("subject", "session", "run", "recording", "block")}  # what makes a name unique


@dataclass(frozen=True)
class TimeControl:
    """How well trials are classified from when they were recorded, without their EEG."""

    accuracy: float | None  # None: onsets or recordings are unknown
    chance: float  # share of the commonest class
    p: float | None  # of an accuracy as high under permuted labels
    n: int  # test trials


@dataclass(frozen=True)
class Verdict:
    """What every later artefact carries."""

    verdict: Literal["clean", "suspicious", "confounded"]
    reasons: list[str]  # why it is not clean
    notes: list[str]  # what a reader should know besides


def overlaps(metas: Mapping[str, Metas], field: str) -> dict[str, int]:
    """`a/b` -> number of values of a meta field that splits a and b share."""
    names = {split: _values(own, field) for split, own in metas.items()}
    return {f"{a}/{b}": len(names[a] & names[b]) for a, b in combinations(metas, 2)}


def window_overlaps(metas: Mapping[str, Metas], duration_s: float) -> dict[str, int]:
    """`a/b` -> number of trials of b whose window shares time with one of a, in the same recording.

    A window is [onset + tmin, onset + tmin + duration_s); trials without onset or recording are passed over.
    """
    return {f"{a}/{b}": _n_windows(metas[a], metas[b], duration_s) for a, b in combinations(metas, 2)}


def duplicates(digests: Mapping[str, Iterable[str | None]]) -> dict[str, int]:
    """`a/b` -> number of digests, of EEG or of images, that occur in both splits."""
    sets = {split: set(own) - {None} for split, own in digests.items()}
    return {f"{a}/{b}": len(sets[a] & sets[b]) for a, b in combinations(sets, 2)}


def eeg_digest(eeg: np.ndarray) -> str:
    """SHA-256 of a stored trial."""
    return hashlib.sha256(np.ascontiguousarray(eeg, dtype=np.float32).tobytes()).hexdigest()


def decode_from_time(train: Metas, test: Metas, seed: int, permutations: int = 1000) -> TimeControl:
    """Classifies test trials by the labels of the 5 training trials nearest in time, in the same recording first.

    Above chance, it says that the label can be read off slow drifts. p is that of the label permuted over test trials.
    """
    labels = np.array([meta["label"] for meta in test])
    chance = float(np.bincount(labels).max() / len(labels))
    known = all(meta["onset_s"] is not None and _place(meta) is not None for meta in [*train, *test])
    if not known:
        return TimeControl(None, chance, None, len(test))
    predicted = _nearest_labels(train, test)
    accuracy = float((predicted == labels).mean())
    random = np.random.default_rng(seed_at(seed, "audit.time", 0))
    reached = sum(float((predicted == random.permutation(labels)).mean()) >= accuracy for _ in range(permutations))
    return TimeControl(accuracy, chance, (1 + reached) / (1 + permutations), len(test))


def report(
    metas: Mapping[str, Metas],
    card: Card,
    split_policy: dict[str, Any],
    duration_s: float,
    seed: int = 0,
    eeg_digests: Mapping[str, list[str]] | None = None,
    permutations: int = 1000,
) -> dict[str, Any]:
    """Everything audit.json holds about leaks, with the verdict; `metas` by split."""
    time = decode_from_time(metas["train"], metas["test"], seed, permutations) if _has(metas, "train", "test") else None
    found: dict[str, Any] = {
        "overlaps": {f: overlaps(metas, f) for f in ("stimulus", "concept", "block", "recording", "subject")},
        "windows": window_overlaps(metas, duration_s),
        "duplicate_images": duplicates({s: [m["image_sha256"] for m in own] for s, own in metas.items()}),
        "duplicate_eeg": duplicates(eeg_digests or {}),
    }
    outcome = judge(found, time, card, split_policy)
    control = None if time is None else {"value": time.accuracy, "chance": time.chance, "p": time.p, "n": time.n}
    said = {"verdict": outcome.verdict, "reasons": outcome.reasons, "notes": outcome.notes}
    return {**found, "time_control": control, **said}


def judge(found: dict[str, Any], time: TimeControl | None, card: Card, split_policy: dict[str, Any]) -> Verdict:
    """The verdict on what `report` found, and why."""
    confounded, suspicious, notes = list(split_policy.get("reasons", [])), [], []
    if split_policy.get("confounded") and not confounded:
        confounded.append("prepare recorded the split as confounded")
    by = split_policy["by"]
    if _any(found["overlaps"].get(by)):
        confounded.append(f"the split is by {by}, yet splits share one: {_said(found['overlaps'][by])}")
    if _any(found["duplicate_eeg"]):
        confounded.append(f"the same EEG is in two splits: {_said(found['duplicate_eeg'])}")
    if _any(found["windows"]):
        windowed = card.design in ("windowed", "imagined-windowed")
        said = f"windows share samples across splits: {_said(found['windows'])}"
        (confounded if windowed else suspicious).append(said)
    if _any(found["duplicate_images"]):
        said = f"the same picture is in two splits: {_said(found['duplicate_images'])}"
        (confounded if by in ("stimulus", "concept") else notes).append(said)
    _judge_time(time, card, confounded, suspicious, notes)
    verdict = "confounded" if confounded else "suspicious" if suspicious else "clean"
    return Verdict(verdict, confounded + suspicious, notes)


def _judge_time(time: TimeControl | None, card: Card, confounded: list, suspicious: list, notes: list) -> None:
    if time is None or time.accuracy is None or time.p is None:
        safe = card.design in ("event-randomised", "rsvp")
        unknown = "onsets or recordings are unknown, so nobody can tell whether time gives labels away"
        (notes if safe else suspicious).append(f"{unknown} in this {card.design} design")
        return
    said = f"time of recording alone gives {time.accuracy:.1%}, chance {time.chance:.1%} (p {time.p:.2g}, n {time.n})"
    well_above = time.accuracy >= time.chance + 0.1 * (1 - time.chance)  # a tenth of the way to perfection
    if time.p < SIGNIFICANT and well_above:
        confounded.append(said)
    elif time.p < DOUBTFUL:
        suspicious.append(said)
    else:
        notes.append(said)


def _nearest_labels(train: Metas, test: Metas) -> np.ndarray:
    """Majority of the nearest training trials, ties to the nearest; another recording is further than any time."""
    places = {place: i for i, place in enumerate(sorted({str(_place(m)) for m in [*train, *test]}))}
    own = [np.array([[places[str(_place(m))], m["onset_s"]] for m in side], dtype=float) for side in (train, test)]
    labels = np.array([meta["label"] for meta in train])
    far = 1e6 + np.abs(np.concatenate(own)[:, 1]).max() * 2
    predicted = []
    for place, onset in own[1]:
        distance = np.abs(own[0][:, 1] - onset) + far * (own[0][:, 0] != place)
        near = np.argpartition(distance, min(NEIGHBOURS, len(distance)) - 1)[:NEIGHBOURS]
        nearest = labels[near[np.argsort(distance[near], kind="stable")]]
        votes = np.bincount(nearest)
        predicted.append(next(label for label in nearest if votes[label] == votes.max()))
    return np.array(predicted)


def _place(meta: dict[str, Any]) -> tuple | None:
    """What onset_s counts in: the recording, or else the subject's session and run."""
    if meta["recording"] is not None:
        return (meta["recording"],)
    return (meta["subject"], meta["session"], meta["run"]) if meta["subject"] is not None else None


def _values(metas: Metas, field: str) -> set:
    names = CONTEXT.get(field, (field,))
    return {tuple(meta[name] for name in names) for meta in metas if meta[field] is not None}


def _n_windows(first: Metas, second: Metas, duration_s: float) -> int:
    starts = defaultdict(list)
    for meta in first:
        if meta["onset_s"] is not None and _place(meta) is not None:
            starts[_place(meta)].append(meta["onset_s"] + (meta["tmin_s"] or 0))
    ordered = {place: np.sort(own) for place, own in starts.items()}
    return sum(_touches(ordered.get(_place(meta)), meta, duration_s) for meta in second)


def _touches(starts: np.ndarray | None, meta: dict[str, Any], duration_s: float) -> bool:
    if starts is None or meta["onset_s"] is None:
        return False
    start = meta["onset_s"] + (meta["tmin_s"] or 0)
    near = starts[max(0, np.searchsorted(starts, start) - 1) : np.searchsorted(starts, start) + 1]
    return bool((np.abs(near - start) < duration_s - 1e-9).any())  # windows that only meet do not share a sample


def _has(metas: Mapping[str, Metas], *splits: str) -> bool:
    return all(metas.get(split) for split in splits)


def _any(counts: dict[str, int] | None) -> bool:
    return bool(counts) and any(counts.values())


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} between {pair.replace('/', ' and ')}" for pair, n in counts.items() if n)
