"""Files of continuous EEG through MNE: which channels are EEG, where the events are, one stretch at a time."""

import logging
import re
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.sources import bids

if TYPE_CHECKING:
    from eeg_gan.data.sources.recordings import RecordingsConfig

# C electrode, T time sample

ENDINGS = (".edf", ".bdf", ".fif", ".set", ".vhdr")
LATER_PART = re.compile(r"(.*)(_split-\d+(_.*)|-\d+)\.fif")  # of a large FIF; MNE reads it with the first part
SKIPPED = {"derivatives", "sourcedata", "code", "stimuli"}
OTHERS = re.compile(r"(?i)^(EEG )?(V?EOG|HEOG|ECG|EKG|EMG|GSR|EDA|RESP|STI|TRIG|STATUS|MARKER|PHOTO|ACC|GYRO|AUX)")
BAD = re.compile(r"(?i)^(bad|edge|boundary|new segment)([ _/]|$)")  # annotations over which no trial may reach
OPEN = 2  # files: MNE holds all of a .set whose data are inside
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Event:
    """Something that happened in a recording."""

    sample: int  # from the first sample of the file
    name: str | None  # what a class is made of; None: not said
    where: str  # file and line, for messages
    stim_file: str | None = None
    block: str | None = None
    concept: str | None = None


