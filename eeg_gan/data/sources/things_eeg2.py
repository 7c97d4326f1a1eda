"""THINGS-EEG2 (Gifford et al. 2022, doi 10.1016/j.neuroimage.2022.119754): ten people, 16,540 + 200 pictures in rapid
succession (RSVP).

sub-01/preprocessed_eeg_training.npy and .._test.npy are pickled dicts: preprocessed_eeg_data [image, repetition, C, T]
(16540 x 4 and 200 x 80), ch_names, times. The authors' own have 17 channels at 100 Hz; those that the code of NICE
writes have 63 at 250 Hz and are plain pickles in spite of their name. image_metadata.npy names picture and concept.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data import mapped_pickle, memory
from eeg_gan.data.card import Card
from eeg_gan.data.sources.published import read_rgb
from eeg_gan.data.trial import complete
from eeg_gan.distributed import seed_at

# M image, R repetition, C electrode, T time sample

PARTS = {"train": "training", "test": "test"}  # split -> as file names have it
WHITENING = {
    "official": "Whitened (MVNN) with a covariance that was fitted on the test trials too, each session by itself: a "
    "statistic of the test split is in the data.",
    "nice": "Whitened (MVNN) with the covariance of the training trials only.",
}
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class ThingsEEG2Config:
    """Which trials are made of the files."""

    variant: Literal["official", "nice"] = "official"  # whose preprocessing wrote them; the card tells what it implies
    average: bool = True  # one trial per image, the mean of its repetitions; false: every repetition is a trial
    subjects: tuple[str, ...] = ()  # names of folders, for example sub-01; none: all that are there
    metadata: str | None = None  # image_metadata.npy; null: the one in the folder or in its image_set
    images: str | None = None  # folder that holds training_images and test_images; null: no images
    val_concepts: int = 74  # training concepts held out for validation, drawn by seed (10 images each)
    val_names: tuple[str, ...] = ()  # the concepts held out, by name, in place of a draw
    seed: int = 0  # of the draw

    def __post_init__(self):
        if self.val_concepts < 0:
            raise ValueError(f"val_concepts counts concepts, so it is 0 or more; got {self.val_concepts}")


class ThingsEEG2:
    """The trials of all subjects in the official division; the EEG stays on the disk, as memory maps."""

    def __init__(self, path: str | None, config: ThingsEEG2Config):
        if path is None:
            raise UserError("source.path is missing; name the folder that holds sub-01, sub-02, ...")
        self.path, self.config = Path(path), config
        self._files = _files(self.path, config.subjects)
        self._images = _Images(_metadata_file(self.path, config.metadata), config)
        self.peak_bytes = max(map(mapped_pickle.peak_bytes, self._files.values()))
        self._data: dict[tuple[str, str], np.ndarray] = {}  # file -> [M, R, C, T]
        self.trials: list[dict[str, Any]] = []
        self._places: list[tuple[tuple[str, str], int, int | None]] = []  # file, image, repetition
        self._about: tuple[tuple[str, ...], np.ndarray] | None = None  # channels and times, the same in every file
        for file in self._files:
            self._list(file)
        self.card = self._card()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_data": {}}  # another process maps for itself

    def eeg(self, i: int) -> np.ndarray:
        """[C, T] float32 as distributed: whitened, so without a unit."""
        file, image, repetition = self._places[i]
        data = self._open(file)[image]
        eeg = (data.mean(axis=0) if repetition is None else data[repetition]).astype(np.float32)
        if not np.isfinite(eeg).all():
            raise UserError(f"{self._files[file]}: image {image} holds a value that is no number; download it again")
        return eeg

    def image_key(self, i: int) -> str | None:
        """Which picture trial i saw, so that each is read once."""
        return self.trials[i]["stimulus"]

    def image(self, i: int) -> np.ndarray | None:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        (_, split), image, _ = self._places[i]
        path = self._images.path(split, image)
        return None if path is None else read_rgb(path)

    def _open(self, file: tuple[str, str]) -> np.ndarray:
        if file not in self._data:
            self._data[file] = _load(self._files[file])["preprocessed_eeg_data"]
        return self._data[file]

    def _list(self, file: tuple[str, str]) -> None:
        subject, split = file
        held = _load(self._files[file])
        self._data[file] = held["preprocessed_eeg_data"]
        n_images, n_repetitions = self._data[file].shape[:2]
        self._check(self._files[file], held, split)
        times = self._about[1]
        for image in range(n_images):
            shown = self._images.meta(split, image)
            for repetition in [None] if self.config.average else range(n_repetitions):
                self._places.append((file, image, repetition))
                end = "" if repetition is None else f"_{repetition:02d}"
                self.trials.append(
                    complete(
                        {
                            **shown,
                            "key": f"{subject}_{PARTS[split]}_{image:05d}{end}",
                            "subject": subject,
                            "tmin_s": float(times[0]),
                            "sfreq": _rate(times),
                        }
                    )
                )

    def _check(self, path: Path, held: dict, split: str) -> None:
        own, first = _channels_and_times(path, held), next(iter(self._files.values()))
        n_images = len(held["preprocessed_eeg_data"])
        if n_images != self._images.count(split):
            raise UserError(
                f"{path} has {n_images} images, but {self._images.file} lists {self._images.count(split)} for "
                f"{PARTS[split]}; the two do not belong together"
            )
        self._about = self._about or own
        if own[0] != self._about[0]:
            raise UserError(f"{path} and {first} differ in ch_names; take all files from one preprocessing")
        if own[1].shape != self._about[1].shape or not np.allclose(own[1], self._about[1], atol=1e-6):
            raise UserError(f"{path} and {first} differ in times; take all files from one preprocessing")

    def _card(self) -> Card:
        ch_names, times = self._about
        kept = "averaged into one trial" if self.config.average else "each a trial of its own"
        return Card(
            name="things-eeg2" if self.config.variant == "official" else "things-eeg2-nice",
            sfreq=_rate(times),
            ch_names=ch_names,
            design="rsvp",
            class_names=self._images.class_names,
            licence="CC BY 4.0",
            source="Gifford, Dwivedi, Roig and Cichy 2022, NeuroImage 264: 119754",
            pairing="trial" if self.config.images else "none",
            line_hz=50,
            tmin_s=float(times[0]),
            description=f"{WHITENING[self.config.variant]} Repetitions of an image are {kept}. "
            "Values have no unit, though the card's unit says uV.",
            fitted_on="all" if self.config.variant == "official" else "train",
        )


class _Images:
    """What image_metadata.npy says of image M of a split: its concept, its file, its label."""

    def __init__(self, file: Path, config: ThingsEEG2Config):
        self.file = file
        held = _load_dict(file)
        self._concepts, self._paths = {}, {}
        for split, part in (("train", "train"), ("test", "test")):
            folders, files = self._column(held, f"{part}_img_concepts"), self._column(held, f"{part}_img_files")
            own = f"{part}_img_concepts_THINGS"  # numbered over training and test; the plain ones restart at 1
            self._concepts[split] = self._column(held, own) if own in held else folders
            self._paths[split] = [f"{PARTS[split]}_images/{a}/{b}" for a, b in zip(folders, files, strict=True)]
            if len(self._concepts[split]) != len(folders):
                raise UserError(f"{file}: {own} and {part}_img_concepts differ in length; take the original file")
        unique = {split: list(dict.fromkeys(own)) for split, own in self._concepts.items()}
        shared = sorted(set(unique["train"]) & set(unique["test"]))
        if shared:
            raise UserError(f"{file}: concept {shared[0]} is in training and in test; take the original file")
        self.class_names = tuple(unique["train"] + unique["test"])
        self._labels = {name: label for label, name in enumerate(self.class_names)}
        self._val = _held_out(unique["train"], config)
        self._folder = Path(config.images) if config.images else None
        self._check_pictures()

    def count(self, split: str) -> int:
        return len(self._paths[split])

    def meta(self, split: str, image: int) -> dict[str, Any]:
        concept = self._concepts[split][image]
        return {
            "label": self._labels[concept],
            "class_name": concept,
            "concept": concept,
            "stimulus": self._paths[split][image],
            "split": "val" if concept in self._val else split,
        }

    def path(self, split: str, image: int) -> Path | None:
        return self._folder / self._paths[split][image] if self._folder else None

    def _column(self, held: dict, name: str) -> list[str]:
        if name not in held:
            raise UserError(f"{self.file} has no {name}, only {', '.join(map(str, held))}; take the original file")
        return [str(value) for value in np.ravel(held[name])]

    def _check_pictures(self) -> None:
        for name in (path for own in self._paths.values() for path in own):
            if self._folder and not (self._folder / name).is_file():
                raise UserError(
                    f"source.things_eeg2.images: {self._folder / name} does not exist; name the folder that holds "
                    "training_images and test_images, or null"
                )


def _held_out(concepts: list[str], config: ThingsEEG2Config) -> set[str]:
    """The training concepts that validate."""
    unknown = sorted(set(config.val_names) - set(concepts))
    if unknown:
        raise UserError(
            f"source.things_eeg2.val_names: {unknown[0]} is no training concept; they are named like {concepts[0]}"
        )
    if config.val_names:
        return set(config.val_names)
    if config.val_concepts >= len(concepts):
        raise UserError(
            f"source.things_eeg2.val_concepts is {config.val_concepts}, but there are {len(concepts)} training "
            "concepts; leave some to train on"
        )
    order = np.random.default_rng(seed_at(config.seed, "things-eeg2-val", 0)).permutation(len(concepts))
    return {concepts[k] for k in order[: config.val_concepts]}


def _files(path: Path, subjects: tuple[str, ...]) -> dict[tuple[str, str], Path]:
    """(subject, split) -> file: the training files, then the test files."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; set source.path to the one that holds sub-01, sub-02, ...")
    there = sorted(own.name for own in path.iterdir() if own.is_dir() and re.fullmatch(r"sub-\w+", own.name))
    if not there:
        raise UserError(f"{path} holds no folder sub-01, sub-02, ...; name the one that does")
    absent = sorted(set(subjects) - set(there))
    if absent:
        raise UserError(f"source.things_eeg2.subjects: {path} holds no {absent[0]}, only {', '.join(there)}")
    files = {}
    for split, part in PARTS.items():
        for subject in subjects or there:
            files[subject, split] = path / subject / f"preprocessed_eeg_{part}.npy"
            if not files[subject, split].is_file():
                raise UserError(f"{files[subject, split]}: no such file; download it, or choose others by subjects")
    return files


