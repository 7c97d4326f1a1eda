"""Real EEG of a P300 speller (g.tec, 8 electrodes, 5 people) as FIF files, for the source `recordings`.

    python tests/real/make_p300.py OUT [--data FOLDER]
    eeg-gan prepare OUT/prepare.yaml

FOLDER (default: the environment variable EEG_GAN_REAL_DATA) holds p300_speller_gtec8/S1.mat to S5.mat. Each flash
becomes an annotation: target, where the letter that was spelt lit up, or nontarget. There are no pictures.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
import yaml
from scipy.io import loadmat

HELD = "p300_speller_gtec8"
SUBJECTS = range(1, 6)
NAMES = {1: "target", -1: "nontarget"}  # what trig tells at the onset of a flash
log = logging.getLogger("make_p300")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--data", default=os.environ.get("EEG_GAN_REAL_DATA"), help="default: $EEG_GAN_REAL_DATA")
    args = parser.parse_args(argv)
    make(args.out, files(args.data))


def files(data: str | None) -> dict[int, Path]:
    """Subject -> file; leaves with a message where one is missing."""
    if not data:
        sys.exit("the folder with the data is not named; set EEG_GAN_REAL_DATA, or give --data FOLDER")
    paths = {subject: Path(data) / HELD / f"S{subject}.mat" for subject in SUBJECTS}
    for path in paths.values():
        if not path.is_file():
            sys.exit(f"{path}: no such file; the folder needs {HELD}/S1.mat to S5.mat")
    return paths


def make(out: Path, paths: dict[int, Path]) -> None:
    for subject, path in paths.items():
        folder = out / f"sub-{subject:02d}" / "eeg"
        folder.mkdir(parents=True, exist_ok=True)
        n_events = convert(path, folder / f"sub-{subject:02d}_task-spell_eeg.fif")
        log.info("sub-%02d: %d flashes", subject, n_events)
    (out / "prepare.yaml").write_text(yaml.safe_dump(prepare_config(out), sort_keys=False), encoding="utf-8")


def convert(path: Path, target: Path) -> int:
    """Writes one recording as FIF; returns the number of its flashes."""
    import mne

    held = loadmat(path, variable_names=["y", "trig", "fs"])
    volts, trig = held["y"].T.astype(float) * 1e-6, held["trig"].ravel()
    sfreq = float(held["fs"].item())
    info = mne.create_info([f"EEG{c + 1}" for c in range(len(volts))], sfreq, "eeg")
    raw = mne.io.RawArray(volts, info, verbose="error")
    onsets = np.flatnonzero(trig)
    raw.set_annotations(mne.Annotations(onsets / sfreq, 0.0, [NAMES[int(code)] for code in trig[onsets]]))
    raw.save(target, fmt="single", overwrite=True, verbose="error")
    return len(onsets)


def prepare_config(out: Path) -> dict:
    """One person is held out for test, one for validation. Flashes come every 0.17 s, so trials overlap in time."""
    return {
        "run_dir": str(out / "shards"),
        "source": {
            "name": "recordings",
            "path": str(out),
            "recordings": {
                "design": "rsvp",
                "files": "sub-*/eeg/*_eeg.fif",
                "tmin_s": -0.2,
                "tmax_s": 1.0,
                "licence": "none stated (esbenkc/P300-Tweaks)",
                "line_hz": 50,
            },
        },
        "preprocess": {"highpass_hz": 0.5, "lowpass_hz": 20.0, "resample_hz": 125.0, "crop_s": [0.0, 0.8]},
        "split": {"by": "subject", "train": 0.6, "val": 0.2, "test": 0.2},
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
