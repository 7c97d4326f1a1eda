"""Orders of presentation that recordings share: a fixed playlist is one random draw, however many people saw it.

Labels that one draw put into several recordings are no independent evidence, so permutation tests must move them
together. Sharing is looked for in the labels alone, between recordings and between the runs of one: equal sequences
count where there are more of them than chance makes; others are aligned by their longest common subsequence, which
trials that were dropped do not disturb, and count where it is five deviations longer than with one of them shuffled.
Orders of a few trials that differ by dropped ones stay unseen.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaln

from eeg_gan.data.units import place

# N trial, U unit; a sequence is the units of a recording, or of a run, in order of presentation

DEVIATIONS = 5.0  # from here on an agreement is no chance
SHUFFLES = 20
COMPARISONS = 1_000_000  # trials times other orders that each is compared with, at most; yet
LEAST_HEADS = 8  # orders are always compared
TABLE = 4_000_000  # cells of an alignment in memory
Metas = list[dict[str, Any]]


@dataclass(frozen=True)
class Sequence:
    """The units of one recording or run in order of presentation, and their labels."""

    units: list[int]
    labels: tuple[int, ...]


def merged(metas: Metas, units: np.ndarray) -> np.ndarray:
    """Units [N] where those at the same place of a shared order have become one; unchanged where onsets are unknown.

    All units of one have the same label.
    """
    if any(meta["onset_s"] is None or place(meta) is None for meta in metas):
        return units
    whole = _sequences(metas, units, ())
    joined, follows = _joined(list(whole.values()))
    heads = {name for name, follower in zip(whole, follows, strict=True) if not follower}
    runs = {name: own for name, own in _sequences(metas, units, ("session", "run")).items() if name[0] in heads}
    if len(runs) > len(heads):
        joined += _joined(list(runs.values()))[0]
    return _components(int(units.max(initial=-1)) + 1, joined)[units]


def shared_groups(groups: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Groups [N] of exchange for merged units: those in several groups are exchanged with one another alone."""
    held = defaultdict(set)
    for unit, group in zip(units.tolist(), groups.tolist(), strict=True):
        held[unit].add(group)
    n = int(groups.max(initial=-1)) + 1
    together = _components(n, [pair for own in held.values() for pair in pairwise(sorted(own))])
    several = np.array([len(held[unit]) > 1 for unit in units.tolist()], dtype=bool)
    return np.where(several, n + together[groups], groups)


def log_arrangements(labels: np.ndarray, groups: np.ndarray) -> float:
    """Logarithm of the number of ways in which units' labels [U] can be exchanged within groups [U]."""
    total = 0.0
    for group in np.unique(groups):
        counts = np.unique(labels[groups == group], return_counts=True)[1]
        total += float(gammaln(counts.sum() + 1) - gammaln(counts + 1).sum())
    return total


def _sequences(metas: Metas, units: np.ndarray, within: tuple[str, ...]) -> dict[tuple, Sequence]:
    """(place, ...) -> its sequence."""
    rows = defaultdict(list)
    for i, meta in enumerate(metas):
        rows[place(meta), *(meta[name] for name in within)].append(i)
    found = {}
    for name, own in sorted(rows.items(), key=lambda item: str(item[0])):
        ordered = dict.fromkeys(int(units[i]) for i in sorted(own, key=lambda i: metas[i]["onset_s"]))
        label = {int(units[i]): metas[i]["label"] for i in own}
        found[name if within else name[0]] = Sequence(list(ordered), tuple(label[unit] for unit in ordered))
    return found


def _joined(sequences: list[Sequence]) -> tuple[list[tuple[int, int]], list[bool]]:
    """Pairs of units that are one, and which sequences follow an earlier one."""
    first: dict[tuple, int] = {}
    joined, follows, alike = [], [False] * len(sequences), _more_alike_than_chance(sequences)
    for i, own in enumerate(sequences):
        head = first.setdefault(own.labels, i)
        if alike and head != i:
            joined += zip(sequences[head].units, own.units, strict=True)
            follows[i] = True
    heads, most = [], max(LEAST_HEADS, COMPARISONS // max(1, sum(len(own.units) for own in sequences)))
    for i in (i for i in range(len(sequences)) if not follows[i]):
        head = next((h for h in heads[:most] if _share(sequences[h].labels, sequences[i].labels)), None)
        if head is None:
            heads.append(i)
            continue
        matched = _aligned(np.array(sequences[head].labels), np.array(sequences[i].labels))
        joined += [(sequences[head].units[a], sequences[i].units[b]) for a, b in matched]
        follows[i] = True
    return joined, follows


def _more_alike_than_chance(sequences: list[Sequence]) -> bool:
    """Whether more sequences are equal than random orders of the same labels would be."""
    contents = defaultdict(list)
    for own in sequences:
        contents[tuple(sorted(own.labels))].append(own.labels)
    expected = observed = 0.0
    for content, members in contents.items():
        ways = log_arrangements(np.array(content), np.zeros(len(content)))
        if ways > 0:
            expected += _pairs_of(len(members)) * np.exp(-ways)
            observed += sum(_pairs_of(n) for n in Counter(members).values())
    return observed > expected + DEVIATIONS * expected**0.5


def _pairs_of(n: int) -> float:
    return n * (n - 1) / 2


def _share(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether the longest common subsequence is longer than chance makes it."""
    found, random, others = _common(first, second), np.random.default_rng(0), []
    for _ in range(SHUFFLES):
        others.append(_common(first, tuple(random.permutation(second).tolist())))
        if others[-1] >= found:
            return False
    return found > np.mean(others) + DEVIATIONS * max(1.0, float(np.std(others)))


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the longest common subsequence, by the bits of whole numbers (Hyyro 2004)."""
    masks: dict[int, int] = defaultdict(int)
    for i, label in enumerate(first):
        masks[label] |= 1 << i
    full = (1 << len(first)) - 1
    row = full
    for label in second:
        met = row & masks[label]
        row = ((row + met) | (row - met)) & full
    return len(first) - row.bit_count()


def _aligned(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int]]:
    """Places of a longest common subsequence; sequences too long for a table are divided (Hirschberg 1975)."""
    if len(first) * len(second) <= TABLE:
        yield from _traced(first, second)
        return
    middle = len(first) // 2
    ahead = _rows(first[:middle], second)[-1]
    behind = _rows(first[middle:][::-1], second[::-1])[-1][::-1]
    cut = int((ahead + behind).argmax())
    yield from _aligned(first[:middle], second[:cut])
    yield from ((a + middle, b + cut) for a, b in _aligned(first[middle:], second[cut:]))


def _traced(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
    table, found = _rows(first, second, keep=True), []
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            found.append((i, j))
        elif table[i - 1][j] >= table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _rows(first: np.ndarray, second: np.ndarray, keep: bool = False) -> list[np.ndarray]:
    """Lengths for every beginning of `second`: after each trial of `first`, or after the last alone."""
    rows = [np.zeros(len(second) + 1, dtype=np.int32)]
    for label in first:
        row = rows[-1].copy()
        row[1:] = np.maximum(row[1:], rows[-1][:-1] + (second == label))
        rows[0 if not keep else len(rows) :] = [np.maximum.accumulate(row)]
    return rows


def _components(n: int, joined: list[tuple[int, int]]) -> np.ndarray:
    """[n] number of the component of each."""
    a, b = np.array(joined, dtype=np.int64).reshape(-1, 2).T
    return connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)[1]