def _metadata_file(path: Path, given: str | None) -> Path:
    places = [Path(given)] if given else [path / "image_metadata.npy", path / "image_set" / "image_metadata.npy"]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"{places[0]}: no such file; image_metadata.npy says which picture is which: download it into source.path, "
        "or name it in source.things_eeg2.metadata"
    )


def _load(path: Path) -> dict:
    """The dict of one file of EEG."""
    memory.require(mapped_pickle.peak_bytes(path), path, "save it again with pickle protocol 4, then it need not be")
    held = _load_dict(path)
    for name in ("preprocessed_eeg_data", "ch_names", "times"):
        if name not in held:
            raise UserError(f"{path} has no {name}, only {', '.join(map(str, held))}; take the original file")
    data = held["preprocessed_eeg_data"]
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f" or data.ndim != 4 or 0 in data.shape:
        raise UserError(
            f"{path}: preprocessed_eeg_data is {getattr(data, 'dtype', type(data).__name__)} of shape "
            f"{list(np.shape(data))}, but float [images, repetitions, channels, times] is published"
        )
    return held


def _load_dict(path: Path) -> dict:
    """The dict that a file holds."""
    held = mapped_pickle.load(path)
    if not isinstance(held, dict):
        raise UserError(f"{path} holds {type(held).__name__}, but a dict is published; take the original file")
    return held


def _channels_and_times(path: Path, held: dict) -> tuple[tuple[str, ...], np.ndarray]:
    """Names [C] and times [T] in s; NICE cuts the baseline off the EEG but not off times, so the last T hold."""
    names, times = tuple(map(str, held["ch_names"])), np.ravel(np.asarray(held["times"], dtype=float))
    shape = held["preprocessed_eeg_data"].shape
    if len(names) != shape[2] or len(times) < shape[3]:
        raise UserError(
            f"{path}: preprocessed_eeg_data has shape {list(shape)}, but there are {len(names)} ch_names and "
            f"{len(times)} times; [images, repetitions, channels, times] is published: take the original file"
        )
    times = times[-shape[3] :]
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise UserError(f"{path}: times do not increase; take the original file")
    return names, times


def _rate(times: np.ndarray) -> float:
    """Hz, of time samples in seconds."""
    return float(np.round((len(times) - 1) / (times[-1] - times[0]), 3))
