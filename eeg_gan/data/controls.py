"""Control experiments: what a decoder reaches from what cannot be the brain's answer to the image.

Every score is a balanced accuracy, whose chance is 1 / classes, of test trials by a decoder fitted on training trials.
p is exact under the null that the design itself makes true: with the predictions fixed, labels are permuted over the
units that drew them independently (units.py), within recordings. EEG is autocorrelated, but the units' labels are not.
Recordings that share an order of presentation are permuted together (orders.py).
"""

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eeg_gan.data import orders, units
from eeg_gan.data.card import Card
from eeg_gan.data.ridge import Decoder
from eeg_gan.distributed import seed_at

# N fitted trial, M scored trial, K class, D feature, U unit

NEIGHBOURS = 5
MOST = {"fit": 4000, "score": 3000}  # trials, evenly spread, that a control uses of a larger split
ALPHA = 0.001  # family-wise, of the controls that decide
DECIDING = ("time", "pre_stimulus", "between_blocks")
Metas = list[dict[str, Any]]


@dataclass(frozen=True)
class Control:
    """One experiment; what is not applicable has value None and a note that says why."""

    value: float | None = None  # balanced accuracy
    chance: float | None = None
    p: float | None = None
    n: int = 0  # scored trials
    note: str = ""
    least: float = 0.0  # no p can be smaller: one over the number of ways in which labels can be exchanged
    known: float = 0.0  # of time alone: share of the scored trials whose label a fitted trial of the same draw has
    correct: np.ndarray | None = field(default=None, compare=False)  # [M] weighted hits; their mean is value


