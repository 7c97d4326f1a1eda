"""EEG-ImageNet: 16 people look at 50 ImageNet pictures of each of 80 classes, 62 electrodes (Zhu et al. 2024).

Where from: the address in github.com/Promise-Z5Q2SQ/EEG-ImageNet-Dataset has EEG-ImageNet_1.pth and _2.pth, eight
people each, 63,850 trials in all. source.path names one of them, or the folder of both.
What may be done: the repository is under the MIT licence (c) 2024 Shuqi Zhu; nothing is said of the data apart. The
pictures are ImageNet's (21k), which may not be passed on: neither may shards that hold them.

The trap: a class is named on the screen, then 50 pictures of it follow in a row, so slow drifts tell the class, as in
EEGCVPR40; the authors themselves recorded a second, shuffled stage because of it, which is not in these files. It is
treated as a block design: divide by subject. `granularity` says whether a trial belongs to the 40 coarse classes or to
five groups of 8 fine ones (fine0 to fine4, which count in the file's own list `labels`); users count 59 coarse classes
in the second file instead of 40. The authors use 40 to 440 ms of each trial (preprocess.crop_s).
"""

import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.sources.published import (
    IMAGE_NAME,
    class_name,
    describe,
    expect_keys,
    expect_lists,
    find_imagenet,
    finite,
    read_rgb,
    whole,
)
from eeg_gan.data.trial import complete
from eeg_gan.data.unpickle import load_pth, pth_peak

# C electrode, T time sample

log = logging.getLogger("eeg_gan")
N_CHANS, N_TIMES, SFREQ = 62, 500, 1000.0
FILES = ("EEG-ImageNet_1.pth", "EEG-ImageNet_2.pth")
KEYS, TRIAL_KEYS = ("dataset", "labels", "images"), ("eeg_data", "granularity", "subject", "label", "image")
CH_NAMES = (  # the repository's montage without the mastoids
    "FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 C1 CZ C2 C4 C6 T8 TP7 "
    "CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2"
).split()


@dataclass(frozen=True)
class EEGImageNetConfig:
    granularity: Literal["all", "coarse", "fine", "fine0", "fine1", "fine2", "fine3", "fine4"] = "all"  # which classes
    subjects: tuple[int, ...] = ()  # persons to read, 0 to 15 as the files count them; none named: all
    images: str | None = None  # folder of ImageNet's pictures; null: EEG alone


