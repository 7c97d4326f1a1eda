"""A person's own data: a folder with dataset.yaml (the card), trials.csv (a row per trial), .npy files and images.

trials.csv needs the columns label and subject. The EEG is either one eeg.npy [N, C, T] (row `index`, or the order of
the rows where there is no such column), or one .npy [C, T] per trial, named in the column `eeg`.
"""

import csv
import difflib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eeg_gan import config
from eeg_gan.config import UserError
from eeg_gan.data import card as cards
from eeg_gan.data.shards import LONGEST_KEY
from eeg_gan.data.trial import complete, is_safe_key, safe_keys

NEEDED = ("label", "subject")
TEXTS = ("session", "run", "block", "recording", "stimulus", "concept", "split")
COLUMNS = (*NEEDED, *TEXTS, "key", "eeg", "index", "image", "onset", "sfreq")
Row = dict[str, str]  # column -> text; "" where the cell is empty


class Folder:
    """The trials of a folder; names, shapes and types are checked when it is opened, values when they are read."""

    def __init__(self, path: str | Path | None):
        if path is None:
            raise UserError("source.path is missing; name the folder that holds dataset.yaml and trials.csv")
        self.path, self.table = Path(path), Path(path) / "trials.csv"
        if not self.path.is_dir():
            raise UserError(f"{path}: no such folder; set source.path to one that holds dataset.yaml and trials.csv")
        values = config.read_yaml(self.path / "dataset.yaml")
        self.rows = read_table(self.table)
        self._one_file = "eeg" not in self.rows[0][1]
        self.card = self._card(values)
        self._places = self._eeg_places()
        self._images = self._image_paths()
        self._safe = {} if self._one_file else safe_keys(_name(row) for _, row in self.rows)
        self.trials = [self._meta(i) for i in range(len(self.rows))]
        self._check_unique("key", [trial["key"] for trial in self.trials])
        self._shape = self._check_eeg()

    def eeg(self, i: int) -> np.ndarray:
        """The raw trial, [C, T] float32 in microvolt."""
        path, index = self._places[i]
        array = np.asarray(_open_array(path, self._where(i))[() if index is None else index], dtype=np.float32)
        if not np.isfinite(array).all():
            channel, sample = np.argwhere(~np.isfinite(array))[0]
            raise UserError(
                f"{self._where(i)}: {path.name} holds {array[channel, sample]} (channel {self.card.ch_names[channel]}, "
                f"sample {sample}); remove the trial from trials.csv or repair the recording"
            )
        return array

    def image(self, i: int) -> np.ndarray | None:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        if self._images is None:
            return None
        try:
            with Image.open(self._images[i]) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self._where(i)}: image {self._images[i]} cannot be read ({error}); save it again as PNG or JPEG"
            ) from None

    def image_key(self, i: int) -> str | None:
        """Equal for trials that show the same picture."""
        return None if self._images is None else str(self._images[i])

    def _where(self, i: int) -> str:
        return f"{self.table} row {self.rows[i][0]}"

    def _card(self, values: dict) -> cards.Card:
        """The card, with class names taken from the labels where they are not listed."""
        values = dict(values)
        if values.get("class_names") is None:
            for i, (_, row) in enumerate(self.rows):
                if _is_integer(row["label"]):
                    raise UserError(
                        f"{self._where(i)}: label {row['label']} has no name; list class_names in dataset.yaml "
                        "(the first is the name of label 0), or write names as labels"
                    )
            values["class_names"] = sorted({row["label"] for _, row in self.rows})
        values.setdefault("pairing", "trial" if "image" in self.rows[0][1] else "none")
        return cards.from_dict(values, str(self.path / "dataset.yaml"))

    def _eeg_places(self) -> list[tuple[Path, int | None]]:
        """File and position in it of every trial."""
        has_index = "index" in self.rows[0][1]
        if not self._one_file:
            if has_index:
                raise UserError(f"{self.table}: columns eeg and index exclude one another; keep one of them")
            places = [(self.path / row["eeg"], None) for _, row in self.rows]
            for i, (_, row) in enumerate(self.rows):
                if not row["eeg"]:
                    raise UserError(f"{self._where(i)}: column eeg is empty; name a .npy file or remove the row")
            self._check_unique("eeg", [str(place[0].resolve()) for place in places])
            return places
        one = self.path / "eeg.npy"
        if not one.is_file():
            raise UserError(
                f"{one}: no such file, and trials.csv has no column eeg; put all trials [N, C, T] into eeg.npy, "
                "or name one .npy [C, T] per trial in the column eeg"
            )
        n_trials = len(_open_array(one, str(one)))
        if not has_index:
            if n_trials != len(self.rows):
                raise UserError(
                    f"{one} holds {n_trials} trials, but {self.table} has {len(self.rows)} rows; "
                    "make them equal, or add a column index that says which trial a row means"
                )
            return [(one, i) for i in range(n_trials)]
        indices = [self._index(i, n_trials) for i in range(len(self.rows))]
        self._check_unique("index", indices)
        return [(one, index) for index in indices]

    def _index(self, i: int, n_trials: int) -> int:
        text = self.rows[i][1]["index"]
        if not text.isdecimal() or int(text) >= n_trials:
            raise UserError(
                f"{self._where(i)}: index {text!r} is not a trial of eeg.npy; it counts from 0 to {n_trials - 1}"
            )
        return int(text)

    def _image_paths(self) -> list[Path] | None:
        if "image" not in self.rows[0][1]:
            return None
        for i, (_, row) in enumerate(self.rows):
            if not row["image"]:
                raise UserError(
                    f"{self._where(i)}: column image is empty; name a picture in every row, or remove the column"
                )
            if not (self.path / row["image"]).is_file():
                raise UserError(
                    f"{self._where(i)}: image {self.path / row['image']} does not exist; "
                    "paths are relative to the folder of trials.csv"
                )
        return [self.path / row["image"] for _, row in self.rows]

    def _meta(self, i: int) -> dict[str, Any]:
        row = self.rows[i][1]
        label = self._label(i)
        if row.get("sfreq") and self._number(i, "sfreq") != self.card.sfreq:
            raise UserError(
                f"{self._where(i)}: sfreq is {row['sfreq']} Hz, but dataset.yaml says {self.card.sfreq:g} Hz; "
                "a data set has one rate: resample the trial, or make two data sets"
            )
        texts = {name: row.get(name) or None for name in TEXTS}
        texts["stimulus"] = texts["stimulus"] or row.get("image") or None  # the same picture is the same stimulus
        return complete(
            {
                **texts,
                "key": self._key(i),
                "label": label,
                "class_name": self.card.class_names[label],
                "subject": row["subject"],
                "onset_s": self._number(i, "onset") if row.get("onset") else None,
                "tmin_s": self.card.tmin_s,
                "sfreq": self.card.sfreq,
            }
        )

    def _key(self, i: int) -> str:
        row = self.rows[i][1]
        if "key" in row:
            if not is_safe_key(row["key"]):
                raise UserError(f"{self._where(i)}: key {row['key']!r} may hold only letters, digits, _ and -")
            if len(row["key"]) > LONGEST_KEY:
                raise UserError(
                    f"{self._where(i)}: key {row['key']} has {len(row['key'])} letters, but names of files in shards "
                    f"leave room for {LONGEST_KEY}; shorten it"
                )
            return row["key"]
        if self._one_file:
            return f"trial-{self._places[i][1]:06d}"
        return _short(self._safe[_name(row)])

    def _label(self, i: int) -> int:
        text, names = self.rows[i][1]["label"], self.card.class_names
        if text in names:
            return names.index(text)
        if _is_integer(text) and 0 <= int(text) < len(names):
            return int(text)
        close = difflib.get_close_matches(text, names, 1, 0.5)
        raise UserError(
            f"{self._where(i)}: label {text!r} has no name; class_names in dataset.yaml lists {len(names)} names, "
            f"labels 0 to {len(names) - 1}" + (f"; did you mean {close[0]}?" if close else "; add it there")
        )

    def _number(self, i: int, column: str) -> float:
        text = self.rows[i][1][column]
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise UserError(f"{self._where(i)}: {column} is {text!r}, which is not a number; write it like 12.5")
        return value

    def _check_unique(self, what: str, values: list) -> None:
        first: dict[Any, int] = {}
        for i, value in enumerate(values):
            if value in first:
                raise UserError(
                    f"{self._where(i)}: duplicate trial: {what} {value} is already in row {self.rows[first[value]][0]}"
                    "; remove one of the two rows" + (" or give them different keys" if what == "key" else "")
                )
            first[value] = i

    def _check_eeg(self) -> tuple[int, ...]:
        """The shape [C, T] that every trial has; reads headers only."""
        shapes = {}
        for i, (path, index) in enumerate(self._places):
            if path in shapes:
                continue
            shape = _open_array(path, self._where(i)).shape
            shapes[path] = shape if index is None else shape[1:]
            wanted = "[trials, channels, samples]" if index is not None else "[channels, samples]"
            n_chans, first = len(self.card.ch_names), next(iter(shapes.values()))
            if len(shapes[path]) != 2 or shapes[path][0] != n_chans or 0 in shapes[path]:
                raise UserError(
                    f"{self._where(i)}: {path.name} has shape {list(shape)}, but {wanted} with the {n_chans} channels "
                    "of dataset.yaml is needed; transpose it, or correct ch_names"
                )
            if shapes[path] != first:
                raise UserError(
                    f"{self._where(i)}: {path.name} has {shapes[path][1]} samples, but the first trial has {first[1]}; "
                    "cut all trials to one length"
                )
        return first


