"""What the sources of published files share: checks that say what was expected, pictures by ImageNet name, synsets."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eeg_gan.config import UserError

AGAIN = "download or copy the file again"
PICTURES = (".jpeg", ".jpg", ".png")
SYNSET = re.compile(r"n\d{8}")
IMAGE_NAME = re.compile(r"n\d{8}_\d+")


def expect_keys(found: Any, wanted: Iterable[str], where: str) -> None:
    """Refuses a file or record that is not a mapping with these keys."""
    wanted = list(wanted)
    if not isinstance(found, Mapping):
        raise UserError(
            f"{where} holds {describe(found)}, but a dict with {', '.join(wanted)} was expected; "
            "name the published file, not one made of it"
        )
    missing = [key for key in wanted if key not in found]
    if missing:
        listed = ", ".join(map(str, list(found)[:8])) + (", ..." if len(found) > 8 else "")
        raise UserError(
            f"{where} has no {', '.join(missing)}: expected {', '.join(wanted)}, found {listed or 'nothing'}; "
            "name the published file, not one made of it"
        )


def describe(value: Any) -> str:
    """A value's shape, or its type, for errors."""
    shape = getattr(value, "shape", None)
    return f"an array {list(shape)}" if shape is not None else f"a {type(value).__name__}"


def expect_lists(found: Mapping, keys: Iterable[str], where: str) -> None:
    """Refuses a file in which one of these is no list."""
    for key in keys:
        if not isinstance(found[key], (list, tuple)):
            raise UserError(f"{where}: {key} is {describe(found[key])}, but a list was expected; {AGAIN}")


def whole(value: Any, where: str) -> int:
    """A whole number that Python, numpy or torch wrote; `where` says which."""
    value = value.item() if getattr(value, "shape", None) == () else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where} is {value!r:.40}, but a whole number was expected; {AGAIN}")
    return value


def finite(eeg: np.ndarray, where: str) -> np.ndarray:
    """[C, T] as float32, refused where a value is not a number."""
    eeg = np.ascontiguousarray(eeg, dtype=np.float32)
    if not np.isfinite(eeg).all():
        channel, sample = np.argwhere(~np.isfinite(eeg))[0]
        raise UserError(
            f"{where} holds {eeg[channel, sample]} (channel {channel}, sample {sample}); the published data have none: "
            f"{AGAIN}"
        )
    return eeg


def read_rgb(path: Path) -> np.ndarray:
    """The picture of a file, [H, W, 3] uint8 RGB; grey and CMYK files are converted."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image cannot be read ({error}); copy it again from its data set") from None


def rgb_array(image: Any, where: str) -> np.ndarray:
    """A stored picture, checked to be [H, W, 3] uint8."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"{where}: its image is {describe(image)}, but [height, width, 3] of uint8 was expected")
    return np.asarray(image)


def natural(path: Path) -> list:
    """Sorts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, in natural order."""
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file()), key=natural)


def find_imagenet(root: str | Path, names: Iterable[str], key: str) -> dict[str, Path]:
    """Name such as n02106662_1152 -> its file in an ImageNet folder, by synset or flat; `key` sets that folder."""
    root, names = Path(root), sorted(set(names))
    if not root.is_dir():
        raise UserError(f"{key}={root}: no such folder; name the one that holds ImageNet's pictures, or null for none")
    files = {}
    for folder in (root, *(root / synset for synset in sorted({synset_of(name) for name in names}))):
        if folder.is_dir():
            listed = map(Path, sorted(entry.path for entry in os.scandir(folder)))
            files |= {path.stem: path for path in listed if path.suffix.lower() in PICTURES}
    missing = [name for name in names if name not in files]
    if missing:
        raise UserError(
            f"{key}={root}: {len(missing)} of the {len(names)} pictures are missing, the first {', '.join(missing[:3])}"
            "; it must hold SYNSET/NAME.JPEG or NAME.JPEG, as ImageNet's training set does; null prepares EEG alone"
        )
    return {name: files[name] for name in names}


def synset_of(name: str) -> str:
    return name.split("_")[0]


def class_name(synset: str) -> str:
    """The name that WordNet gives a synset, or its number where it is in neither data set."""
    return SYNSETS.get(synset, synset)


SYNSETS = {  # of EEGCVPR40 (the first 40) and EEG-ImageNet
    "n02106662": "German shepherd",
    "n02124075": "Egyptian cat",
    "n02281787": "lycaenid butterfly",
    "n02389026": "sorrel",
    "n02492035": "capuchin",
    "n02504458": "African elephant",
    "n02510455": "giant panda",
    "n02607072": "anemone fish",
    "n02690373": "airliner",
    "n02906734": "broom",
    "n02951358": "canoe",
    "n02992529": "cellular telephone",
    "n03063599": "coffee mug",
    "n03100240": "convertible",
    "n03180011": "desktop computer",
    "n03197337": "digital watch",
    "n03272010": "electric guitar",
    "n03272562": "electric locomotive",
    "n03297495": "espresso maker",
    "n03376595": "folding chair",
    "n03445777": "golf ball",
    "n03452741": "grand piano",
    "n03584829": "iron",
    "n03590841": "jack-o'-lantern",
    "n03709823": "mailbag",
    "n03773504": "missile",
    "n03775071": "mitten",
    "n03792782": "mountain bike",
    "n03792972": "mountain tent",
    "n03877472": "pajama",
    "n03888257": "parachute",
    "n03982430": "pool table",
    "n04044716": "radio telescope",
    "n04069434": "reflex camera",
    "n04086273": "revolver",
    "n04120489": "running shoe",
    "n07753592": "banana",
    "n07873807": "pizza",
    "n11939491": "daisy",
    "n13054560": "bolete",
    "n02099601": "golden retriever",
    "n02099712": "Labrador retriever",
    "n02106166": "Border collie",
    "n02106550": "Rottweiler",
    "n02107142": "Doberman",
    "n02110185": "Siberian husky",
    "n02111889": "Samoyed",
    "n02112826": "corgi",
    "n01443537": "goldfish",
    "n01456756": "seahorse",
    "n01484850": "great white shark",
    "n01494475": "hammerhead",
    "n01496331": "electric ray",
    "n02630281": "sailfish",
    "n02643566": "lionfish",
    "n02655020": "puffer",
    "n07740461": "Red Delicious",
    "n07745940": "strawberry",
    "n07749192": "navel orange",
    "n07753275": "pineapple",
    "n07756951": "watermelon",
    "n07758680": "grape",
    "n07772935": "coconut",
    "n12144580": "corn",
    "n02701002": "ambulance",
    "n02901620": "brigantine",
    "n03384352": "forklift",
    "n03690473": "lorry",
    "n03790512": "motorcycle",
    "n03845190": "oil tanker",
    "n04389033": "tank",
    "n04465666": "tractor",
    "n02672831": "accordion",
    "n02992211": "cello",
    "n03372029": "flute",
    "n03495258": "harp",
    "n03838899": "oboe",
    "n03884397": "panpipe",
    "n04249415": "snare drum",
    "n04487394": "trombone",
}
