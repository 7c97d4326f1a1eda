"""Tiny files in the published formats of cvpr40, thoughtviz and eeg_imagenet; the EEG of trial i is made by `wave`."""

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SYNSETS = ("n02106662", "n02124075", "n02281787", "n02389026")


def wave(i: int, n_chans: int, n_times: int) -> np.ndarray:
    """[C, T] float32 that tells the trial, the channel and the sample."""
    return (i + np.arange(n_chans)[:, None] / 1000 + np.arange(n_times) / 1e6).astype(np.float32)


def image_names(classes: int, images: int) -> list[str]:
    return [f"{SYNSETS[c]}_{100 + k}" for c in range(classes) for k in range(images)]


def cvpr40_pth(path: Path, subjects=2, classes=2, images=5, lengths=(500, 470), raw=True, legacy=False) -> dict:
    """perceivelab's .pth; trials of a person are not in the order of the classes; lengths take turns."""
    names = image_names(classes, images)
    dataset = []
    for subject in range(1, subjects + 1):
        for image in reversed(range(len(names))):
            i = len(dataset)
            eeg = torch.from_numpy(wave(i, 128, lengths[i % len(lengths)]))
            dataset.append({"eeg": eeg, "image": image, "label": image // images, "subject": subject})
    found = {"dataset": dataset, "labels": list(SYNSETS[:classes]), "images": names}
    if raw:
        found |= {"means": torch.zeros(1, 128), "stddevs": torch.ones(1, 128)}
    torch.save(found, path, _use_new_zipfile_serialization=not legacy)
    return found


def cvpr40_splits(path: Path, found: dict, subject: int | None = None) -> None:
    """block_splits_by_image_all.pth, or _single.pth where a subject is named: 3 images train, 1 val, 1 test."""
    trials = [trial for trial in found["dataset"] if subject in (None, trial["subject"])]
    images = len(found["images"]) // len(found["labels"])
    split = {"train": [], "val": [], "test": []}
    for i, trial in enumerate(trials):
        split[{0: "val", 1: "test"}.get(trial["image"] % images, "train")].append(i)
    torch.save({"splits": [split]}, path)


def imagenet_folder(root: Path, names: list[str], flat: bool = False) -> Path:
    """ImageNet's pictures, of any size, one of them grey."""
    for k, name in enumerate(names):
        folder = root if flat else root / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (20 + k, 24), (10 * k % 250, 50, 90))
        (picture.convert("L") if k == 0 else picture).save(folder / f"{name}.JPEG")
    return root


def cvpr40_wacv(root: Path, subjects=2, classes=2, images=5) -> Path:
    """The WACV authors' folder: object arrays [image, eeg, label, id, subject] in train/, val/ and test/."""
    i = 0
    for subject in range(1, subjects + 1):
        for k, name in enumerate(image_names(classes, images)):
            split = {0: "val", 1: "test"}.get(k % images, "train")
            picture = np.full((200 + k, 150, 3), (k, 50, 90), dtype=np.uint8)
            row = [picture, wave(i, 128, 440), k // images, name, subject]
            objects(root / split / f"{name}_{i}.npy", row)
            i += 1
    return root


def objects(path: Path, row: list) -> None:
    """A .npy of an object array, as numpy.save writes it."""
    array = np.empty(len(row), dtype=object)
    array[:] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)


def thoughtviz_arrays(train=40, test=10) -> dict[str, np.ndarray]:
    """Windows of ten classes in turn."""
    x = np.stack([wave(i, 14, 32)[:, :, None] for i in range(train + test)])
    y = np.eye(10)[np.arange(train + test) % 10]
    return {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}


def thoughtviz_pkl(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """data.pkl as Python 2 writes it."""
    items = b"".join(_text2(name) + _array2(array) for name, array in arrays.items())
    path.write_bytes(b"\x80\x02}(" + items + b"u.")


def class_folders(root: Path, names, pictures=3) -> Path:
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(pictures):
            Image.new("RGB", (16, 12), (20 * c, 30 * k, 7)).save(root / name / f"{k}.png")
    return root


def thoughtviz_pairs(root: Path, names=("Apple", "Car"), train=5, test=2) -> Path:
    """{train,test}/CLASS/FILE of object arrays [eeg, label, image]."""
    i = 0
    for part, n in (("train", train), ("test", test)):
        for label, name in enumerate(names):
            for k in range(n):
                picture = np.full((12, 10, 3), i, dtype=np.uint8)
                objects(root / part / name / f"{k}.npy", [wave(i, 14, 32)[:, :, None], label, picture])
                i += 1
    return root


def eeg_imagenet_pth(path: Path, subjects=(0, 1), images=2) -> dict:
    """EEG-ImageNet_1.pth: classes 0 and 1 of the list are fine, 2 and 3 coarse."""
    dataset = []
    for subject in subjects:
        for c, synset in enumerate(SYNSETS):
            for k in range(images):
                trial = {"eeg_data": torch.from_numpy(wave(len(dataset), 62, 500)), "subject": subject}
                trial |= {"granularity": "fine" if c < 2 else "coarse", "label": synset}
                dataset.append(trial | {"image": f"{synset}_{100 + k}.JPEG"})
    found = {"dataset": dataset, "labels": list(SYNSETS), "images": [f"{n}.JPEG" for n in image_names(4, images)]}
    torch.save(found, path)
    return found


def _text2(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def _array2(array: np.ndarray) -> bytes:
    """The opcodes by which numpy 1 under Python 2 pickles an array: its bytes are a string."""
    raw = np.ascontiguousarray(array).tobytes()
    spec = f"{array.dtype.kind}{array.dtype.itemsize}"
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + _text2(spec) + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return start + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