def read_table(path: Path) -> list[tuple[int, Row]]:
    """(row number as a spreadsheet shows it, cells) of every row that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            semicolons = file.readline().count(";") > 0  # as spreadsheets write where the comma marks decimals
            file.seek(0)
            lines = list(csv.reader(file, delimiter=";" if semicolons else ","))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write a row per trial with the columns {', '.join(NEEDED)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); save it as CSV in UTF-8") from None
    header = [name.strip() for name in lines[0]] if lines else []
    _check_header(header, path)
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path} row {number}: {len(cells)} cells, but the header has {len(header)}; quote cells with commas"
            )
        rows.append((number, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}))
        for name in NEEDED:
            if not rows[-1][1][name]:
                raise UserError(f"{path} row {number}: column {name} is empty; every trial needs a {name}")
    if not rows:
        raise UserError(f"{path} is empty: it lists no trial; write a row per trial below the header")
    return rows


def _check_header(header: list[str], path: Path) -> None:
    if not any(header):
        raise UserError(f"{path} is empty; its first row names columns, at least {', '.join(NEEDED)}")
    for name in header:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"the columns are {', '.join(COLUMNS)}"
            raise UserError(f"{path} row 1: unknown column {name!r}; {hint}")
        if header.count(name) > 1:
            raise UserError(f"{path} row 1: column {name} is there more than once; keep one")
    for name in NEEDED:
        if name not in header:
            raise UserError(f"{path} row 1: column {name} is missing; add it, with a value in every row")


def _open_array(path: Path, where: str) -> np.ndarray:
    """The memory-mapped array of a .npy file; object arrays are refused, for they are pickles."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{where}: {path} does not exist; paths are relative to the folder of trials.csv") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{where}: {path} is not a plain .npy array ({error}); save it with numpy.save as float32"
        ) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UserError(
            f"{where}: {path} holds {getattr(array, 'dtype', 'an archive')}, but EEG is float (microvolt); "
            "save it with numpy.save as float32"
        )
    return array


def _name(row: dict[str, str]) -> str:
    return str(Path(row["eeg"]).with_suffix(""))


def _short(key: str) -> str:
    """A key of a permitted length: the start of a long one, and a hash of all of it."""
    if len(key) <= LONGEST_KEY:
        return key
    return f"{key[: LONGEST_KEY - 17]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _is_integer(text: str) -> bool:
    return text.lstrip("-").isdecimal()
