"""Real EEG of people who look at faces and houses (Muse headband, 5 electrodes), in the `folder` form.

    python tests/real/make_muse.py OUT [--data FOLDER]
    eeg-gan prepare OUT/prepare.yaml

FOLDER (default: the environment variable EEG_GAN_REAL_DATA) holds muse_n170/muse_n170.npz and muse_n170/stimuli. Which
picture was seen on which trial was not logged, so pictures are paired by class: each recording has three faces and
three houses of its own, so that no split by recording shares a picture.
"""

import argparse
import csv
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import yaml

HELD, PICTURES = "muse_n170/muse_n170.npz", "muse_n170/stimuli"
FOLDERS = {"face": "faces", "house": "houses"}  # class -> folder of its pictures
COLUMNS = ("key", "index", "label", "subject", "session", "run", "recording", "onset", "image")
log = logging.getLogger("make_muse")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--data", default=os.environ.get("EEG_GAN_REAL_DATA"), help="default: $EEG_GAN_REAL_DATA")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures")
    args = parser.parse_args(argv)
    make(args.out, folder_of_data(args.data), args.seed)


def folder_of_data(data: str | None) -> Path:
    """The data folder; leaves with a message where something is missing."""
    if not data:
        sys.exit("the folder with the data is not named; set EEG_GAN_REAL_DATA, or give --data FOLDER")
    for name in (HELD, PICTURES):
        if not (Path(data) / name).exists():
            sys.exit(f"{Path(data) / name}: not there; the folder needs {HELD} and {PICTURES}")
    return Path(data)


def make(out: Path, data: Path, seed: int) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    with np.load(data / HELD, allow_pickle=False) as file:
        held = {name: file[name] for name in file}
    np.save(out / "eeg.npy", held["x_i16"].astype(np.float32) * np.float32(held["uv_per_lsb"]))
    trials = list_trials(held)
    pair_with_pictures(trials, data / PICTURES, out, seed)
    with (out / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(trials)
    (out / "dataset.yaml").write_text(yaml.safe_dump(card(held), sort_keys=False), encoding="utf-8")
    (out / "prepare.yaml").write_text(yaml.safe_dump(prepare_config(out), sort_keys=False), encoding="utf-8")
    log.info("%d trials of %d recordings", len(trials), len({trial["recording"] for trial in trials}))


def list_trials(held: dict[str, np.ndarray]) -> list[dict[str, str]]:
    trials = []
    for i, (label, subject, recording) in enumerate(
        zip(held["label"].tolist(), held["subject"].tolist(), held["recording"].tolist(), strict=True)
    ):
        file = Path(str(held["recording_files"][recording]))
        trials.append(
            {
                "key": f"trial-{i:05d}",
                "index": str(i),
                "label": str(held["classes"][label]),
                "subject": f"S{subject}",
                "session": file.parent.name,
                "run": file.stem.removeprefix("data_").replace(".", "-"),
                "recording": f"R{recording:02d}",
                "onset": f"{held['onset_s'][i]:.6f}",
            }
        )
    return trials


def pair_with_pictures(trials: list[dict[str, str]], pictures: Path, out: Path, seed: int) -> None:
    """Gives each trial a picture of its class that no other recording has, and copies it below `out`."""
    recordings = sorted({trial["recording"] for trial in trials})
    for k, (label, folder) in enumerate(FOLDERS.items()):
        rng, files = np.random.default_rng([seed, k]), sorted((pictures / folder).glob("*.jpg"))
        shares = np.array_split(rng.permutation(len(files)), len(recordings))
        share_of = dict(zip(recordings, shares, strict=True))
        for trial in trials:
            if trial["label"] == label:
                file = files[rng.choice(share_of[trial["recording"]])]
                trial["image"] = f"images/{label}-{file.name}"
                if not (out / trial["image"]).exists():
                    shutil.copyfile(file, out / trial["image"])


def card(held: dict[str, np.ndarray]) -> dict:
    return {
        "name": "muse-n170",
        "sfreq": float(held["fs"]),
        "ch_names": [str(name) for name in held["channels"]],
        "design": "event-randomised",
        "class_names": [str(name) for name in held["classes"]],
        "licence": "BSD-3-Clause (EEG), CC BY-SA 3.0 (pictures)",
        "source": "EEG: NeuroTechX/eeg-notebooks; pictures: Haxby et al. 2001",
        "pairing": "class",
        "line_hz": 60,
        "tmin_s": float(held["tmin"]),
        "description": "Faces and houses at home, dry electrodes. Which picture was seen was not logged: pictures are "
        "any of the class, other ones in each recording. Trials of 1.2 s overlap, for pictures came faster: hold out "
        "whole recordings.",
    }


def prepare_config(out: Path) -> dict:
    """Five of fifteen recordings are held out: three for test, two for validation, drawn by seed."""
    return {
        "run_dir": str(out / "shards"),
        "source": {"name": "folder", "path": str(out)},
        "preprocess": {"highpass_hz": 1.0, "lowpass_hz": 30.0, "baseline": True, "crop_s": [-0.1, 0.8]},
        "split": {"by": "recording", "train": 0.66, "val": 0.14, "test": 0.2},
        "image_size": 64,
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
