"""Figures of the report: matplotlib without a display, and pictures, as PNG data URIs."""

import base64
import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from PIL import Image

# N trial, K class, H height, W width

INK, FAINT, BAR = "#1f2933", "#d9dee4", "#4c78a8"
LINES = ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#72b7b2")
DPI = 130
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.grid": False,
    "grid.color": "#eceff2",
}


def class_colours(n: int) -> list[str]:
    """One colour per class, the same in every figure of a report."""
    if n <= 20:
        return [to_hex(colour) for colour in matplotlib.colormaps["tab10" if n <= 10 else "tab20"].colors[:n]]
    return [to_hex(colour) for colour in matplotlib.colormaps["turbo"](np.linspace(0.02, 0.98, n))]


def picture(image: np.ndarray, limit: int = 160) -> str:
    """uint8 [H, W, 3] at its own size, or reduced to `limit` pixels; the page enlarges small ones."""
    shown = Image.fromarray(image)
    if max(shown.size) > limit:
        shown.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return _uri(buffer)


def scatter_maps(points: np.ndarray, panels: Sequence[dict]) -> str:
    """Points [N, 2] once per panel: {title, values [N], names and colours | unit | missing}."""

    def paint(figure: Figure, axes: np.ndarray) -> None:
        for ax, panel in zip(axes[0], panels, strict=True):
            ax.set(title=panel["title"], xticks=[], yticks=[], box_aspect=1)
            ax.spines[:].set(visible=True, color=FAINT)
            (_by_name if "names" in panel else _by_value)(figure, ax, points, panel)

    names = max([len(panel.get("names", ())) for panel in panels if len(panel.get("names", ())) <= 20], default=0)
    legend = -(-names // (4 if names > 12 else 3))  # rows
    return drawn(10.5, max(4.0, 3.75 + 0.25 * legend), (1, len(panels)), paint)


def _by_name(figure: Figure, ax, points: np.ndarray, panel: dict) -> None:
    for number, (name, colour) in enumerate(zip(panel["names"], panel["colours"], strict=True)):
        own = points[panel["values"] == number]
        ax.scatter(own[:, 0], own[:, 1], s=9, color=colour, alpha=0.85, linewidths=0, label=str(name)[:18])
    if len(panel["names"]) <= 20:
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.01),
            ncols=4 if len(panel["names"]) > 12 else 3,
            markerscale=2,
            handletextpad=0.1,
            columnspacing=0.8,
        )


def _by_value(figure: Figure, ax, points: np.ndarray, panel: dict) -> None:
    if panel.get("missing"):
        ax.scatter(points[:, 0], points[:, 1], s=9, color=FAINT, linewidths=0)
        ax.set_xlabel(panel["missing"])
        return
    shown = ax.scatter(points[:, 0], points[:, 1], s=9, c=panel["values"], cmap="viridis", linewidths=0)
    bar = figure.colorbar(shown, cax=ax.inset_axes([0.1, -0.08, 0.8, 0.03]), orientation="horizontal")
    bar.set_label(panel["unit"])
    bar.outline.set_visible(False)


