"""ThoughtViz: 23 people imagine ten objects, digits or letters; 14 electrodes (Kumar 2018, Tirupattur 2018).

Where from: the address in github.com/ptirupat/ThoughtViz has eeg/{image,digit,char}/data.pkl, a pickle of Python 2 with
x_train, y_train, x_test, y_test: windows [14, 32] (a quarter of a second) of 10 s of imagination each. A second layout,
{train,test}/CLASS/FILE, object arrays [eeg, label, image], is that of EEGStyleGAN-ADA (WACV 2024): layout pairs.
What may be done: no licence is published; the papers ask to be cited. The pictures are ImageNet's or the user's own.

The trap: the windows overlap by more than three quarters, and the file says neither who nor which recording a window
is from. So the published division may have put neighbours that share samples on both sides, nobody can divide anew,
and a leak cannot be excluded: every division is called confounded. Nobody saw a picture while the EEG was recorded: any
picture of the class is paired with a window, by the seed, and pictures of one split are never used in another
(pairing: class). There is no validation part: it is the last rows of each class of x_train, in the order of the file,
so that windows that are neighbours in the file stay together.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.sources.published import describe, expect_keys, finite, natural, pictures_in, read_rgb, rgb_array
from eeg_gan.data.trial import complete
from eeg_gan.data.unpickle import PICKLE_PEAK, file_size, load_npy, load_pickle
from eeg_gan.distributed import seed_at

# C electrode, T time sample

log = logging.getLogger("eeg_gan")
SHAPE, SFREQ = (14, 32, 1), 128.0
KEYS = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("train", "val", "test")
CLASSES = {
    "objects": ("Apple", "Car", "Dog", "Gold", "Mobile", "Rose", "Scooter", "Tiger", "Wallet", "Watch"),
    "digits": tuple("0123456789"),
    "characters": tuple("ACFHJMPSTY"),
}
CH_NAMES = ("AF3", "F7", "F3", "FC5", "T7", "P7", "O1", "O2", "P8", "T8", "FC6", "F4", "F8", "AF4")  # of the EPOC+


@dataclass(frozen=True)
class ThoughtvizConfig:
    layout: Literal["pickle", "pairs"] = "pickle"  # data.pkl, or {train,test}/CLASS/FILE of object arrays
    imagined: Literal["objects", "digits", "characters"] = "objects"  # which of the three sets it is: names the classes
    images: str | None = None  # folder with a folder of pictures for each class; null: EEG alone; for layout pickle
    val: float = 0.1  # part of each class of the training windows, the last in the file, that selects models
    seed: int = 0  # of the pairing with pictures

    def __post_init__(self):
        if not 0 <= self.val < 1:
            raise ValueError(f"val is a part of the training windows, 0 or more and below 1; got {self.val}")
        if self.layout == "pairs" and self.images:
            raise ValueError("layout pairs has its pictures in its own files; set images to null")


def open_thoughtviz(path: str | None, config: ThoughtvizConfig) -> "Pickled | Pairs":
    if path is None:
        raise UserError("source.path is missing; name data.pkl, or the folder of the layout pairs")
    return Pickled(Path(path), config) if config.layout == "pickle" else Pairs(Path(path), config)


class Pickled:
    """The windows of one data.pkl, which can only be read whole."""

    def __init__(self, path: Path, config: ThoughtvizConfig):
        self.path, self.peak_bytes = path, PICKLE_PEAK * file_size(path)
        names = CLASSES[config.imagined]
        found = self._file
        train, test = (self._labels(found, part, len(names)) for part in ("train", "test"))
        self.labels = np.concatenate([train, test])
        self.splits = _carve(train, config.val) + ["test"] * len(test)
        self._files = None if config.images is None else _paired(self.labels, self.splits, names, config)
        self.card = _card(names, config, "class" if self._files else "none", path)
        self.trials = [self._meta(i, names) for i in range(len(self.labels))]

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    @cached_property
    def _file(self) -> dict[str, np.ndarray]:
        found = load_pickle(self.path)
        expect_keys(found, KEYS, str(self.path))
        for part in ("train", "test"):
            x = found[f"x_{part}"]
            if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.shape[1:] != SHAPE or len(x) == 0:
                raise UserError(
                    f"{self.path}: x_{part} is {describe(x)}, but floats [windows, 14, 32, 1] were expected"
                )
        return found

    def eeg(self, i: int) -> np.ndarray:
        """[14, 32] float32."""
        n_train = len(self._file["x_train"])
        window = self._file["x_train"][i] if i < n_train else self._file["x_test"][i - n_train]
        return finite(window[:, :, 0], f"{self.path}: window {i}")

    def image(self, i: int) -> np.ndarray | None:
        """A picture of the class that was imagined, [H, W, 3] uint8 RGB; nobody saw it."""
        return None if self._files is None else read_rgb(self._files[i])

    def _labels(self, found: dict, part: str, n_classes: int) -> np.ndarray:
        x, y = found[f"x_{part}"], np.asarray(found[f"y_{part}"])
        if y.shape != (len(x), n_classes) or not ((y == 0) | (y == 1)).all() or not (y.sum(axis=1) == 1).all():
            raise UserError(
                f"{self.path}: y_{part} is {describe(y)}, but one row with a single 1 among {n_classes} classes was "
                f"expected for each of the {len(x)} windows; source.thoughtviz.imagined says which classes they are"
            )
        return y.argmax(axis=1)

    def _meta(self, i: int, names: tuple[str, ...]) -> dict[str, Any]:
        label = int(self.labels[i])
        picture = self._files and f"{self._files[i].parent.name}/{self._files[i].name}"
        return _meta(f"window-{i:06d}", label, names[label], self.splits[i], picture)


class Pairs:
    """A folder {train,test}/CLASS/FILE of object arrays [eeg, label, image]."""

    def __init__(self, path: Path, config: ThoughtvizConfig):
        self.path, self.peak_bytes = path, 0
        self.files, labels = [], {"train": [], "test": []}
        names = {part: self._classes(part) for part in labels}
        if names["train"] != names["test"]:
            odd = sorted(set(names["train"]) ^ set(names["test"]))
            raise UserError(f"{path}: {', '.join(odd)} is in one of train/ and test/ only; both hold the same classes")
        for part in labels:
            for label, name in enumerate(names[part]):
                files = sorted((p for p in (path / part / name).iterdir() if p.is_file()), key=natural)
                self.files += files
                labels[part] += [label] * len(files)
        for part, own in labels.items():
            if not own:
                raise UserError(f"{path / part} holds no file; expected {part}/CLASS/FILE")
        splits = _carve(np.array(labels["train"]), config.val) + ["test"] * len(labels["test"])
        self.labels = labels["train"] + labels["test"]
        self.card = _card(names["train"], config, "class", path)
        named = [names["train"][label] for label in self.labels]
        keys = [f"window-{i:06d}" for i in range(len(splits))]
        self.trials = [_meta(*row, None) for row in zip(keys, self.labels, named, splits, strict=True)]

    def eeg(self, i: int) -> np.ndarray:
        """[14, 32] float32."""
        return finite(self._read(i)[0][:, :, 0], str(self.files[i]))

    def image(self, i: int) -> np.ndarray:
        """The picture that the authors paired with the window, [H, W, 3] uint8 RGB; nobody saw it."""
        return rgb_array(self._read(i)[1], str(self.files[i]))

    def _classes(self, part: str) -> tuple[str, ...]:
        folder = self.path / part
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; layout pairs is {{train,test}}/CLASS/FILE below source.path")
        return tuple(p.name for p in sorted(filter(Path.is_dir, folder.iterdir()), key=natural))

    def _read(self, i: int) -> tuple[np.ndarray, Any]:
        file, array = self.files[i], load_npy(self.files[i])
        if array.dtype != object or array.shape != (3,):
            raise UserError(
                f"{file} is {describe(array)} of {array.dtype}, but an object array [3] of eeg, label and image was "
                "expected"
            )
        eeg, label, image = array.tolist()
        if not isinstance(eeg, np.ndarray) or eeg.shape != SHAPE:
            raise UserError(f"{file}: its eeg is {describe(eeg)}, but {list(SHAPE)} was expected")
        if not isinstance(label, (int, np.integer)) or label != self.labels[i]:
            raise UserError(
                f"{file}: its label is {label!r:.40}, but class folder {file.parent.name} is number {self.labels[i]} "
                "in natural order; a class folder is missing or renamed"
            )
        return eeg, image


def _carve(labels: np.ndarray, val: float) -> list[str]:
    """train, or val for the last part of the windows of each class."""
    splits = np.full(len(labels), "train", dtype=object)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        n_val = min(len(own) - 1, max(1, round(val * len(own)))) if val else 0
        splits[own[len(own) - n_val :]] = "val"
    return splits.tolist()


def _paired(labels: np.ndarray, splits: list[str], names: tuple[str, ...], config: ThoughtvizConfig) -> list[Path]:
    """A picture for each window: those of a class are shuffled, shared out to the splits, and repeated in turn."""
    root = Path(config.images)
    paired: list[Path | None] = [None] * len(labels)
    present = [split for split in SPLITS if split in splits]
    for label, name in enumerate(names):
        pictures = pictures_in(root / name) if (root / name).is_dir() else []
        if len(pictures) < len(present):
            raise UserError(
                f"source.thoughtviz.images={root}: {name}/ holds {len(pictures)} pictures, but each of "
                f"{', '.join(present)} needs one of its own; it must hold a folder of pictures for each of "
                f"{', '.join(names)}, or be null for EEG alone"
            )
        pictures = [pictures[k] for k in _order(config.seed, f"{name} pictures", len(pictures))]
        for split, pool in zip(present, _shared_out(pictures, len(present)), strict=True):
            own = [i for i in np.flatnonzero(labels == label) if splits[i] == split]
            for place, k in enumerate(_order(config.seed, f"{name} {split}", len(own))):
                paired[own[k]] = pool[place % len(pool)]
    return paired


def _shared_out(pictures: list[Path], n_splits: int) -> list[list[Path]]:
    """One part in ten, at least one picture, for each split after the first, which takes the rest."""
    n = max(1, len(pictures) // 10)
    cut = len(pictures) - n * (n_splits - 1)
    return [pictures[:cut]] + [pictures[cut + n * k : cut + n * (k + 1)] for k in range(n_splits - 1)]


def _order(seed: int, purpose: str, n: int) -> np.ndarray:
    return np.random.default_rng(seed_at(seed, f"thoughtviz {purpose}", 0)).permutation(n)


def _card(names: tuple[str, ...], config: ThoughtvizConfig, pairing: Literal["class", "none"], path: Path) -> Card:
    return Card(
        name=f"thoughtviz {config.imagined}",
        sfreq=SFREQ,
        ch_names=CH_NAMES,
        design="imagined-windowed",
        class_names=names,
        licence="none published; cite Kumar et al. 2018 and Tirupattur et al. 2018; pictures: their own terms",
        source="ptirupat/ThoughtViz, doi:10.1145/3240508.3240641; EEG: doi:10.1007/s00779-017-1083-4",
        pairing=pairing,
        line_hz=50,
        description=f"Read from {path.name}. Windows of imagination that overlap, of unknown persons and recordings: "
        "a leak between the given splits cannot be excluded. Validation is the end of each class of the training part. "
        "The order of the electrodes is the headset's, the unit is not published.",
    )


def _meta(key: str, label: int, name: str, split: str, picture: str | None) -> dict[str, Any]:
    return complete(
        {
            "key": key,
            "label": label,
            "class_name": name,
            "subject": "unknown",
            "sfreq": SFREQ,
            "stimulus": picture,
            "split": split,
        }
    )
