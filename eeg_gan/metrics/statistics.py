"""Intervals and records: every reported number carries what it could have been by luck."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from eeg_gan.config import UserError

LEVEL = 0.95  # of every interval
Z = 1.959963984540054  # its normal quantile


def bootstrap_mean(
    values: Sequence[float], groups: Sequence | None = None, n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of `values` and its 95 % percentile interval.

    `groups` names the unit that a new experiment would draw again (a stimulus, a subject): whole groups are resampled,
    because trials of one picture are not independent.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise UserError("a mean needs one value or more, got none; the split or the selection is empty")
    names = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    assert len(names) == len(values), f"{len(values)} values but {len(names)} groups"
    sums, counts = np.bincount(names, values), np.bincount(names)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, n, 100):  # in parts, for memory
        times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=min(100, n - start))
        means.append((times @ sums) / (times @ counts))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)


def wilson(k: int, n: int) -> tuple[float, float, float]:
    """The share k / n and Wilson's 95 % interval, right also for k = 0 and k = n."""
    if not 0 <= k <= n or n == 0:
        raise UserError(f"a share is k of n with 0 <= k <= n and n > 0; got k={k}, n={n}")
    share, widen = k / n, 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / widen
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / widen
    return share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def record(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    chance: float | None = None,
    n: int | None = None,
) -> dict[str, float | None]:
    """One entry of metrics.json; what is not finite becomes null, as JSON has no NaN."""
    entry = {name: _finite(x) for name, x in (("value", value), ("low", low), ("high", high), ("chance", chance))}
    return entry | {"n": None if n is None else int(n)}


def permutation_p(
    statistic: Callable[[np.ndarray], float], labels: Sequence, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """`statistic(labels)` and the share of n shufflings of the labels that reach it (larger is better), never 0."""
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    observed = float(statistic(labels))
    reached = sum(float(statistic(rng.permutation(labels))) >= observed for _ in range(n))
    return observed, (1 + reached) / (1 + n)


def shuffled_labels(
    labels: np.ndarray, groups: Sequence, order: np.ndarray | None = None, n: int = 1000, seed: int = 0
) -> Iterator[np.ndarray]:
    """`labels` [N] as they could as well have been, n times, where groups are what chance moves.

    Where all samples of a group have one label (trials of a picture), labels go from group to group. Where they differ
    (trials of a recording), labels are shifted in a circle within each group, in the `order` [N] of time, which keeps
    how they follow one another.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    _, first, of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    if (labels[first][of] == labels).all():
        for _ in range(n):
            yield rng.permutation(labels[first])[of]
        return
    time = np.arange(len(labels)) if order is None else np.asarray(order)
    members = [np.flatnonzero(of == group) for group in range(len(first))]
    members = [own[np.argsort(time[own], kind="stable")] for own in members]
    for _ in range(n):
        moved = np.empty_like(labels)
        for own in members:
            moved[own] = np.roll(labels[own], rng.integers(len(own)))
        yield moved


def p_value(statistic: Callable[[np.ndarray], float], labels: np.ndarray, shuffled: Iterable[np.ndarray]) -> float:
    """The share of `shuffled` labels that reach `statistic(labels)` (larger is better), never 0."""
    observed, null = float(statistic(labels)), [float(statistic(other)) for other in shuffled]
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))


def over_seeds(runs: Sequence[dict[str, dict]]) -> dict[str, dict]:
    """Mean and standard deviation (of a sample) of each metric that all `runs` have; each is a metrics.json."""
    found = {}
    for name in runs[0]:
        values = [run.get(name, {}).get("value") for run in runs]
        if None not in values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            found[name] = {"mean": float(np.mean(values)), "sd": sd, "n": len(values), "values": values}
    return found


def _finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None