@dataclass(frozen=True)
class Trials:
    """What controls see of the trials: those that decoders are fitted on, and those that are scored."""

    fit: Metas
    score: Metas
    card: Card
    permutations: int
    seed: int
    whole: Metas = ()  # all trials, for orders of presentation are seen in them only; empty: there are no others

    @property
    def y_fit(self) -> np.ndarray:
        return np.array([meta["label"] for meta in self.fit], dtype=np.int64)

    @property
    def y(self) -> np.ndarray:
        return np.array([meta["label"] for meta in self.score], dtype=np.int64)

    @property
    def missing(self) -> str | None:
        """Why no decoder can be judged at all."""
        if not self.fit or not self.score:
            return "there are no trials to fit on or none to score"
        shared = np.intersect1d(self.y_fit, self.y)
        return None if len(shared) > 1 else "fewer than two classes are in both parts"

    @functools.cached_property
    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        """[N + M] the draws behind fitted and scored trials: in their own recording, and in all of the same order."""
        whole = self.whole or [*self.fit, *self.score]
        own, rows = units.exchange_units(whole, self.card), _rows_of([*self.fit, *self.score], whole)
        return own[rows], orders.merged(whole, own)[rows]

    @property
    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """[M] unit and group of exchange of the scored trials, in the order of presentation."""
        own, joined = (numbers[len(self.fit) :] for numbers in self.draws)
        return joined, orders.shared_groups(units.exchange_groups(self.score, own), joined)

    @property
    def known(self) -> float:
        """Share of the scored trials whose draw of the label is also that of a fitted trial."""
        joined = self.draws[1]
        return float(np.isin(joined[len(self.fit) :], joined[: len(self.fit)]).mean())

    @functools.cached_property
    def places_in_order(self) -> np.ndarray:
        """[N + M] one number for trials at the same place of one order of presentation, the fitted trials first."""
        whole = self.whole or [*self.fit, *self.score]
        return orders.merged(whole, np.arange(len(whole)))[_rows_of([*self.fit, *self.score], whole)]

    def random(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(seed_at(self.seed, f"audit.{purpose}", 0))


def time_alone(trials: Trials) -> Control:
    """Scored trials take the label of the 5 fitted trials nearest in time, in the same recording first, without EEG.

    Votes are weighted by the rarity of their class. Above chance, slow drifts can tell the label.
    """
    if trials.missing:
        return Control(note=trials.missing)
    if any(meta["onset_s"] is None or units.place(meta) is None for meta in [*trials.fit, *trials.score]):
        return Control(chance=_chance(trials.y), n=len(trials.score), note="onsets or recordings are unknown")
    return replace(judged(trials, nearest_in_time(trials), "time"), known=trials.known)


def judged(trials: Trials, predicted: np.ndarray, purpose: str) -> Control:
    """Predictions from what precedes the stimulus, or from no EEG: labels are exchanged in order of presentation."""
    return _tested(trials, predicted, trials.y, *trials.drawn, purpose)


def answered(trials: Trials, predicted: np.ndarray, purpose: str) -> Control:
    """Predictions from the response: labels are exchanged between stimuli, because trials of one share its response."""
    own = units.stimulus_units(trials.score, trials.card)
    own = trials.drawn[0] if own is None else own
    return _tested(trials, predicted, trials.y, own, np.zeros_like(own), purpose)


def between_blocks(trials: Trials, decoder: Decoder) -> Control:
    """Decoding when whole blocks' label sequences have been moved to other blocks, in both parts, and fitted anew.

    The moved labels say nothing of what a trial showed, but they still go with the block wherever blocks differ in
    their labels. What can still be decoded is the block, which both parts share: drift, and where a block shows one
    class alone also the response to it, which no analysis can tell from drift. It turns the experiment of Li et al.
    (2020), who decoded block-level labels that had nothing to do with the pictures, into a test that a design of random
    order passes, drift or not. p permutes the moved labels over trials within recordings; where recordings share an
    order, blocks and labels move alike in them. Labels are moved once: what chance put into a block is common to all
    ways of moving it, so the mean over several would be luckier than its permutations.
    """
    if trials.missing:
        return Control(note=trials.missing)
    metas, n = [*trials.fit, *trials.score], len(trials.fit)
    blocks = units.blocks_of(metas)
    if blocks is None:
        return Control(note="neither blocks, runs nor onsets are known")
    if not np.intersect1d(blocks[:n], blocks[n:]).size:
        return Control(note="no block is in both parts, so a decoder cannot use what is common to a block")
    together = trials.places_in_order
    moved = units.moved_between_blocks(metas, blocks, together, trials.random("blocks"))
    groups = orders.shared_groups(units.numbered([units.place(meta) for meta in trials.score]), together[n:])
    return _tested(trials, decoder.predict(moved[:n]), moved[n:], together[n:], groups, "between_blocks")


def shuffled_eeg(trials: Trials, decoder: Decoder) -> Control:
    """The ridge baseline fitted on training EEG that belongs to other trials: what there is when there is nothing."""
    if trials.missing:
        return Control(note=trials.missing)
    return answered(trials, decoder.predict(trials.random("shuffled").permutation(trials.y_fit)), "shuffled_eeg")


def nearest_in_time(trials: Trials) -> np.ndarray:
    """[M]; votes of the nearest fitted trials, ties to the nearest; another recording is further than any time."""
    places = {place: i for i, place in enumerate(sorted({str(units.place(m)) for m in [*trials.fit, *trials.score]}))}
    fit, score = (
        np.array([[places[str(units.place(m))], m["onset_s"]] for m in side], dtype=float)
        for side in (trials.fit, trials.score)
    )
    labels, rare = trials.y_fit, 1 / np.bincount(trials.y_fit).clip(1)
    far = 1e6 + np.abs(np.concatenate([fit, score])[:, 1]).max() * 2
    predicted = []
    for place, onset in score:
        distance = np.abs(fit[:, 1] - onset) + far * (fit[:, 0] != place)
        near = np.argpartition(distance, min(NEIGHBOURS, len(distance)) - 1)[:NEIGHBOURS]
        nearest = labels[near[np.argsort(distance[near], kind="stable")]]
        votes = np.bincount(nearest) * rare[: nearest.max() + 1]
        predicted.append(next(label for label in nearest if votes[label] >= votes.max() * (1 - 1e-9)))
    return np.array(predicted)


def permutation_p(
    gains: np.ndarray, labels: np.ndarray, own: np.ndarray, groups: np.ndarray, n: int, random: np.random.Generator
) -> tuple[float, float]:
    """The sum of gains [U', K] at labels [U'] of all rows, and the share of n permutations that reach it.

    `own` [U'] numbers the units, each permuted as a whole within its group [U']; never below 1 / (n + 1).
    """
    first, unit = np.unique(own, return_index=True, return_inverse=True)[1:]
    whole = np.zeros((len(first), gains.shape[1]))
    np.add.at(whole, unit, gains)
    labels, groups, everything = labels[first], groups[first], np.arange(len(first))
    observed, rows, reached = whole[everything, labels].sum(), np.argsort(groups, kind="stable"), 0
    cuts = np.flatnonzero(np.diff(groups[rows])) + 1
    for start in range(0, n, chunk := max(1, 4_000_000 // len(first))):
        order = np.tile(everything, (min(chunk, n - start), 1))
        for members in np.split(rows, cuts):
            order[:, members] = random.permuted(order[:, members], axis=1)
        reached += int((whole[everything, labels[order]].sum(axis=1) >= observed - 1e-9).sum())
    return float(observed), (1 + reached) / (1 + n)


def _tested(
    trials: Trials, predicted: np.ndarray, labels: np.ndarray, own: np.ndarray, groups: np.ndarray, purpose: str
) -> Control:
    """predicted, labels [M] -> the balanced accuracy, with its p."""
    counts = np.bincount(labels, minlength=int(max(predicted.max(), labels.max())) + 1)
    weight = len(labels) / (counts.clip(1) * (counts > 0).sum())
    gains = np.zeros((len(labels), len(counts)))
    gains[np.arange(len(labels)), predicted] = weight[predicted]
    value, p = permutation_p(gains, labels, own, groups, trials.permutations, trials.random(purpose))
    first = np.unique(own, return_index=True)[1]
    least = math.exp(-orders.log_arrangements(labels[first], groups[first]))
    correct = weight[labels] * (predicted == labels)
    return Control(value / len(labels), _chance(labels), p, len(labels), least=least, correct=correct)


def _rows_of(metas: Metas, whole: Metas) -> np.ndarray:
    known = {meta["key"]: i for i, meta in enumerate(whole)}
    return np.array([known[meta["key"]] for meta in metas], dtype=np.int64)


def _chance(labels: np.ndarray) -> float:
    return 1 / len(np.unique(labels))


def parts(metas: dict[str, Metas]) -> tuple[list[tuple[str, int]], list[tuple[str, int]], str]:
    """(split, trial) of what decoders are fitted on, of what they are scored on, and what a reader should know.

    Train and test, or train and val where test is empty. Where they share fewer than two classes, a half of the test
    split's stimuli is fitted on to score the other half: unseen classes can be confounded as well.
    """
    score = next((split for split in ("test", "val") if metas.get(split)), None)
    if score is None or not metas.get("train"):
        return [], [], "only one split holds trials, so controls that compare two cannot be made"
    labels = [{meta["label"] for meta in metas[split]} for split in ("train", score)]
    said = "" if score == "test" else "the test split is empty, so controls are scored on val"
    if len(labels[0] & labels[1]) > 1:
        return [("train", i) for i in range(len(metas["train"]))], [(score, i) for i in range(len(metas[score]))], said
    names = [m["key"] if m["stimulus"] is None else m["stimulus"] for m in metas[score]]
    rank = {name: i for i, name in enumerate(sorted(set(names)))}
    halves = [[(score, i) for i, name in enumerate(names) if rank[name] % 2 == half] for half in (0, 1)]
    said = f"train and {score} share fewer than two classes, so one half of {score}'s stimuli is decoded from the other"
    return halves[0], halves[1], said


def thinned(rows: list, most: int) -> list:
    """At most `most` of the rows, evenly spread."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else rows


def with_note(control: Control, note: str) -> Control:
    return replace(control, note="; ".join(part for part in (control.note, note) if part))
