"""A ledger: the figures that a paper gives, the stages that make each, and what they came to here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eeg_gan.config import UserError, from_dict, read_yaml

REFERENCE = re.compile(r"\{run_dir\}/([\w-]+)")
HEAD = ("where", "figure", "paper", "measured", "leak-free split")


@dataclass(frozen=True)
class Row:
    """One figure of the paper."""

    place: str  # Table 1, Figure 5 ...
    figure: str  # what is measured of what
    paper: float  # as published
    source: str  # who says that the paper says so, and how sure that is
    tolerance: float = 0.0  # how far from the paper the measured figure may lie
    stage: str | None = None  # the stage whose metrics.json holds it; null: the paper cites others, nothing to run
    metric: str = ""  # its name there
    minus: str | None = None  # another stage whose figure is taken off: a finding on which of two is better
    percent_above: float | None = None  # a figure of others: the paper says by how many per cent its own lies above it
    expects: Literal["equal", "above"] = "equal"  # above: the measured figure is to be larger than the paper's

    def __post_init__(self):
        if self.stage is not None and not self.metric:
            raise ValueError(f"{self.figure}: stage={self.stage} needs the name of a metric in its metrics.json")
        if self.percent_above is not None and (self.minus is not None or not self.percent_above > 0):
            raise ValueError(
                f"{self.figure}: percent_above is a figure above 0 that others reached, and goes without minus"
            )

    def agrees(self, value: float) -> bool:
        return value > self.paper if self.expects == "above" else abs(value - self.paper) <= self.tolerance


@dataclass(frozen=True)
class Ledger:
    """The figures of one data set, and the pipeline that makes them under the paper's division and a leak-free one."""

    data: str  # name of the data set
    needs: tuple[str, ...]  # files or folders, {data} standing for the data folder
    get: str  # what to download, where from, and where to put it
    rows: tuple[Row, ...]
    stages: dict[str, dict[str, Any] | None]  # as in a pipeline
    published: dict[str, dict[str, Any]]  # keys of stages for the paper's division
    leak_free: dict[str, dict[str, Any]] | str  # the same for a leak-free one, or why there is none

    def __post_init__(self):
        named = {row.stage for row in self.rows} | {row.minus for row in self.rows}
        absent = sorted(named - set(self.stages) - {None})
        if absent:
            raise ValueError(f"rows name the stage {absent[0]}, which is not among the stages")


def read_ledgers(folder: Path) -> dict[str, Ledger]:
    """Every ledger of a paper by the name of its file."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        papers = ", ".join(sorted(path.name for path in folder.parent.glob("*/"))) or "none"
        raise UserError(
            f"{folder} holds no ledger; run from the folder that holds configs/, or name it with ledgers=FOLDER "
            f"(papers in {folder.parent}: {papers})"
        )
    return {path.stem: _read(path) for path in files}


def _read(path: Path) -> Ledger:
    values = read_yaml(path)
    rows = tuple(from_dict(Row, row, f"{path}: rows") for row in values.get("rows", ()))
    return from_dict(Ledger, {**values, "rows": rows}, str(path))


def needed(stages: dict[str, dict[str, Any] | None], wanted: Iterable[str]) -> list[str]:
    """The stages that `wanted` ones are made from, and they themselves, in the ledger's order."""
    found, waiting = {"prepare"}, [name for name in wanted if name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += references(stages.get(name))
    return [name for name in stages if name in found]


def references(value: Any) -> set[str]:
    """The stages whose folders a stage's config names."""
    if isinstance(value, dict):
        return set().union(*(references(inner) for inner in value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*(references(inner) for inner in value))
    return set(REFERENCE.findall(value)) if isinstance(value, str) else set()


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Groups of keys are merged, everything else is taken from above where it is there."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = laid_over(below[name], above[name])
    return merged


def is_of(row: Row, table: int | str | None) -> bool:
    """Whether a row stands in the wanted table: 4 is Table 4, `figure 5` is Figure 5."""
    if table is None:
        return True
    wanted = f"table {table}" if str(table).isdigit() else str(table)
    plain = [re.sub(r"[\s_-]+", "", text).lower() for text in (row.place, wanted)]
    return plain[0] == plain[1]


def as_text(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows under HEAD in columns."""
    table = [HEAD, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def as_markdown(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [HEAD, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]]) + "\n"
