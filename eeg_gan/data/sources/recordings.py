"""Continuous recordings that MNE reads (EDF, BDF, FIF, SET, BrainVision), loose or in an EEG-BIDS tree.

A trial is a stretch around an event; only that stretch is read, when it is asked for. Events come from annotations,
from a stimulus channel or from events.tsv, whose stim_file names the picture that was seen.
"""

import hashlib
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.card import Card, Design
from eeg_gan.data.shards import LONGEST_KEY
from eeg_gan.data.sources import bids
from eeg_gan.data.sources.continuous import Continuous, Event, find_files
from eeg_gan.data.sources.published import read_rgb
from eeg_gan.data.trial import complete, safe_keys

# C electrode, T time sample

UV_PER_V = 1e6  # MNE holds volts
PLAUSIBLE_UV = (0.01, 10_000)  # deviation over a trial of the median channel
NAMED = 5  # files in messages
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class RecordingsConfig:
    """Which events become trials, and what is known of the experiment."""

    design: Design | None = None  # how the stimuli were ordered; must be said, for it decides which splits hold
    events: Literal["annotations", "stim", "tsv"] = "annotations"  # where events stand; tsv: the _events.tsv beside
    stim_channel: str | None = None  # channel of the trigger codes, where events=stim; null: the one MNE finds
    label: str = "trial_type"  # column of events.tsv that tells the class
    classes: dict[str, str] | None = None  # event -> class; other events are passed over; null: an event is a class
    tmin_s: float = -0.2  # start of a trial relative to its event
    tmax_s: float = 0.8  # end of a trial relative to its event
    files: str = "**/*"  # which files below source.path are read, as a glob pattern
    names: str | None = None  # regular expression over a file's path, groups subject, session, run; null: as in BIDS
    images: str | None = None  # folder that stim_file counts from; null: stimuli/ of a BIDS tree, where there is one
    bad_channels: Literal["drop", "keep", "refuse"] = "drop"  # drop: bad in one file, left out of all
    drop_channels: tuple[str, ...] = ()  # further channels that are left out, by name
    licence: str | None = None  # null: what dataset_description.json says, or unknown
    line_hz: float | None = None  # mains frequency, 50 or 60; null: what the _eeg.json says, or unknown

    def __post_init__(self):
        if not self.tmin_s < self.tmax_s:
            raise ValueError(f"tmin_s {self.tmin_s} is not before tmax_s {self.tmax_s}; a trial lies between them")
        if self.images is not None and self.events != "tsv":
            raise ValueError(f"images are named by stim_file in events.tsv, not by {self.events}; set events=tsv")
        if self.names is not None:
            _check_names(self.names)


