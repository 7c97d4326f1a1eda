"""What may be exchanged with what: the units and groups of permutation tests, and the blocks of a recording."""

from collections import defaultdict
from typing import Any

import numpy as np

from eeg_gan.data.card import Card

Metas = list[dict[str, Any]]
PARTS = 10  # a recording without blocks is cut into as many parts
RANDOMISED = ("event-randomised", "rsvp")


def numbered(names: list) -> np.ndarray:
    """[N] number of each name; equal names have equal numbers."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def place(meta: dict[str, Any]) -> tuple | None:
    """What onset_s counts in: the recording, or else the subject's session and run."""
    if meta["recording"] is not None:
        return (meta["recording"],)
    return (meta["subject"], meta["session"], meta["run"]) if meta["subject"] is not None else None


def exchange_units(metas: Metas, card: Card) -> np.ndarray:
    """[N] the unit that one draw of the label stands behind, in the order of presentation.

    A design that claims random order draws a label per trial. In block and windowed designs neighbouring trials share
    their draw: a unit is a stretch of one label in one recording, or, without onsets, all trials of a label there.
    """
    if card.design in RANDOMISED:
        return np.arange(len(metas))
    if any(meta["onset_s"] is None for meta in metas):
        return numbered([(place(meta), meta["label"]) for meta in metas])
    order = sorted(range(len(metas)), key=lambda i: (str(place(metas[i])), metas[i]["onset_s"]))
    units, last, count = np.zeros(len(metas), dtype=np.int64), None, -1
    for i in order:
        now = (place(metas[i]), metas[i]["block"], metas[i]["label"])
        count += now != last
        units[i], last = count, now
    return units


def exchange_groups(metas: Metas, units: np.ndarray) -> np.ndarray:
    """[N] within what labels are exchanged: recordings, or subjects where most recordings hold one label, or all."""
    labels = np.array([meta["label"] for meta in metas])
    for names in ([place(meta) for meta in metas], [meta["subject"] for meta in metas]):
        held = defaultdict(set)
        for name, unit, label in zip(names, units, labels, strict=True):
            held[name].add((unit, label))
        alike = sum(len({label for _, label in own}) < 2 for own in held.values())
        if 2 * alike < len(held):
            return numbered(names)
    return np.zeros(len(metas), dtype=np.int64)


def stimulus_units(metas: Metas, card: Card) -> np.ndarray | None:
    """[N] the unit for what follows the stimulus: trials of one stimulus share what it evokes, whoever saw it.

    None in block and windowed designs, and where stimuli are unnamed: it is the unit of presentation.
    """
    if card.design not in RANDOMISED or any(meta["stimulus"] is None for meta in metas):
        return None
    return numbered([meta["stimulus"] for meta in metas])


def blocks_of(metas: Metas) -> np.ndarray | None:
    """[N] number of the block: by block, else by run, else by tenths of the recording's time; None: nothing is known.

    A name serves where some recording, session or subject holds two or more of them.
    """
    for field in ("block", "run"):
        if all(meta[field] is not None for meta in metas):
            names = [tuple(str(meta[f]) for f in ("subject", "session", "run", "recording", field)) for meta in metas]
            whole = {(meta["subject"], meta["recording"] if field == "block" else None) for meta in metas}
            if len(set(names)) > len(whole):
                return numbered(names)
    if any(meta["onset_s"] is None for meta in metas):
        return None
    places, onsets = [place(meta) for meta in metas], np.array([meta["onset_s"] for meta in metas])
    number, cut = numbered(places), np.zeros(len(metas), dtype=np.int64)
    for p in np.unique(number):
        own = np.flatnonzero(number == p)
        cut[own[np.argsort(onsets[own], kind="stable")]] = np.arange(len(own)) * PARTS // len(own)
    return numbered(list(zip(number.tolist(), cut.tolist(), strict=True)))


def moved_between_blocks(
    metas: Metas, blocks: np.ndarray, together: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Labels [N] with whole blocks' sequences of labels moved: no block keeps its own where a subject has several.

    Blocks change places within a subject along one random cycle, the same in subjects whose blocks correspond; a longer
    block repeats the sequence that it is given. Trials that are `together` [N], at one place of a shared order, are
    given the same label.
    """
    onsets = np.array([meta["onset_s"] if meta["onset_s"] is not None else 0.0 for meta in metas])
    labels, moved = np.array([meta["label"] for meta in metas]), np.zeros(len(metas), dtype=np.int64)
    subjects, rank = numbered([meta["subject"] for meta in metas]), random.permutation(int(blocks.max()) + 1)
    first, unit = np.unique(together, return_index=True, return_inverse=True)[1:]
    heads = blocks[first][unit]  # [N] the block in which the first recording of a shared order has this trial
    for subject in np.unique(subjects):
        own = np.unique(blocks[subjects == subject])
        members = {b: np.flatnonzero(blocks == b) for b in own}
        members = {b: rows[np.argsort(onsets[rows], kind="stable")] for b, rows in members.items()}
        cycle = sorted(own, key=lambda b: rank[np.bincount(heads[members[b]]).argmax()])
        for giver, taker in zip(cycle, np.roll(cycle, 1), strict=True):
            rows, given = members[taker], labels[members[giver]]
            moved[rows] = given[np.arange(len(rows)) % len(given)]
    return moved[first][unit]