class EEGImageNet:
    """The trials of one file or of both, mapped from the disk where they are zips."""

    def __init__(self, path: str | None, config: EEGImageNetConfig):
        if path is None:
            raise UserError("source.path is missing; name EEG-ImageNet_1.pth, or the folder of both files")
        self.config, self.paths = config, _files(Path(path))
        self.peak_bytes = sum(map(pth_peak, self.paths))
        self.rows = [(f, i) for f in range(len(self.paths)) for i in self._chosen(f)]
        if not self.rows:
            raise UserError(self._nothing(path))
        order = list(dict.fromkeys(name for file in self._loaded for name in file["labels"]))
        present = {self._trial(row)["label"] for row in self.rows}
        synsets = [name for name in order if name in present]
        log.info("%d trials of %d classes (%s)", len(self.rows), len(synsets), config.granularity)
        self.trials = [self._meta(row, synsets) for row in self.rows]
        self.card = _card(synsets, "trial" if config.images else "none", self.paths)
        names = [trial["stimulus"] for trial in self.trials]
        self._pictures = config.images and find_imagenet(config.images, names, "source.eeg_imagenet.images")

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}  # workers map it again

    @cached_property
    def _loaded(self) -> list[dict[str, Any]]:
        loaded = [load_pth(path) for path in self.paths]
        for path, file in zip(self.paths, loaded, strict=True):
            expect_keys(file, KEYS, str(path))
            expect_lists(file, KEYS, str(path))
        return loaded

    def eeg(self, i: int) -> np.ndarray:
        """[62, 500] float32."""
        eeg = self._trial(self.rows[i])["eeg_data"]
        return finite(np.asarray(eeg[:, :N_TIMES]), f"{self.paths[self.rows[i][0]]}: trial {self.rows[i][1]}")

    def image_key(self, i: int) -> str | None:
        """Which picture trial i saw, so that each is read once."""
        return self.trials[i]["stimulus"]

    def image(self, i: int) -> np.ndarray | None:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        return read_rgb(self._pictures[self.trials[i]["stimulus"]]) if self._pictures else None

    def _trial(self, row: tuple[int, int]) -> dict[str, Any]:
        return self._loaded[row[0]]["dataset"][row[1]]

    def _chosen(self, number: int) -> list[int]:
        """The places of the trials of the chosen persons and classes, every record checked."""
        file, wanted = self._loaded[number], self.config.granularity
        fine = file["labels"][8 * int(wanted[-1]) :][:8] if wanted[-1].isdigit() else file["labels"]
        known, rows = set(file["labels"]), []
        for i, trial in enumerate(file["dataset"]):
            where = f"{self.paths[number]}: trial {i}"
            expect_keys(trial, TRIAL_KEYS, where)
            _check(trial, known, where)
            if self.config.subjects and int(trial["subject"]) not in self.config.subjects:
                continue
            if wanted in ("all", trial["granularity"]) or (
                wanted[-1].isdigit() and trial["granularity"] == "fine" and trial["label"] in fine
            ):
                rows.append(i)
        return rows

    def _nothing(self, path: str) -> str:
        found = Counter((int(t["subject"]), t["granularity"]) for file in self._loaded for t in file["dataset"])
        subjects, kinds = sorted({s for s, _ in found}), sorted({g for _, g in found})
        return (
            f"{path}: no trial of the chosen subjects and granularity; it holds subjects "
            f"{', '.join(map(str, subjects))} and granularity {', '.join(kinds)}: change source.eeg_imagenet.subjects "
            "or source.eeg_imagenet.granularity"
        )

    def _meta(self, row: tuple[int, int], synsets: list[str]) -> dict[str, Any]:
        trial, (file, i) = self._trial(row), row
        image, subject = Path(trial["image"]).stem, f"S{int(trial['subject'])}"
        return complete(
            {
                "key": f"{subject}_{image}_{file + 1}-{i:05d}",
                "label": synsets.index(trial["label"]),
                "class_name": class_name(trial["label"]),
                "subject": subject,
                "block": f"{trial['granularity']} {trial['label']}",  # of one person: 50 pictures in a row
                "tmin_s": 0.0,
                "sfreq": SFREQ,
                "stimulus": image,
                "concept": trial["label"],
            }
        )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [path / name for name in (*FILES, "EEG-ImageNet.pth") if (path / name).is_file()]
    if not found:
        raise UserError(f"{path}: no EEG-ImageNet_1.pth or EEG-ImageNet_2.pth in it; name the folder that holds them")
    return found


def _check(trial: dict, known: set[str], where: str) -> None:
    shape = tuple(getattr(trial["eeg_data"], "shape", ()))
    if len(shape) != 2 or shape[0] != N_CHANS or shape[1] not in (N_TIMES, N_TIMES + 1):
        found = describe(trial["eeg_data"])
        raise UserError(f"{where}: its eeg_data is {found}, but [{N_CHANS}, {N_TIMES}] was expected")
    whole(trial["subject"], f"{where}: subject")
    if trial["label"] not in known:
        raise UserError(f"{where}: label {trial['label']!r:.40} is none of the {len(known)} that the file lists")
    if trial["granularity"] not in ("coarse", "fine"):
        raise UserError(f"{where}: granularity is {trial['granularity']!r:.40}, but coarse or fine was expected")
    if not isinstance(trial["image"], str) or not IMAGE_NAME.fullmatch(Path(trial["image"]).stem):
        raise UserError(f"{where}: image is {trial['image']!r:.40}, but a name like n02106662_1152.JPEG was expected")


def _card(synsets: list[str], pairing: Literal["trial", "none"], paths: list[Path]) -> Card:
    return Card(
        name="eeg_imagenet",
        sfreq=SFREQ,
        ch_names=tuple(CH_NAMES),
        design="block",
        class_names=tuple(map(class_name, synsets)),
        licence="MIT (c) 2024 Shuqi Zhu, of the repository; none stated for the data apart; pictures: ImageNet's terms",
        source="Promise-Z5Q2SQ/EEG-ImageNet-Dataset (Tsinghua University), arXiv 2406.07151",
        pairing=pairing,
        line_hz=50,
        description=f"Read from {', '.join(path.name for path in paths)}. 50 pictures of one named class in a row: "
        "slow drifts tell the class. The order of the electrodes is that of the repository's montage without M1 and "
        "M2, which the authors have not confirmed; the unit is not published.",
    )