def confusion(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> str:
    """Rows are true classes, columns are predicted ones; each row sums to 100 %."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (labels, predicted), 1)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    many = len(names) > 20

    def paint(figure: Figure, axes: np.ndarray) -> None:
        ax, small = axes[0, 0], 5 if many else 8
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(
            range(len(names)),
            names,
            rotation=90 if many else 45,
            ha="center" if many else "right",
            rotation_mode="default" if many else "anchor",
            fontsize=small,
        )
        ax.set_yticks(range(len(names)), names, fontsize=small)
        ax.set(xlabel="predicted", ylabel="true")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        for (row, column), value in np.ndenumerate(share) if len(names) <= 12 else ():
            if value >= 0.005:
                ax.text(
                    column,
                    row,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if value > 0.55 else INK,
                )

    return drawn(5.4, 4.9, (1, 1), paint)


def curves(groups: Sequence[dict]) -> str:
    """Small multiples over images: each group is {title, unit, lines: {name: (images [M], values [M])}}."""
    columns = 3 if len(groups) in (5, 6, 9) else 4
    rows = -(-len(groups) // columns)

    def paint(figure: Figure, axes: np.ndarray) -> None:
        for ax in axes.flat[len(groups) :]:
            ax.set_visible(False)
        for ax, group in zip(axes.flat, groups, strict=False):
            for colour, (name, (images, values)) in zip(LINES * 9, group["lines"].items(), strict=False):
                ax.plot(
                    np.asarray(images) / 1000,
                    values,
                    color=colour,
                    lw=1.4,
                    label=name.replace("_", " "),
                    marker="o" if len(images) < 3 else None,
                    ms=3,
                )
            ax.set(title=group["title"], ylabel=group["unit"], xlabel="thousand images")
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.grid(True)
            if group["unit"] == "0 to 1":
                top = 1.1 * max(0.09, *(max(values) for _, values in group["lines"].values()))
                ax.set_ylim(-0.03 * top, top)
            if len(group["lines"]) > 1:
                ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2, handlelength=1.2, columnspacing=1)

    return drawn(10.5, 2.35 * rows, (rows, columns), paint)


def bars(panels: Sequence[dict], columns: int = 2) -> str:
    """Shares with 95 % intervals; each panel is {title, bars: [(name, record, colour or None)]}, chance as a line."""
    rows = -(-len(panels) // columns)
    longest = max(len(panel["bars"]) for panel in panels)

    def paint(figure: Figure, axes: np.ndarray) -> None:
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, panel in zip(axes.flat, panels, strict=False):
            _bars(ax, panel)

    return drawn(10.5, rows * min(max(2.0, 0.36 * longest + 0.9), 6), (rows, columns), paint)


def _bars(ax, panel: dict) -> None:
    for place, (_name, m, colour) in enumerate(panel["bars"]):
        ax.barh(place, m["value"], height=0.62, color=colour or BAR, alpha=0.85)
        if m["low"] is not None:
            ax.plot([m["low"], m["high"]], [place, place], color=INK, lw=1.3, solid_capstyle="butt")
        if m["chance"] is not None:
            ax.plot([m["chance"]] * 2, [place - 0.42, place + 0.42], color="#d64545", lw=1.6, ls=(0, (2, 1)))
        ax.text(1.02, place, f"{100 * m['value']:.1f} %", va="center", fontsize=8.5)
    ax.set_yticks(range(len(panel["bars"])), [name for name, _, _ in panel["bars"]])
    ax.set(title=panel["title"], xlim=(0, 1), ylim=(len(panel["bars"]) - 0.4, -0.6))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_axisbelow(True)


def lines(panels: Sequence[dict]) -> str:
    """Shares with 95 % intervals over a count: each panel is {title, xlabel, lines: {name: {x: record}}}.

    Chance is drawn where the records know it.
    """

    def paint(figure: Figure, axes: np.ndarray) -> None:
        for ax, panel in zip(axes[0], panels, strict=True):
            _lines(ax, panel)

    return drawn(5.25 * len(panels), 3.3, (1, len(panels)), paint)


def _lines(ax, panel: dict) -> None:
    for colour, (name, points) in zip(LINES, panel["lines"].items(), strict=False):
        xs, found = list(points), list(points.values())
        ax.plot(xs, [m["value"] for m in found], color=colour, lw=1.6, marker="o", ms=4, label=name)
        if all(m["low"] is not None for m in found):
            ax.fill_between(xs, [m["low"] for m in found], [m["high"] for m in found], color=colour, alpha=0.15, lw=0)
        if all(m["chance"] is not None for m in found):
            ax.plot(xs, [m["chance"] for m in found], color=colour, lw=1.2, ls=(0, (2, 2)))
    ax.plot([], [], color=INK, lw=1.2, ls=(0, (2, 2)), label="chance")
    shown = sorted({x for points in panel["lines"].values() for x in points})
    ax.set_xscale("log")
    ax.set_xticks(shown, [str(x) for x in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(title=panel["title"], xlabel=panel["xlabel"], ylim=(0, None))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(True)
    ax.legend()


def drawn(width: float, height: float, shape: tuple[int, int], paint: Callable[[Figure, np.ndarray], None]) -> str:
    """`paint` on a figure of width x height inches, without pyplot and its global list of figures."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
        paint(figure, figure.subplots(*shape, squeeze=False))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return _uri(buffer)


def _uri(png: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
