"""Where the recordings and pictures lie that the scripts of this folder read."""

import argparse
import os
import sys
from pathlib import Path


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=os.environ.get("EEG_GAN_REAL_DATA"), help="default: $EEG_GAN_REAL_DATA")


def located(data: str | None, files: dict[str, str]) -> dict[str, Path]:
    """name -> path of the data folder's files; leaves with a message where one is missing."""
    if not data:
        sys.exit("the folder with the data is not named; set EEG_GAN_REAL_DATA, or give --data FOLDER")
    paths = {name: Path(data) / file for name, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            sys.exit(f"{path}: no such file; the folder needs {', '.join(files.values())}")
    return paths
