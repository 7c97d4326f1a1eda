"""Kaneshiro et al. 2015 (PLoS ONE, doi 10.1371/journal.pone.0135697): ten people look at 72 pictures, 72 times each.

S1.mat .. S10.mat hold X_3D [124 electrodes, 32 samples, trials], categoryLabels (1 to 6) and exemplarLabels (1 to 72).
X_2D is never read: it is X_3D flattened in MATLAB's order of axes, and the reshape that comes to mind in Python swaps
electrodes with samples without an error.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data import mat, memory
from eeg_gan.data.card import Card
from eeg_gan.data.sources.published import read_rgb
from eeg_gan.data.trial import complete

# C electrode, T time sample, N trial of one subject

N_CHANS, N_TIMES, SFREQ = 124, 32, 62.5
CATEGORIES = ("human body", "human face", "animal body", "animal face", "fruit vegetable", "inanimate object")
EXEMPLARS = 12  # pictures per category
LABELS = ("categoryLabels", "exemplarLabels")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LIBRARIES = 2**25  # bytes: scipy's or h5py's own
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class KaneshiroConfig:
    """What is read beside the recordings."""

    images: str | None = None  # folder of the 72 pictures, named by exemplar number (1.png or stim_01.jpg); null: none


class Kaneshiro:
    """The trials of all subjects; one subject's file is in memory at a time, as float32 [N, C, T] (82 MB for 5,184)."""

    def __init__(self, path: str | None, config: KaneshiroConfig):
        if path is None:
            raise UserError("source.path is missing; name the folder that holds S1.mat to S10.mat")
        self.files = _subject_files(Path(path))
        self._pictures = _pictures(config.images)
        self.trials: list[dict[str, Any]] = []
        self._places: list[tuple[str, int]] = []  # subject, number in its file
        self._shape: dict[str, int] = {}
        for subject in self.files:
            self._list(subject)
        self.card = _card("trial" if self._pictures else "none")
        self.peak_bytes = max(map(_peak_bytes, self._shape.values()))
        self._held: tuple[str, np.ndarray] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_held": None}  # another process reads for itself

    def eeg(self, i: int) -> np.ndarray:
        """The trial as distributed: [124, 32] float32, filtered 1 to 25 Hz, in microvolt."""
        subject, number = self._places[i]
        if self._held is None or self._held[0] != subject:
            self._held = None  # frees the last one first
            self._held = subject, self._read(subject)
        return self._held[1][number]

    def image_key(self, i: int) -> str | None:
        """Which picture trial i saw, so that each is read once."""
        return self.trials[i]["stimulus"]

    def image(self, i: int) -> np.ndarray | None:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        if self._pictures is None:
            return None
        return read_rgb(self._pictures[int(self.trials[i]["stimulus"].removeprefix("exemplar-"))])

    def _list(self, subject: str) -> None:
        path = self.files[subject]
        n_trials = _check_shape(path)
        categories, exemplars = _labels(path, n_trials)
        self._shape[subject] = n_trials
        for number, (category, exemplar) in enumerate(zip(categories.tolist(), exemplars.tolist(), strict=True)):
            self._places.append((subject, number))
            self.trials.append(
                complete(
                    {
                        "key": f"{subject}_{number:05d}",
                        "label": category - 1,
                        "class_name": CATEGORIES[category - 1],
                        "subject": subject,
                        "tmin_s": 0.0,
                        "sfreq": SFREQ,
                        "stimulus": f"exemplar-{exemplar:02d}",
                        "concept": CATEGORIES[category - 1],
                    }
                )
            )

    def _read(self, subject: str) -> np.ndarray:
        """[N, C, T] float32; the peak is the file's double array beside this one."""
        path = self.files[subject]
        memory.require(_peak_bytes(self._shape[subject]), path)
        found = mat.read(path, ("X_3D",))
        eeg = np.ascontiguousarray(np.moveaxis(found["X_3D"], 2, 0), dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(eeg).all(axis=(1, 2)))
        if len(bad):
            raise UserError(f"{path}: trial {bad[0] + 1} of X_3D holds a value that is no number; download it again")
        return eeg


def _peak_bytes(n_trials: int) -> int:
    each = 8 + 4 + 1  # as double in the file, as float32 afterwards, whether it is a number
    return n_trials * N_CHANS * N_TIMES * each + LIBRARIES