class Continuous:
    """Files of one rate and one set of EEG channels."""

    def __init__(self, files: list[Path], root: Path, config: "RecordingsConfig"):
        self.files, self.root, self.config = files, root, config
        self._raws: OrderedDict[Path, Any] = OrderedDict()
        self.names_seen: set[str] = set()  # of events
        self.sfreq = float(self._raw(files[0]).info["sfreq"])
        self._others: dict[str, str] = {}  # channels that are no EEG -> their type
        self._bads: dict[str, Path] = {}  # channel -> first file where it is bad
        self._there: set[str] = set()  # channels of any file
        first = self._eeg_channels(files[0])
        for file in files[1:]:
            self._check_same(file, first)
        self.ch_names = self._choose(first)
        found = bids.read_json(bids.sidecar(files[0], root, "eeg.json")).get("PowerLineFrequency")
        self.line_hz = float(found) if found in (50, 60) else None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_raws": OrderedDict()}  # another process opens for itself

    def read(self, file: Path, start: int, stop: int) -> np.ndarray:
        """[C, T] in volt, read from the file."""
        raw = self._raw(file)
        try:
            data = raw.get_data([raw.ch_names.index(name) for name in self.ch_names], start, stop, verbose="error")
        except Exception as error:  # each of MNE's readers raises what it likes
            raise _unreadable(file, error) from None
        if data.shape[1] != stop - start:
            raise UserError(f"{file} ends before sample {stop}, though its header promises it; copy the file again")
        return data

    def length(self, file: Path) -> int:
        return int(self._raw(file).n_times)

    def events(self, file: Path) -> list[Event]:
        """In order of time."""
        read = {"annotations": self._annotated, "stim": self._triggered, "tsv": self._listed}[self.config.events]
        found = sorted(read(file), key=lambda event: event.sample)
        self.names_seen |= {event.name for event in found if event.name}
        return found

    def bad_spans(self, file: Path) -> list[tuple[int, int]]:
        """[begin, end) in samples of what is marked bad, or where a recording was interrupted."""
        raw = self._raw(file)
        return [
            (sample, sample + max(1, round(duration * self.sfreq)))
            for sample, name, duration in _annotations(raw)
            if BAD.match(name)
        ]

    def _annotated(self, file: Path) -> list[Event]:
        found = _annotations(self._raw(file))
        return [Event(sample, name, str(file)) for sample, name, _ in found if not BAD.match(name)]

    def _triggered(self, file: Path) -> list[Event]:
        raw = self._raw(file)
        try:
            found = _mne().find_events(raw, self.config.stim_channel, shortest_event=1, verbose="error")
        except Exception as error:
            raise UserError(
                f"{file}: no trigger codes found ({' '.join(str(error).split())}); set "
                f"source.recordings.stim_channel to one of {', '.join(raw.ch_names[-5:])} ..., or take events from "
                "annotations or tsv"
            ) from None
        return [Event(int(sample) - raw.first_samp, str(code), str(file)) for sample, _, code in found]

    def _listed(self, file: Path) -> list[Event]:
        path = bids.sidecar(file, self.root, "events.tsv")
        if path is None:
            raise UserError(
                f"{file} has no {re.sub('_(eeg|raw)$', '', file.stem)}_events.tsv beside it; write one, or take events "
                "from annotations or stim"
            )
        rows = bids.read_table(path)
        if rows and not any(self.config.label in row for _, row in rows):
            columns = ", ".join(dict.fromkeys(name for _, row in rows for name in row))
            raise UserError(
                f"{path} has no column {self.config.label} with values, only {columns}; set source.recordings.label"
            )
        return [self._row(f"{path} line {number}", row) for number, row in rows]

    def _row(self, where: str, row: bids.Row) -> Event:
        try:
            onset = float(row["onset"])
        except (KeyError, ValueError):
            raise UserError(f"{where}: onset is {row.get('onset', 'missing')}; it is in seconds, like 12.5") from None
        own = {name: row.get(name) for name in ("stim_file", "block", "concept")}
        return Event(round(onset * self.sfreq), row.get(self.config.label), where, **own)

    def _raw(self, file: Path) -> Any:
        """The open file; its samples stay on the disk, save for a .set that has them inside."""
        if file in self._raws:
            self._raws.move_to_end(file)
            return self._raws[file]
        while len(self._raws) >= OPEN:
            self._raws.popitem(last=False)
        self._raws[file] = _open(file)
        return self._raws[file]

    def _eeg_channels(self, file: Path) -> list[str]:
        """Names of the EEG channels that are wanted; notes the others and the bad ones."""
        raw = self._raw(file)
        table = bids.sidecar(file, self.root, "channels.tsv")
        listed = {row.get("name"): row for _, row in bids.read_table(table)} if table else {}
        types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
        for name in types:
            said = listed.get(name, {}).get("type")
            if said:
                types[name] = said.lower()
            elif types[name] == "eeg" and OTHERS.match(name):
                types[name] = "no EEG, by its name"
            if listed.get(name, {}).get("status") == "bad" or name in raw.info["bads"]:
                self._bads.setdefault(name, file)
        self._others |= {name: kind for name, kind in types.items() if kind != "eeg"}
        self._there |= types.keys()
        names = [name for name, kind in types.items() if kind == "eeg" and name not in self.config.drop_channels]
        if not names:
            raise UserError(f"{file} has no EEG channel, only {', '.join(types)}; correct types in channels.tsv")
        return names

    def _check_same(self, file: Path, first: list[str]) -> None:
        rate = float(self._raw(file).info["sfreq"])
        if abs(rate - self.sfreq) > 1e-6:
            raise UserError(
                f"{file} has {rate:g} Hz, but {self.files[0]} has {self.sfreq:g} Hz; a data set has one rate: resample "
                "one of them, or choose files by source.recordings.files"
            )
        own = self._eeg_channels(file)
        differing = sorted(set(own) ^ set(first))
        if differing:
            raise UserError(
                f"{file} and {self.files[0]} differ in EEG channels ({', '.join(differing[:8])}); leave these out by "
                "source.recordings.drop_channels, or choose files by source.recordings.files"
            )

    def _choose(self, names: list[str]) -> tuple[str, ...]:
        if self._others:
            log.info("left out, no EEG: %s", ", ".join(f"{name} ({kind})" for name, kind in self._others.items()))
        bads = [name for name in names if name in self._bads]
        if bads and self.config.bad_channels == "refuse":
            raise UserError(
                f"{self._bads[bads[0]]}: channel {bads[0]} is marked bad; set source.recordings.bad_channels to drop "
                "(out of all files) or keep"
            )
        if bads:
            places = ", ".join(f"{name} in {self._bads[name]}" for name in bads)
            log.warning("channels marked bad are %s: %s", self._verb(), places)
        unknown = sorted(set(self.config.drop_channels) - self._there)
        if unknown:
            raise UserError(
                f"source.recordings.drop_channels: no channel is named {unknown[0]}; there are {', '.join(names)}"
            )
        kept = tuple(name for name in names if name not in bads or self.config.bad_channels == "keep")
        if not kept:
            raise UserError(f"{self.files[0]}: no EEG channel is left; set source.recordings.bad_channels=keep")
        return kept

    def _verb(self) -> str:
        return "kept" if self.config.bad_channels == "keep" else "left out of all files"


