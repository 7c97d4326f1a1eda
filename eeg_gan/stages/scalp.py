"""Figures about the EEG itself: curves over the time of a trial, maps of the scalp."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from scipy.interpolate import RBFInterpolator

from eeg_gan.stages.figures import BAR, INK, drawn

RED = "#d64545"
GRID = 160  # points of a map along each side
LABELLED = 40  # electrodes; of more, names would lie on one another


def curve_over_time(times: np.ndarray, curve: np.ndarray, chance: float) -> str:
    """Shares [W, 3] (value, low, high) at `times` [W] in s."""

    def paint(figure: Figure, axes: np.ndarray) -> None:
        ax, (value, low, high) = axes[0, 0], curve.T
        ax.fill_between(times, low, high, color=BAR, alpha=0.22, lw=0)
        ax.plot(times, value, color=BAR, lw=1.6)
        ax.axhline(chance, color=RED, lw=1.2, ls=(0, (4, 2)))
        if times.min() < 0 < times.max():
            ax.axvline(0, color="#9aa5b1", lw=1)
        ax.set(xlabel="time from the stimulus, s", ylabel="balanced accuracy", xlim=(times.min(), times.max()))
        ax.set_ylim(0, min(1.0, 1.15 * float(high.max())))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.grid(True)

    return drawn(10.5, 3.0, (1, 1), paint)


def topomap(places: np.ndarray, values: np.ndarray, names: Sequence[str]) -> str:
    """Values [N] of electrodes at `places` [N, 2], smoothed over the head, in points; beside it, the largest."""

    def paint(figure: Figure, axes: np.ndarray) -> None:
        _head(figure, axes[0, 0], places, 100 * values, names)
        _ranked(axes[0, 1], names, 100 * values)

    return drawn(10.5, 4.6, (1, 2), paint)


def ranked(names: Sequence[str], values: np.ndarray) -> str:
    """The largest values alone, of electrodes whose place is unknown."""
    return drawn(10.5, 4.0, (1, 1), lambda figure, axes: _ranked(axes[0, 0], names, 100 * values))


def _head(figure: Figure, ax, places: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    radius = max(1.05, float(np.hypot(*places.T).max()) + 0.08)
    x, y = np.meshgrid(*[np.linspace(-radius, radius, GRID)] * 2)
    smooth = RBFInterpolator(places, values, kernel="thin_plate_spline", smoothing=1e-3)
    shown = smooth(np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape)
    limit = max(float(np.abs(values).max()), 1e-6)
    image = ax.imshow(
        shown,
        extent=(-radius, radius, -radius, radius),
        origin="lower",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        interpolation="bilinear",
    )
    image.set_clip_path(ax.add_patch(Circle((0, 0), radius, fill=False, lw=0)))
    ax.add_patch(Circle((0, 0), 1.0, fill=False, color=INK, lw=1.4))
    ax.plot([-0.12, 0, 0.12], [0.993, 1.13, 0.993], color=INK, lw=1.4)  # the nose
    for side in (-1, 1):
        ax.plot(side * np.array([0.99, 1.06, 1.06, 0.99]), [0.16, 0.1, -0.1, -0.16], color=INK, lw=1.4)
    ax.scatter(*places.T, s=7, color=INK, zorder=3)
    for (px, py), name in zip(places, names, strict=True) if len(names) <= LABELLED else ():
        said = ax.text(px, py + 0.035, name, ha="center", va="bottom", fontsize=6)
        said.set_path_effects([withStroke(linewidth=1.6, foreground="white")])
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", title="points that the true class loses")
    ax.axis("off")
    bar = figure.colorbar(image, ax=ax, shrink=0.75)
    bar.outline.set_visible(False)


def _ranked(ax, names: Sequence[str], values: np.ndarray, most: int = 15) -> None:
    order = np.argsort(-values)[:most]
    ax.barh(range(len(order)), values[order], height=0.62, color=BAR, alpha=0.85)
    ax.set_yticks(range(len(order)), [names[k] for k in order])
    ax.set(ylim=(len(order) - 0.4, -0.6), xlabel="points", title="the electrodes that matter most")
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_axisbelow(True)