def _subject_files(path: Path) -> dict[str, Path]:
    """Subject -> file, in order of their numbers."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; set source.path to the one that holds S1.mat to S10.mat")
    found = {match[1]: file for file in path.iterdir() if (match := re.fullmatch(r"S0*(\d+)\.mat", file.name))}
    if not found:
        raise UserError(f"{path} holds no S1.mat to S10.mat; download them, or name the folder that holds them")
    missing = [f"S{k}.mat" for k in range(1, 11) if str(k) not in found]
    if missing:
        log.info("%s lacks %s; the other %d subjects are read", path, ", ".join(missing), len(found))
    return {f"S{number}": found[number] for number in sorted(found, key=int)}


def _check_shape(path: Path) -> int:
    """The number of trials of a file that holds what it should."""
    there = mat.shapes(path)
    shape = there.get("X_3D")
    if shape is None:  # perhaps in a struct: only reading tells
        held = mat.read(path, ("X_3D",))
        shape = held["X_3D"].shape if "X_3D" in held else None
    if shape is None:
        also = " (X_2D is not read: its order of axes is ambiguous)" if "X_2D" in there else ""
        raise UserError(f"{path} has no variable X_3D{also}, only {', '.join(there) or 'nothing'}; download it again")
    if len(shape) != 3 or shape[:2] != (N_CHANS, N_TIMES) or not shape[2]:
        raise UserError(
            f"{path}: X_3D has shape {list(shape)}, but [{N_CHANS} electrodes, {N_TIMES} samples, trials] is "
            "published; take the original file"
        )
    return shape[2]


def _labels(path: Path, n_trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Category 1 to 6 and exemplar 1 to 72 of each trial; exemplars counted within a category (1 to 12) are made so."""
    found = mat.read(path, LABELS)
    for name in LABELS:
        if name not in found:
            raise UserError(f"{path} has no variable {name}; download the file again")
        try:
            found[name] = mat.integers(found[name])
        except (ValueError, TypeError):
            raise UserError(f"{path}: {name} holds something else than whole numbers; download it again") from None
        if len(found[name]) != n_trials:
            raise UserError(f"{path}: X_3D has {n_trials} trials, but {name} has {len(found[name])}; download it again")
    categories, exemplars = (found[name] for name in LABELS)
    _check_range(path, "categoryLabels", categories, len(CATEGORIES))
    _check_range(path, "exemplarLabels", exemplars, len(CATEGORIES) * EXEMPLARS)
    if len(set(categories.tolist())) > 1 and exemplars.max() <= EXEMPLARS and _shared(categories, exemplars):
        exemplars = (categories - 1) * EXEMPLARS + exemplars
    shared = _shared(categories, exemplars)
    if shared:
        raise UserError(f"{path}: exemplar {min(shared)} is in two categories; the labels do not belong to X_3D")
    return categories, exemplars


def _shared(categories: np.ndarray, exemplars: np.ndarray) -> set[int]:
    """Exemplars that more than one category holds."""
    pairs = set(zip(categories.tolist(), exemplars.tolist(), strict=True))
    seen, twice = set(), set()
    for _, exemplar in sorted(pairs):
        (twice if exemplar in seen else seen).add(exemplar)
    return twice


def _check_range(path: Path, name: str, values: np.ndarray, top: int) -> None:
    if values.min() < 1 or values.max() > top:
        raise UserError(
            f"{path}: {name} reaches from {values.min()} to {values.max()}, but 1 to {top} is published; "
            "take the original file"
        )


def _pictures(folder: str | None) -> dict[int, Path] | None:
    """Exemplar number -> picture; the number is the last one in the name."""
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"source.kaneshiro.images: {folder} is no folder; name the one with the 72 pictures, or null")
    found: dict[int, Path] = {}
    for path in sorted(Path(folder).iterdir()):
        numbers = re.findall(r"\d+", path.stem)
        if path.suffix.lower() not in PICTURES or not numbers:
            continue
        if int(numbers[-1]) in found:
            raise UserError(f"{path} and {found[int(numbers[-1])]} both name exemplar {numbers[-1]}; remove one")
        found[int(numbers[-1])] = path
    missing = [number for number in range(1, len(CATEGORIES) * EXEMPLARS + 1) if number not in found]
    if missing:
        raise UserError(
            f"source.kaneshiro.images: {folder} lacks the pictures of exemplars {', '.join(map(str, missing[:5]))}"
            f"{' ...' if len(missing) > 5 else ''}; name the files by exemplar number, 1 to 72"
        )
    return found


def _card(pairing: str) -> Card:
    return Card(
        name="kaneshiro",
        sfreq=SFREQ,
        ch_names=tuple(f"E{k + 1}" for k in range(N_CHANS)),
        design="event-randomised",
        class_names=CATEGORIES,
        licence="CC BY",
        source="Kaneshiro, Perreau Guimaraes, Kim, Norcia and Suppes 2015, PLoS ONE 10(8): e0135697",
        pairing=pairing,
        line_hz=60,
        description="Each of 72 pictures was seen 72 times: split by stimulus (the exemplar), never by trial. Filtered "
        "1 to 25 Hz and decimated to 62.5 Hz by the authors. When a trial was recorded is not in the files.",
    )