def find_files(path: Path, pattern: str) -> list[Path]:
    """The recordings below a folder, in order of their names; a file is itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; set source.path to the one that holds the recordings")
    found = []
    for file in sorted(path.glob(pattern)):
        inner = file.relative_to(path).parts
        hidden = any(part.startswith(".") for part in inner) or SKIPPED & set(inner[:-1])
        if file.suffix.lower() in ENDINGS and file.is_file() and not hidden and not _is_later_part(file):
            found.append(file)
    if not found:
        raise UserError(f"{path} holds no recording ({', '.join(ENDINGS)}) that fits source.recordings.files {pattern}")
    return found


def _is_later_part(file: Path) -> bool:
    """x_raw-1.fif beside x_raw.fif, or x_split-02_eeg.fif beside x_split-01_eeg.fif."""
    match = LATER_PART.fullmatch(file.name)
    if match is None:
        return False
    first = f"{match[1]}_split-01{match[3]}.fif" if match[3] else f"{match[1]}.fif"
    return first != file.name and (file.parent / first).exists()


def _mne() -> Any:
    try:
        import mne
    except ImportError:
        raise UserError("recordings are read through MNE, which is not installed; pip install 'eeg-gan[mne]'") from None
    return mne


def _open(file: Path) -> Any:
    mne = _mne()
    readers = {
        ".edf": lambda: mne.io.read_raw_edf(file, infer_types=True, verbose="warning"),
        ".bdf": lambda: mne.io.read_raw_bdf(file, infer_types=True, verbose="warning"),
        ".fif": lambda: mne.io.read_raw_fif(file, allow_maxshield="yes", verbose="warning"),
        ".set": lambda: mne.io.read_raw_eeglab(file, verbose="warning"),
        ".vhdr": lambda: mne.io.read_raw_brainvision(file, verbose="warning"),
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            raw = readers[file.suffix.lower()]()
        except Exception as error:  # each of MNE's readers raises what it likes
            raise _unreadable(file, error) from None
    for text in {str(warning.message) for warning in said}:
        if "outside" in text or "truncated" in text.lower():
            log.warning("%s: %s", file, " ".join(text.split()))
    return raw


def _unreadable(file: Path, error: Exception) -> UserError:
    said = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{file} cannot be read by MNE ({said}); it is damaged, or no continuous recording")


def _annotations(raw: Any) -> list[tuple[int, str, float]]:
    """(sample from the first of the file, text, duration in s)."""
    texts = [str(text) for text in raw.annotations.description]
    if not texts:
        return []
    codes = {text: code for code, text in enumerate(sorted(set(texts)), start=1)}
    found, _ = _mne().events_from_annotations(raw, codes, regexp=None, verbose="error")
    names = {code: text for text, code in codes.items()}
    rows = zip(found, raw.annotations.duration, strict=True)
    return [(int(sample) - raw.first_samp, names[int(code)], float(duration)) for (sample, _, code), duration in rows]
