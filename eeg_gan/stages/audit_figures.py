"""Pictures of the audit's page: controls with intervals, labels against time, spectra, evoked responses."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from eeg_gan.stages.figures import FAINT, INK, LINES, class_colours, drawn

# N trial, C electrode, T time sample, F frequency, K class

RED, AMBER, BLUE = "#d64545", "#d08a1d", "#4c78a8"
MOST_ROWS, MOST_BLOCKS, MOST_LEGEND = 14, 60, 20
LEAST_HZ = 0.5
KEPT = 1e-5  # of the largest power: what is below was filtered out


def forest(rows: Sequence[dict]) -> str:
    """Scores with 95 % intervals: each row is {name, entry, colour}; chance is a dashed mark."""

    def paint(figure: Figure, axes: np.ndarray) -> None:
        ax, top = axes[0, 0], 0.0
        for place, row in enumerate(rows):
            entry = row["entry"]
            if entry["value"] is None:
                ax.text(0.01, place, "not applicable", va="center", fontsize=8.5, color="#8a96a3", style="italic")
                continue
            top = max(top, entry["high"], entry["chance"])
            ax.plot([entry["low"], entry["high"]], [place, place], color=row["colour"], lw=3, alpha=0.45)
            ax.plot(entry["value"], place, "o", color=row["colour"], ms=7)
            ax.plot([entry["chance"]] * 2, [place - 0.36, place + 0.36], color=INK, lw=1.3, ls=(0, (2, 1.5)))
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set(xlim=(0, min(1.02, max(0.25, 1.15 * top))), ylim=(len(rows) - 0.4, -0.6), xlabel="balanced accuracy")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.tick_params(axis="y", length=0)
        ax.grid(True, axis="x")
        ax.set_axisbelow(True)

    return drawn(10.5, 0.42 * len(rows) + 0.8, (1, 1), paint)


def raster(metas: Sequence[dict], names: Sequence[str]) -> str:
    """Labels over the time of the recording: a row per recording, a stroke per trial, a colour per class."""
    places = sorted({row_of(meta) for meta in metas})
    shown = [places[i * len(places) // MOST_ROWS] for i in range(MOST_ROWS)] if len(places) > MOST_ROWS else places
    colours = class_colours(len(names))

    def paint(figure: Figure, axes: np.ndarray) -> None:
        ax = axes[0, 0]
        for row, name in enumerate(shown):
            own = [meta for meta in metas if row_of(meta) == name]
            onsets = np.array([meta["onset_s"] for meta in own]) / 60
            ax.vlines(onsets, row - 0.42, row + 0.42, color=[colours[meta["label"]] for meta in own], lw=0.9)
        ax.set_yticks(range(len(shown)), [_cut(str(name), 28) for name in shown])
        ax.set(xlabel="time in the recording (min)", ylim=(len(shown) - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.01)
        ax.spines["left"].set_visible(False)
        _legend(figure, names, colours)

    legend = 0.2 * -(-min(len(names), MOST_LEGEND) // 5)
    return drawn(10.5, 0.34 * len(shown) + 1.1 + legend, (1, 1), paint)


def row_of(meta: dict) -> str:
    """The recording, or who was recorded."""
    return meta["recording"] or meta["subject"] or ""


def spectra(freqs: np.ndarray, by_class: dict[int, np.ndarray], names: Sequence[str]) -> str:
    """Power of each class [C, F], median over electrodes: the densities, and their ratio to the mean of all classes."""
    mean, colours = (
        np.mean([np.median(power, axis=0) for power in by_class.values()], axis=0),
        class_colours(len(names)),
    )
    keep = _passed(freqs, mean)

    def paint(figure: Figure, axes: np.ndarray) -> None:
        for label, power in by_class.items():
            line = np.median(power, axis=0)
            axes[0, 0].semilogy(freqs[keep], line[keep], color=colours[label], lw=1.1)
            axes[0, 1].plot(freqs[keep], _decibel(line / mean)[keep], color=colours[label], lw=1.1)
        axes[0, 0].set(title="Power of each class", ylabel="stored unit² / Hz", xlabel="Hz")
        axes[0, 1].set(title="Class against the mean of classes", ylabel="dB", xlabel="Hz")
        axes[0, 1].axhline(0, color=INK, lw=0.8)
        limit = max(1.0, np.abs(axes[0, 1].get_ylim()).max())
        axes[0, 1].set_ylim(-limit, limit)
        for ax in axes[0]:
            ax.grid(True)
        _legend(figure, names, colours)

    rows = -(-min(len(names), MOST_LEGEND) // 5) if len(names) <= MOST_LEGEND else 0
    return drawn(10.5, 3.1 + 0.2 * rows, (1, 2), paint)


def blocks(freqs: np.ndarray, rows: Sequence[dict], n_classes: int) -> str:
    """Power of each block in dB against the mean of its recording's blocks, in order of time; a strip has the class.

    Where most recordings are one block, the mean is that of all blocks. A row is {name, recording, power [C, F],
    label}; the label is -1 where no class stands out in the block.
    """
    lines = np.stack([np.median(row["power"], axis=0) for row in rows])
    keep, recording = _passed(freqs, np.median(lines, axis=0)), np.array([row["recording"] for row in rows])
    whose = "all blocks'" if 2 * len(set(recording)) > len(rows) else "the recording's"
    recording = np.zeros(len(rows)) if whose == "all blocks'" else recording
    level = _decibel(lines)
    mean = np.stack([level[recording == own].mean(axis=0) for own in recording])
    chosen = [i * len(rows) // MOST_BLOCKS for i in range(MOST_BLOCKS)] if len(rows) > MOST_BLOCKS else range(len(rows))
    ratio, rows = (level - mean)[list(chosen)][:, keep], [rows[i] for i in chosen]
    colours = class_colours(n_classes)

    def paint(figure: Figure, axes: np.ndarray) -> None:
        ax, limit = axes[0, 0], max(1.0, float(np.quantile(np.abs(ratio), 0.98)))
        shown = ax.imshow(
            ratio,
            aspect="auto",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
            extent=(freqs[keep][0], freqs[keep][-1], len(ratio) - 0.5, -0.5),
        )
        strip = ax.inset_axes([-0.022, 0, 0.014, 1])
        strip.set(xticks=[], yticks=[], ylim=(len(ratio) - 0.5, -0.5), xlim=(0, 1))
        strip.spines[:].set_visible(False)
        for place, row in enumerate(rows):
            colour = colours[row["label"]] if row["label"] >= 0 else FAINT
            strip.axhspan(place - 0.5, place + 0.5, color=colour, lw=0)
        every = -(-len(ratio) // 20)
        ax.set_yticks(range(0, len(ratio), every), [_cut(row["name"], 26) for row in rows[::every]])
        ax.tick_params(axis="y", length=0, pad=18)
        ax.set(xlabel="Hz")
        figure.colorbar(shown, ax=ax, label=f"dB against {whose} mean", pad=0.015).outline.set_visible(False)

    return drawn(10.5, max(2.4, min(6.5, 0.17 * len(ratio) + 1.1)), (1, 1), paint)


def butterfly(times: np.ndarray, evoked: np.ndarray, by_class: dict[int, np.ndarray], names: Sequence[str]) -> str:
    """Evoked response: every electrode [C, T], and the spread over electrodes of each class's own response."""
    colours, ms = class_colours(len(names)), 1000 * times

    def paint(figure: Figure, axes: np.ndarray) -> None:
        axes[0, 0].plot(ms, evoked.T, color=LINES[0], lw=0.7, alpha=0.6)
        axes[0, 0].plot(ms, evoked.std(axis=0), color=INK, lw=1.8, label="spread over electrodes")
        axes[0, 0].set(title="Mean of all trials, every electrode", ylabel="stored unit", xlabel="ms from the stimulus")
        axes[0, 0].legend(loc="lower right")
        for label, own in by_class.items():
            axes[0, 1].plot(ms, (own - evoked).std(axis=0), color=colours[label], lw=1.1)
        axes[0, 1].set(
            title="Class minus mean, spread over electrodes",
            ylabel="stored unit",
            ylim=(0, None),
            xlabel="ms from the stimulus",
        )
        for ax in axes[0]:
            ax.grid(True)
            ax.margins(x=0.01)
            if ms[0] <= 0 <= ms[-1]:
                ax.axvline(0, color=RED, lw=1, ls=(0, (3, 2)))
            ax.xaxis.set_major_locator(MaxNLocator(7))

    return drawn(10.5, 3.2, (1, 2), paint)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _legend(figure: Figure, names: Sequence[str], colours: Sequence[str]) -> None:
    if len(names) <= MOST_LEGEND:
        handles = [Line2D([], [], color=c, lw=3, label=str(name)[:18]) for name, c in zip(names, colours, strict=True)]
        figure.legend(handles=handles, loc="outside lower center", ncols=5)


def _passed(freqs: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The frequencies that the filter left in."""
    return (freqs >= LEAST_HZ) & (power >= KEPT * power[freqs >= LEAST_HZ].max())


def _decibel(ratio: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(ratio, 1e-12))
