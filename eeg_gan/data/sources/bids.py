"""What lies beside a recording in an EEG-BIDS tree, or beside any recording that borrows its names."""

import csv
import json
import re
from pathlib import Path
from typing import Any

from eeg_gan.config import UserError

ABSENT = ("", "n/a", "N/A", "nan")
Row = dict[str, str]


def entities(path: Path) -> dict[str, str]:
    """sub-01_ses-2_task-rsvp_run-3_eeg.edf -> {sub: 01, ses: 2, task: rsvp, run: 3}."""
    return dict(re.findall(r"(?:^|_)([A-Za-z]+)-([A-Za-z0-9]+)", path.name.split(".")[0]))


def sidecar(path: Path, root: Path, ending: str) -> Path | None:
    """The file that tells about `path`: of the same name, or the nearest upwards whose entities all fit."""
    stem = re.sub(r"_(eeg|raw)$", "", path.stem)
    own, folder = entities(path).items(), path.parent
    if (folder / f"{stem}_{ending}").is_file():
        return folder / f"{stem}_{ending}"
    while own:
        fitting = [file for file in sorted(folder.glob(f"*{ending}")) if entities(file).items() <= own]
        fitting = [file for file in fitting if file.name == ending or file.name.endswith(f"_{ending}")]
        if fitting:
            return max(fitting, key=lambda file: len(entities(file)))
        if folder == root or root not in folder.parents:
            break
        folder = folder.parent
    return None


def read_table(path: Path) -> list[tuple[int, Row]]:
    """(line number, cells by column) of a .tsv file; what is n/a is left out of the cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}); it is tab-separated text in UTF-8") from None
    if not lines:
        raise UserError(f"{path} is empty; its first line names the columns")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(lines[0]):
            raise UserError(f"{path} line {number}: {len(cells)} cells, but the header has {len(lines[0])}; use tabs")
        named = zip((name.strip() for name in lines[0]), (cell.strip() for cell in cells), strict=True)
        rows.append((number, {name: cell for name, cell in named if cell not in ABSENT}))
    return rows


def read_json(path: Path | None) -> dict[str, Any]:
    """The mapping in a .json file; empty where there is none."""
    if path is None or not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON ({error}); mend it or remove it") from None
    return held if isinstance(held, dict) else {}