class Recordings:
    """The trials of all files of a folder; opening reads headers and events, `eeg` one stretch of one file."""

    def __init__(self, path: str | None, config: RecordingsConfig):
        if path is None:
            raise UserError("source.path is missing; name the folder that holds the recordings")
        if config.design is None:
            raise UserError(
                "source.recordings.design is missing; say how the stimuli were ordered (block, event-randomised, rsvp, "
                "windowed, imagined-windowed), for it decides which splits can be believed"
            )
        self.root = Path(path) if Path(path).is_dir() else Path(path).parent
        self.config = config
        files = find_files(Path(path), config.files)
        self._continuous = Continuous(files, self.root, config)
        self.sfreq = self._continuous.sfreq
        self._start = round(config.tmin_s * self.sfreq)
        self._n_times = round((config.tmax_s - config.tmin_s) * self.sfreq)
        if self._n_times < 1:
            raise UserError(f"source.recordings.tmin_s to tmax_s holds no sample at {self.sfreq:g} Hz; widen it")
        self._dropped: Counter[str] = Counter()  # why -> how many
        self._outside: Counter[str] = Counter()  # file -> how many
        kept = [(file, number, event) for file in files for number, event in self._events(file)]
        self._images = self._image_folder([event for _, _, event in kept])
        self.class_names = self._class_names(kept)
        self._places = [(file, event.sample + self._start) for file, _, event in kept]
        stems = Counter(file.stem for file in files)
        names = {file: file.stem if stems[file.stem] == 1 else self._recording(file) for file in files}
        safe = safe_keys(names.values())
        keys = [_key(names[file], safe[names[file]], number) for file, number, _ in kept]
        self.trials = [self._meta(file, event, key) for (file, _, event), key in zip(kept, keys, strict=True)]
        self._events_of = [event for _, _, event in kept]
        self.card = self._card()
        self._report()

    def eeg(self, i: int) -> np.ndarray:
        """The trial, [C, T] float32 in microvolt."""
        file, start = self._places[i]
        eeg = (self._continuous.read(file, start, start + self._n_times) * UV_PER_V).astype(np.float32)
        if not np.isfinite(eeg).all():
            raise UserError(f"{file}: the trial at {self.trials[i]['onset_s']:g} s holds a value that is no number")
        return eeg

    def image_key(self, i: int) -> str | None:
        """Which picture trial i saw, so that each is read once."""
        return self.trials[i]["stimulus"]

    def image(self, i: int) -> np.ndarray | None:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        return None if self._images is None else read_rgb(self._images / self.trials[i]["stimulus"])

    def _events(self, file: Path) -> list[tuple[int, Event]]:
        """(number in the file, event) of the events that become trials."""
        length, bad_spans = self._continuous.length(file), self._continuous.bad_spans(file)
        kept = []
        for number, event in enumerate(self._continuous.events(file)):
            start = event.sample + self._start
            stop = start + self._n_times
            if event.name is None:
                self._dropped[f"without a {self.config.label}"] += 1
            elif self.config.classes is not None and event.name not in self.config.classes:
                self._dropped["that classes does not name"] += 1
            elif start < 0 or stop > length:
                self._dropped["that reach outside of their recording"] += 1
                self._outside[file.name] += 1
            elif any(start < end and stop > begin for begin, end in bad_spans):
                self._dropped["in a stretch that is marked bad"] += 1
            else:
                kept.append((number, event))
        return kept

    def _class_names(self, kept: list[tuple[Path, int, Event]]) -> tuple[str, ...]:
        there = sorted({event.name for _, _, event in kept})
        if self.config.classes is None:
            names = there
        else:
            names = list(dict.fromkeys(self.config.classes.values()))
            unseen = [name for name in self.config.classes if name not in there]
            if unseen:
                raise UserError(
                    f"source.recordings.classes: no trial has the event {unseen[0]!r}; the events are "
                    f"{', '.join(sorted(self._continuous.names_seen)) or 'none'}"
                )
        if not kept:
            seen = ", ".join(sorted(self._continuous.names_seen)) or "none"
            raise UserError(
                f"{self.root}: no event became a trial (events: {seen}; {self._left_out() or 'nothing was left out'}); "
                "set source.recordings.events, classes, tmin_s and tmax_s"
            )
        return tuple(names)

    def _image_folder(self, events: list[Event]) -> Path | None:
        given = self.config.images
        folder = Path(given) if given else self.root / "stimuli"
        if not any(event.stim_file for event in events):
            if given:
                raise UserError(f"source.recordings.images is {given}, but no events.tsv has stim_file; set it to null")
            return None
        if not folder.is_dir():
            if given:
                raise UserError(f"source.recordings.images: {given} is no folder; stim_file counts from it")
            log.warning("stim_file names pictures, but %s is not there: trials have no images", folder)
            return None
        for event in events:
            if not event.stim_file:
                raise UserError(f"{event.where}: stim_file is n/a; name a picture, or leave the event out by classes")
            if not (folder / event.stim_file).is_file():
                raise UserError(
                    f"{event.where}: stim_file {folder / event.stim_file} does not exist; set source.recordings.images "
                    "to the folder that stim_file counts from"
                )
        return folder

    def _recording(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def _meta(self, file: Path, event: Event, key: str) -> dict[str, Any]:
        who = self._who(file)
        name = (self.config.classes or {}).get(event.name, event.name)
        return complete(
            {
                **who,
                "key": key,
                "label": self.class_names.index(name),
                "class_name": name,
                "block": event.block or who["run"],
                "recording": self._recording(file),
                "onset_s": round(event.sample / self.sfreq, 6),
                "tmin_s": self._start / self.sfreq,
                "sfreq": self.sfreq,
                "stimulus": event.stim_file,
                "concept": event.concept,
            }
        )

    def _who(self, file: Path) -> dict[str, str | None]:
        """Subject, session and run, from the names that BIDS prescribes or by the given expression."""
        recording = self._recording(file)
        if self.config.names is None:
            found = bids.entities(file)
            runs = [found[entity] for entity in ("task", "acq", "run") if entity in found]
            who = {"subject": found.get("sub", file.stem), "session": found.get("ses")}
            return who | {"run": "-".join(runs) or file.stem}
        match = re.search(self.config.names, recording)
        if match is None:
            raise UserError(f"source.recordings.names: {self.config.names} does not fit {recording}; correct it")
        found = match.groupdict()
        return {"subject": found["subject"], "session": found.get("session"), "run": found.get("run") or file.stem}

    def _card(self) -> Card:
        about = bids.read_json(self.root / "dataset_description.json")
        left_out = self._left_out()
        return Card(
            name=str(about.get("Name") or self.root.resolve().name),
            sfreq=self.sfreq,
            ch_names=self._continuous.ch_names,
            design=self.config.design,
            class_names=self.class_names,
            licence=self.config.licence or str(about.get("License") or "unknown"),
            source=str(about.get("DatasetDOI") or ""),
            pairing="none" if self._images is None else "trial",
            line_hz=self.config.line_hz or self._continuous.line_hz,
            tmin_s=self._start / self.sfreq,
            description=f"Events from {self.config.events}." + (f" Left out: {left_out}." if left_out else ""),
        )

    def _left_out(self) -> str:
        return ", ".join(f"{n} events {why}" for why, n in sorted(self._dropped.items()))

    def _report(self) -> None:
        if self._dropped:
            log.info("left out: %s", self._left_out())
        for file, n in list(self._outside.items())[:NAMED]:
            log.warning("%s: trials that reach outside of the recording: %d", file, n)
        if self.config.names is None and not all("sub" in bids.entities(file) for file, _ in self._places):
            log.warning("files are not named sub-...: each counts as a subject; set source.recordings.names")
        deviation = float(np.median(self.eeg(0).std(axis=1)))
        if deviation and not PLAUSIBLE_UV[0] < deviation < PLAUSIBLE_UV[1]:
            log.warning("%s: a trial deviates by %.3g uV: is its unit right?", self._places[0][0], deviation)


def _key(name: str, safe: str, number: int) -> str:
    key = f"{safe}_{number:05d}"
    return key if len(key) <= LONGEST_KEY else f"{hashlib.sha256(name.encode()).hexdigest()[:32]}_{number:05d}"


def _check_names(expression: str) -> None:
    try:
        groups = re.compile(expression).groupindex
    except re.error as error:
        raise ValueError(f"names is no regular expression: {error}") from None
    if "subject" not in groups:
        raise ValueError(f"names needs a group (?P<subject>...), and may have session and run; got {expression}")
