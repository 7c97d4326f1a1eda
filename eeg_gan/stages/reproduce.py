"""The ledger of a paper: each published figure beside what this program measures, as published and leak-free.

`eeg-gan reproduce wacv2024` runs what the data that are here allow, on any machine that `pipeline` runs on, and goes on
where it was stopped. Where data are not here it says what to download and where to put it.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eeg_gan.config import UserError
from eeg_gan.distributed import is_main
from eeg_gan.stages import pipeline
from eeg_gan.stages.reproducing import (
    Ledger,
    Row,
    as_markdown,
    as_text,
    is_of,
    laid_over,
    needed,
    read_ledgers,
    references,
)
from eeg_gan.training.checkpoint import write_json
from eeg_gan.training.runtime import make_folder

ABSENT = "data not here"
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    paper: str = "wacv2024"  # folder of ledgers
    run_dir: str = "runs/reproduce"  # PAPER/LEDGER/published and leak_free go below it, and ledger.json, ledger.md
    table: int | str | None = None  # only this one: 1 is Table 1, `figure 5` is Figure 5; null: all
    data: str = "data"  # where the data sets lie; {data} in the ledgers
    ledgers: str = "configs/reproduce"  # where the papers' folders lie
    stages: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # keys laid over stages by name or verb, for a trial


@dataclass
class Made:
    """What one division of one ledger came to: figures by (stage, metric), and why others are missing."""

    metrics: dict[str, dict[str, dict]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(config: Config) -> None:
    ledgers = read_ledgers(Path(config.ledgers) / config.paper)
    chosen = {name: [row for row in own.rows if is_of(row, config.table)] for name, own in ledgers.items()}
    if not any(chosen.values()):
        places = sorted({row.place for own in ledgers.values() for row in own.rows})
        raise UserError(f"table={config.table}: {config.paper} has no such place; it has {', '.join(places)}")
    folder, rows, notes = Path(config.run_dir) / config.paper, [], []
    make_folder(folder)
    for name, wanted in chosen.items():
        if wanted:
            found, told = one_ledger(config, ledgers[name], wanted, folder / name)
            rows += found
            notes += told
    if is_main():
        write_json(folder / "ledger.json", [{**row, "cells": list(row["cells"])} for row in rows])
        cells = [row["cells"] for row in rows]
        (folder / "ledger.md").write_text(as_markdown(cells) + "".join(f"\n{note}\n" for note in notes))
        for line in [*as_text(cells), *notes]:
            log.info("%s", line)
        log.info("%s", folder / "ledger.md")


def one_ledger(config: Config, ledger: Ledger, rows: list[Row], folder: Path) -> tuple[list[dict], list[str]]:
    """The rows of one data set with what was measured, and what is to be said below the table."""
    absent = [
        path for path in (need.replace("{data}", config.data) for need in ledger.needs) if not Path(path).exists()
    ]
    runs = [row for row in rows if row.stage is not None]
    notes, published, leak_free = [], None, None
    if absent and runs:
        notes.append(f"{ledger.data}: {ABSENT} ({', '.join(absent)}). {ledger.get.strip()}")
    elif runs:
        published = measured(config, ledger, runs, ledger.published, folder / "published")
        if isinstance(ledger.leak_free, dict):
            leak_free = measured(config, ledger, runs, ledger.leak_free, folder / "leak_free")
        for column, made in (("published", published), ("leak_free", leak_free)):
            notes += [f"{ledger.data}, {column}, {stage}: {why}" for stage, why in made.failed.items()] if made else []
    if isinstance(ledger.leak_free, str):
        notes.append(f"{ledger.data}: no leak-free split: {ledger.leak_free.strip()}")
    found = []
    for row in rows:
        values = [_figure(row, made) for made in (published, leak_free)]
        cells = [row.place, row.figure, f"{row.paper:g}" if row.expects == "equal" else f"above {row.paper:g}"]
        cells += [_cell(row, values[0], published, bool(absent), judged=True)]
        if isinstance(ledger.leak_free, str):
            cells.append("none" if row.stage else "-")
        else:
            cells.append(_cell(row, values[1], leak_free, bool(absent), judged=False))
        record = {"place": row.place, "figure": row.figure, "paper": row.paper, "tolerance": row.tolerance}
        record |= {"source": row.source, "published": values[0], "leak_free": values[1], "cells": tuple(cells)}
        agrees = None if values[0] is None else row.agrees(values[0]["value"])
        found.append({**record, "data": ledger.data, "agrees": agrees})
    return found, notes


def measured(config: Config, ledger: Ledger, rows: list[Row], division: dict, folder: Path) -> Made:
    """Runs the stages that the rows need, each once; what cannot run leaves a reason and the others go on."""
    wanted = [name for row in rows for name in (row.stage, row.minus) if name]
    stages = {name: _stage(config, name, ledger, division) for name in needed(ledger.stages, wanted)}
    made = Made()
    for step in pipeline.resolve(str(folder), stages):
        broken = [name for name in ("prepare", *references(stages[step.name])) if name in made.failed]
        if broken:
            made.failed[step.name] = f"not run, as {broken[0]} failed"
            continue
        try:
            step.module.run(step.config)
        except UserError as error:
            made.failed[step.name] = str(error)
    for name in wanted:
        path = folder / name / "metrics.json"
        if name not in made.failed and path.exists():
            made.metrics[name] = json.loads(path.read_text())
    return made


def _stage(config: Config, name: str, ledger: Ledger, division: dict) -> dict[str, Any]:
    """The config of one stage under a division, with the user's keys over it."""
    own = laid_over(ledger.stages[name] or {}, division.get(name) or {})
    for key in (own.get("verb", name), name):
        own = laid_over(own, config.stages.get(key) or {})
    return _with_data(own, config.data)


def _with_data(value: Any, data: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_data(inner, data) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_data(inner, data) for inner in value]
    return value.replace("{data}", data) if isinstance(value, str) else value


def _figure(row: Row, made: Made | None) -> dict | None:
    """The measured figure with its interval, by how many per cent it lies above another's, or the difference of two."""
    if made is None or row.stage is None:
        return None
    own = made.metrics.get(row.stage, {}).get(row.metric)
    if own is not None and row.percent_above is not None:
        bounds = {key: own.get(key) for key in ("value", "low", "high")}
        own = own | {key: 100 * (x / row.percent_above - 1) for key, x in bounds.items() if x is not None}
    if own is None or own["value"] is None or row.minus is None:
        return own if own and own["value"] is not None else None
    other = made.metrics.get(row.minus, {}).get(row.metric)
    return None if other is None or other["value"] is None else {"value": own["value"] - other["value"], "low": None}


def _cell(row: Row, value: dict | None, made: Made | None, absent: bool, judged: bool) -> str:
    if row.stage is None:
        return "-"  # cited from others
    if value is None:
        return ABSENT if absent else "not measured"
    shown = f"{value['value']:.3f}" + (
        f" [{value['low']:.3f}, {value['high']:.3f}]" if value.get("low") is not None else ""
    )
    return shown + (("" if row.agrees(value["value"]) else " (differs)") if judged else "")
