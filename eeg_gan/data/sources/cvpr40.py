"""EEGCVPR40: six people look at 50 ImageNet pictures of each of 40 classes (Spampinato 2017, Palazzo 2020).

Where from: the address in github.com/perceivelab/eeg_visual_classification has eeg_signals_raw_with_mean_std.pth and
the filtered eeg_5_95_std.pth, eeg_14_70_std.pth, eeg_55_95_std.pth, with block_splits_by_image_all.pth and _single.pth.
The authors of EEGStyleGAN-ADA (WACV 2024) give the same trials as one .npy each (layout: wacv).
What may be done: no licence is published; both papers ask to be cited. The pictures are ImageNet's, which may not be
passed on: neither may shards that hold them.

The trap: all 50 pictures of a class were shown in one uninterrupted block, so whatever drifts tells the class, and no
division of one person's trials is free of it. Li et al. (arXiv 1812.07697) hold that scores rest on that; Palazzo et
al. (arXiv 2012.03849) answer that filtered data keep a part. The published splits by image divide each block and are
called confounded here; divide by subject, and read the audit. Also: trials last 450 to 600 samples, others are left
out as the authors do, and samples 20 to 460 (20 to 460 ms) are used; 1,996 pictures, not 2,000; `image` counts in the
file's own list `images`; means and stddevs of the raw file are those of all trials, test included, and are not applied;
the indices of _single.pth count within the trials of one person; the .npy of WACV are min-max scaled trial by trial, so
their amplitudes are lost, and their pictures are RGB as stored.
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
    SYNSET,
    class_name,
    describe,
    expect_keys,
    expect_lists,
    find_imagenet,
    finite,
    natural,
    read_rgb,
    rgb_array,
    synset_of,
    whole,
)
from eeg_gan.data.trial import complete
from eeg_gan.data.unpickle import load_npy, load_pth, pth_peak

# C electrode, T time sample

log = logging.getLogger("eeg_gan")
N_CHANS, N_TIMES, SFREQ = 128, 440, 1000.0
FIRST, SHORTEST, LONGEST = 20, 450, 600  # samples
KEYS, TRIAL_KEYS = ("dataset", "labels", "images"), ("eeg", "image", "label", "subject")
SPLITS = ("train", "val", "test")
CH_NAMES = (  # as the laboratory lists them: perceivelab/eeg_visual_classification, issue 4
    "Fp1 Fp2 F7 F3 Fz F4 F8 FC5 FC1 FC2 FC6 T7 C3 Cz C4 T8 TP9 CP5 CP1 CP2 CP6 TP10 P7 P3 Pz P4 P8 PO9 O1 Oz O2 PO10 "
    "AF7 AF3 AF4 AF8 F5 F1 F2 F6 FT9 FT7 FC3 FC4 FT8 FT10 C5 C1 C2 C6 TP7 CP3 CPz CP4 TP8 P5 P1 P2 P6 PO7 PO3 POz PO4 "
    "PO8 Fpz F9 AFF5h AFF1h AFF2h AFF6h F10 FTT9h FTT7h FCC5h FCC3h FCC1h FCC2h FCC4h FCC6h FTT8h FTT10h TPP9h TPP7h "
    "CPP5h CPP3h CPP1h CPP2h CPP4h CPP6h TPP8h TPP10h POO9h POO1 POO2 POO10h Iz AFp1 AFp2 FFT9h FFT7h FFC5h FFC3h "
    "FFC1h FFC2h FFC4h FFC6h FFT8h FFT10h TTP7h CCP5h CCP3h CCP1h CCP2h CCP4h CCP6h TTP8h P9 PPO9h PPO5h PPO1h PPO2h "
    "PPO6h PPO10h P10 I1 OI1h OI2h I2"
).split()
UNITS = {
    "raw": "The unit is not published; the recorder's header gives 0.5 or 0.1 uV per step, so these are microvolt or "
    "such steps.",
    "filtered": "Filtered by the authors; the name says standardised, so these are no microvolt.",
    "wacv": "Scaled by the authors to the minimum and maximum of each trial, so these are no microvolt.",
}


@dataclass(frozen=True)
class Cvpr40Config:
    layout: Literal["perceivelab", "wacv"] = "perceivelab"  # a .pth of the laboratory, or a folder of .npy per trial
    splits: str | None = None  # block_splits_by_image_*.pth, from which split.by=given takes the split; perceivelab
    subjects: tuple[int, ...] = ()  # persons to read, 1 to 6; none named: all
    images: str | None = None  # folder of ImageNet's pictures; null: EEG alone; perceivelab (wacv holds its pictures)

    def __post_init__(self):
        if self.layout == "wacv" and (self.splits or self.images):
            raise ValueError("layout wacv has its splits and images in its own files; set splits and images to null")
        strange = [subject for subject in self.subjects if not 1 <= subject <= 6]
        if strange:
            raise ValueError(f"subjects are numbered 1 to 6; got {', '.join(map(str, strange))}")


def open_cvpr40(path: str | None, config: Cvpr40Config) -> "Perceivelab | Wacv":
    if path is None:
        raise UserError("source.path is missing; name a .pth file of perceivelab, or the folder of the layout wacv")
    return Perceivelab(Path(path), config) if config.layout == "perceivelab" else Wacv(Path(path), config)


class Perceivelab:
    """The trials of one .pth of the laboratory, mapped from the disk where the file is a zip."""

    def __init__(self, path: Path, config: Cvpr40Config):
        self.path, self.config, self.peak_bytes = path, config, pth_peak(path)
        about = {key: value for key, value in self._file.items() if key != "dataset"}
        self.labels, self.images = self._names(about)
        self.rows = self._chosen()
        split_of = self._splits()
        self.rows = self._whole([i for i in self.rows if split_of is None or i in split_of])
        self.trials = [self._meta(i, split_of) for i in self.rows]
        raw = "means" in about or "raw" in path.stem
        self.card = _card(self.labels, "trial" if config.images else "none", UNITS["raw" if raw else "filtered"], path)
        self._files = self._image_files()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_file"}  # workers map it again

    @cached_property
    def _file(self) -> dict[str, Any]:
        found = load_pth(self.path)
        expect_keys(found, KEYS, str(self.path))
        expect_lists(found, KEYS, str(self.path))
        return found

    def eeg(self, i: int) -> np.ndarray:
        """Samples 20 to 460 of a trial, [128, 440] float32."""
        eeg = self._file["dataset"][self.rows[i]]["eeg"]
        return finite(np.asarray(eeg[:, FIRST : FIRST + N_TIMES]), f"{self.path}: trial {self.rows[i]}")

    def image_key(self, i: int) -> str | None:
        """Which picture trial i saw, so that each is read once."""
        return self.trials[i]["stimulus"]

    def image(self, i: int) -> np.ndarray | None:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        return None if self._files is None else read_rgb(self._files[self.trials[i]["stimulus"]])

    def _names(self, about: dict) -> tuple[list[str], list[str]]:
        """The synsets of the labels, and the names of the pictures."""
        for key, pattern in (("labels", SYNSET), ("images", IMAGE_NAME)):
            wrong = [name for name in about[key] if not isinstance(name, str) or not pattern.fullmatch(name)]
            if wrong:
                raise UserError(
                    f"{self.path}: {key} lists {wrong[0]!r:.40}, but ImageNet names ({pattern.pattern}) were expected"
                )
        if len(about["images"]) != len(set(about["images"])):
            raise UserError(f"{self.path}: images lists a name twice, but each picture was expected once")
        return list(about["labels"]), list(about["images"])

    def _chosen(self) -> list[int]:
        """The places of the trials of the chosen persons, every record checked."""
        rows, found = [], Counter()
        for i, trial in enumerate(self._file["dataset"]):
            where = f"{self.path}: trial {i}"
            expect_keys(trial, TRIAL_KEYS, where)
            shape = tuple(getattr(trial["eeg"], "shape", ()))
            if len(shape) != 2 or shape[0] != N_CHANS:
                raise UserError(f"{where}: its eeg is {describe(trial['eeg'])}, but [{N_CHANS}, L] was expected")
            for key, names in (("label", self.labels), ("image", self.images)):
                if not 0 <= whole(trial[key], f"{where}: {key}") < len(names):
                    raise UserError(f"{where}: {key} {int(trial[key])} is none of the {len(names)} {key}s of the file")
            self._check_class(trial, where)
            found[whole(trial["subject"], f"{where}: subject")] += 1
            if not self.config.subjects or int(trial["subject"]) in self.config.subjects:
                rows.append(i)
        absent = sorted(set(self.config.subjects) - set(found))
        if absent or not rows:
            raise UserError(
                f"{self.path}: no trial of subject {', '.join(map(str, absent)) or 'any'}; it holds those of "
                f"{', '.join(map(str, sorted(found))) or 'nobody'}: choose source.cvpr40.subjects among them"
            )
        return rows

    def _check_class(self, trial: dict, where: str) -> None:
        image, label = self.images[int(trial["image"])], self.labels[int(trial["label"])]
        if synset_of(image) != label:
            raise UserError(
                f"{where}: label {label}, but its picture is {image}, of another class; the published file has no "
                "such trial: download or copy it again"
            )

    def _whole(self, rows: list[int]) -> list[int]:
        """The trials of 450 to 600 samples."""
        lengths = {i: self._file["dataset"][i]["eeg"].shape[1] for i in rows}
        kept = [i for i in rows if SHORTEST <= lengths[i] <= LONGEST]
        if not kept:
            raise UserError(
                f"{self.path}: no trial has {SHORTEST} to {LONGEST} samples, they have {min(lengths.values())} to "
                f"{max(lengths.values())}; name the published file, not one that was cut"
            )
        if len(kept) < len(rows):
            log.info("%d of %d trials are left out: not of 450 to 600 samples", len(rows) - len(kept), len(rows))
        return kept

    def _splits(self) -> dict[int, str] | None:
        """Place of a trial -> its published split; None where no split file is named."""
        if self.config.splits is None:
            return None
        listed = self._split_file(self.config.splits)
        n_listed, n_trials = sum(map(len, listed.values())), len(self._file["dataset"])
        subjects = {int(self._file["dataset"][i]["subject"]) for i in self.rows}
        if n_listed == n_trials:
            places = range(n_trials)
        elif len(subjects) == 1:
            places = self.rows
        else:
            raise UserError(
                f"{self.config.splits} lists {n_listed} trials, but {self.path} holds {n_trials}: it divides one "
                "person's trials; choose that person by source.cvpr40.subjects, or name block_splits_by_image_all.pth"
            )
        split_of: dict[int, str] = {}
        for split, indices in listed.items():
            for index in indices:
                if index < len(places) and split_of.setdefault(places[index], split) != split:
                    raise UserError(f"{self.config.splits}: trial {index} is in {split_of[places[index]]} and {split}")
        beyond = sum(index >= len(places) for indices in listed.values() for index in indices)
        unlisted = sum(i not in split_of for i in self.rows)
        if beyond or unlisted:
            log.warning("%s names %d trials that are not there, and leaves out %d that are: they are not used",
                        self.config.splits, beyond, unlisted)  # fmt: skip
        return split_of

    def _split_file(self, path: str) -> dict[str, list[int]]:
        found = load_pth(path)
        expect_keys(found, ("splits",), path)
        if not isinstance(found["splits"], (list, tuple)) or not found["splits"]:
            raise UserError(f"{path}: splits is {describe(found['splits'])}, but a list of divisions was expected")
        expect_keys(found["splits"][0], SPLITS, f"{path}: splits[0]")
        expect_lists(found["splits"][0], SPLITS, f"{path}: splits[0]")
        return {
            split: [whole(index, f"{path}: an index of {split}") for index in found["splits"][0][split]]
            for split in SPLITS
        }

    def _meta(self, i: int, split_of: dict[int, str] | None) -> dict[str, Any]:
        trial = self._file["dataset"][i]
        return _meta(i, int(trial["label"]), self.images[int(trial["image"])], int(trial["subject"]),
                     split_of[i] if split_of else None)  # fmt: skip

    def _image_files(self) -> dict[str, Path] | None:
        if self.config.images is None:
            return None
        names = [trial["stimulus"] for trial in self.trials]
        return find_imagenet(self.config.images, names, "source.cvpr40.images")


class Wacv:
    """A folder with train/, val/ and test/, one object array [image, eeg, label, image id, subject] per trial."""

    def __init__(self, path: Path, config: Cvpr40Config):
        self.path, self.peak_bytes = path, 0
        files = [(file, split) for split in SPLITS for file in self._files(split)]
        if not files:
            raise UserError(f"{path}: no .npy in {', '.join(SPLITS)}; name the folder that holds these three")
        log.info("reading the labels of %d files", len(files))
        self.files, self.trials, synset_of_label = [], [], {}
        for file, split in files:
            _, _, label, name, subject = self._read(file, skim=True)
            if synset_of_label.setdefault(label, synset_of(name)) != synset_of(name):
                raise UserError(f"{file}: label {label} is {synset_of_label[label]} in other files, here {name}")
            if not config.subjects or subject in config.subjects:
                self.trials.append(_meta(len(self.files), label, name, subject, split))
                self.files.append(file)
        if not self.files:
            raise UserError(f"{path}: no trial of subject {', '.join(map(str, config.subjects))}")
        if sorted(synset_of_label) != list(range(len(synset_of_label))):
            raise UserError(f"{path}: labels are {sorted(synset_of_label)}, but 0, 1, 2, ... was expected")
        self.card = _card([synset_of_label[n] for n in sorted(synset_of_label)], "trial", UNITS["wacv"], path)

    def eeg(self, i: int) -> np.ndarray:
        """[128, 440] float32."""
        return finite(self._read(self.files[i])[1], str(self.files[i]))

    def image(self, i: int) -> np.ndarray:
        """The picture that was seen, [H, W, 3] uint8 RGB."""
        return self._read(self.files[i])[0]

    def _files(self, split: str) -> list[Path]:
        return sorted((self.path / split).glob("*.npy"), key=natural)

    def _read(self, file: Path, skim: bool = False) -> tuple[np.ndarray, np.ndarray, int, str, int]:
        array = load_npy(file, skim)
        if array.dtype != object or array.shape != (5,):
            raise UserError(
                f"{file} is {describe(array)} of {array.dtype}, but an object array [5] of image, eeg, label, image "
                "id and subject was expected"
            )
        image, eeg, label, name, subject = array.tolist()
        if not isinstance(eeg, np.ndarray) or eeg.shape != (N_CHANS, N_TIMES):
            raise UserError(f"{file}: its eeg is {describe(eeg)}, but [{N_CHANS}, {N_TIMES}] was expected")
        if not isinstance(name, str) or not IMAGE_NAME.fullmatch(name):
            raise UserError(f"{file}: its image id is {name!r:.60}, but a name like n02106662_1152 was expected")
        label, subject = whole(label, f"{file}: its label"), whole(subject, f"{file}: its subject")
        return rgb_array(image, str(file)), eeg, label, name, subject


def _card(synsets: list[str], pairing: Literal["trial", "none"], unit: str, path: Path) -> Card:
    return Card(
        name="cvpr40",
        sfreq=SFREQ,
        ch_names=tuple(CH_NAMES),
        design="block",
        class_names=tuple(map(class_name, synsets)),
        licence="none published; cite Spampinato et al. 2017 and Palazzo et al. 2020; pictures: ImageNet's terms",
        source="perceivelab/eeg_visual_classification (University of Catania), doi:10.1109/TPAMI.2020.2995909",
        pairing=pairing,
        line_hz=50,
        tmin_s=FIRST / SFREQ,
        description=f"Read from {path.name}. {unit} 50 pictures of one class in a row: slow drifts tell the class.",
    )


def _meta(i: int, label: int, image: str, subject: int, split: str | None) -> dict[str, Any]:
    synset = synset_of(image)
    return complete(
        {
            "key": f"S{subject}_{image}_{i:05d}",
            "label": label,
            "class_name": class_name(synset),
            "subject": f"S{subject}",
            "block": synset,  # of one person: a class is shown in one uninterrupted stretch
            "tmin_s": FIRST / SFREQ,
            "sfreq": SFREQ,
            "stimulus": image,
            "concept": synset,
            "split": split,
        }
    )
