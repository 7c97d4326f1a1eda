"""Shards on disk: webdataset tars of deterministic bytes under one index.json, written whole or not at all."""

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from eeg_gan.config import UserError
from eeg_gan.data import card as cards
from eeg_gan.data import png
from eeg_gan.data.splits import digest
from eeg_gan.data.tar import BLOCK, member, npy
from eeg_gan.data.trial import Sample, complete, is_safe_key

# C electrode, T time sample, H height, W width

VERSION = 2  # 1 had PNG only and no checksums of samples
LONGEST_KEY = 90  # letters: tars hold names of 100, and .eeg.npy is part of them
JPEG_QUALITY = 95
SUFFIX = {"png": "png", "jpg": "jpg", "npy": "img.npy"}  # of the image's member
ImageFormat = Literal["png", "jpg", "npy"]
Dtype = Literal["float32", "float16"]


class Picture(NamedTuple):
    """An image as shards hold it."""

    sha256: str  # of shape and pixels
    shape: tuple[int, ...]
    content: bytes


class Form(NamedTuple):
    """What all samples of a data set have in common."""

    eeg_shape: tuple[int, ...]
    image_shape: tuple[int, ...] | None
    dtype: Dtype = "float32"
    image_format: ImageFormat = "png"

    @property
    def members(self) -> tuple[str, ...]:
        """Of every sample, after its json: EEG and image."""
        return ("eeg.npy",) if self.image_shape is None else ("eeg.npy", SUFFIX[self.image_format])

    def described(self) -> dict[str, Any]:
        """The `shape` of index.json."""
        image = None if self.image_shape is None else list(self.image_shape)
        return {"eeg": list(self.eeg_shape), "image": image, "dtype": self.dtype, "image_format": self.image_format}


def write_shards(
    out_dir: str | Path,
    splits: Mapping[str, Iterable[Sample]],
    shard_samples: int,
    card: cards.Card,
    preprocessing: dict[str, Any],
    split_policy: dict[str, Any],
    dtype: Dtype = "float32",
    image_format: ImageFormat = "png",
) -> dict[str, Any]:
    """Writes a folder per split and index.json into `out_dir`, returns the index; old shards stay until then."""
    partial = Path(out_dir) / ".partial-shards"
    shutil.rmtree(partial, ignore_errors=True)
    form, keys, listed = None, set[str](), dict[str, list]()
    try:
        for split, samples in splits.items():
            listed[split] = []
            (partial / split).mkdir(parents=True)
            for number, some in enumerate(_groups(samples, shard_samples)):
                first = next(some)
                form = form or form_of(first, dtype, image_format)
                packed = (_packed(sample, form, keys) for sample in (first, *some))
                listed[split].append(write_shard(partial, split, number, packed, form))
        index = index_of(listed, card, preprocessing, split_policy, form)
        publish(Path(out_dir), partial, index)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def write_shard(
    folder: Path, split: str, number: int, samples: Iterable[tuple[str, np.ndarray, Picture | None, dict]], form: Form
) -> dict[str, Any]:
    """One tar of (key, EEG [C, T], picture, meta), whole or not there; returns what index.json says of it."""
    name = shard_name(split, number)
    path, entries, sha = folder / name, [], hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.partial", "wb") as file:
        for key, eeg, picture, meta in samples:
            raw = pack(key, eeg, picture, {**meta, "split": split}, form)
            entries.append({"key": key, "offset": file.tell(), "size": len(raw), "crc32": zlib.crc32(raw)})
            file.write(raw)
            sha.update(raw)
        file.write(bytes(2 * BLOCK))
        sha.update(bytes(2 * BLOCK))
        size = file.tell()
        sync(file)
    os.replace(f"{path}.partial", path)
    return {"file": name, "bytes": size, "sha256": sha.hexdigest(), "samples": entries}


def shard_name(split: str, number: int) -> str:
    return f"{split}/{split}-{number:06d}.tar"


def pack(key: str, eeg: np.ndarray, picture: Picture | None, meta: dict[str, Any], form: Form) -> bytes:
    """A sample as tar members: the json, so that metas are read without images, then EEG and image.

    The last two have one length for all samples where the image is an array, so their places follow from the end.
    """
    check_key(key)
    check_form(key, eeg, None if picture is None else picture.shape, form)
    meta = complete({**meta, "key": key, "image_sha256": None if picture is None else picture.sha256})
    raw = member(f"{key}.json", json.dumps(meta, sort_keys=True).encode())
    raw += member(f"{key}.eeg.npy", npy(_cast(key, eeg, form.dtype)))
    return raw if picture is None else raw + member(f"{key}.{SUFFIX[form.image_format]}", picture.content)


def encode_image(image: np.ndarray, image_format: ImageFormat) -> Picture:
    """[H, W, 3] uint8 as the bytes of its member."""
    if image_format == "npy":
        return Picture(image_digest(image), image.shape, npy(np.ascontiguousarray(image)))
    if image_format == "png":
        return Picture(image_digest(image), image.shape, png.encode(image))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return Picture(image_digest(image), image.shape, buffer.getvalue())


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of the shape and pixels of [H, W, 3] uint8: equal for equal pictures, whatever file they came from."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, f"{image.shape} {image.dtype}"
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def form_of(sample: Sample, dtype: Dtype, image_format: ImageFormat) -> Form:
    return Form(sample.eeg.shape, None if sample.image is None else sample.image.shape, dtype, image_format)


def check_key(key: str) -> None:
    assert is_safe_key(key), f"key {key!r} cannot name a file"
    if len(key) > LONGEST_KEY:
        raise UserError(f"trial {key}: a key has {LONGEST_KEY} letters at most; give the trial a shorter one")


def check_unique(key: str, keys: set[str]) -> None:
    """Refuses a key that is in `keys`, and adds it."""
    if key in keys:
        raise UserError(f"trial {key} is there twice; keys name files, so each trial needs its own")
    keys.add(key)


def check_form(key: str, eeg: np.ndarray, image_shape: tuple[int, ...] | None, form: Form) -> None:
    """Refuses a sample that is not like the others."""
    if eeg.shape != tuple(form.eeg_shape) or eeg.ndim != 2:
        raise UserError(
            f"trial {key}: EEG is {list(eeg.shape)}, but others are {list(form.eeg_shape)} "
            "[channels, samples]; cut all trials alike (preprocess.crop_s)"
        )
    if image_shape != form.image_shape:
        own, others = (None if shape is None else list(shape) for shape in (image_shape, form.image_shape))
        raise UserError(
            f"trial {key}: its image is {own}, but others are {others}; "
            "give every trial an image, resized to one size, or none"
        )
    if not np.isfinite(eeg).all():
        raise UserError(f"trial {key}: EEG is not finite after preprocessing; remove the trial")


def index_of(
    listed: dict[str, list],
    card: cards.Card,
    preprocessing: dict[str, Any],
    split_policy: dict[str, Any],
    form: Form | None,
) -> dict[str, Any]:
    """The content of index.json; None as form stands for no sample at all."""
    return {
        "version": VERSION,
        "card": cards.to_dict(card),
        "preprocessing": preprocessing,
        "split_policy": {**split_policy, "digest": digest(keys_of(listed))},
        "shape": form.described() if form else {"eeg": None, "image": None},
        "splits": listed,
    }


def keys_of(listed: dict[str, list]) -> dict[str, list[str]]:
    """The keys of each split of an index, in order."""
    return {split: [s["key"] for shard in shards for s in shard["samples"]] for split, shards in listed.items()}


def publish(out_dir: Path, partial: Path, index: dict[str, Any]) -> None:
    """Moves finished shards from `partial` into place and writes their index."""
    with open(partial / "index.json", "wb") as file:
        file.write(json.dumps(index, sort_keys=True).encode() + b"\n")
        sync(file)
    (out_dir / "index.json").unlink(missing_ok=True)  # no index names a mixture of old and new shards
    for split in index["splits"]:
        (partial / split).mkdir(exist_ok=True)
        sync_folder(partial / split)
        shutil.rmtree(out_dir / split, ignore_errors=True)
        os.replace(partial / split, out_dir / split)
    os.replace(partial / "index.json", out_dir / "index.json")
    sync_folder(out_dir)


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _packed(sample: Sample, form: Form, keys: set[str]) -> tuple[str, np.ndarray, Picture | None, dict]:
    check_unique(sample.key, keys)
    picture = None if sample.image is None else encode_image(sample.image, form.image_format)
    return sample.key, sample.eeg, picture, sample.meta


def _cast(key: str, eeg: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(eeg, dtype=dtype)
    if dtype == "float16" and not np.isfinite(cast).all():
        raise UserError(f"trial {key}: {np.abs(eeg).max():g} is beyond {dtype}; store float32 or scale it")
    return cast


def _groups(samples: Iterable[Sample], size: int) -> Iterator[Iterator[Sample]]:
    """Consecutive runs of at most `size`; each must be used up before the next is asked for."""
    assert size > 0, "a shard holds at least one sample"
    iterator = iter(samples)

    def some(first: Sample) -> Iterator[Sample]:
        yield first
        for _, sample in zip(range(size - 1), iterator, strict=False):
            yield sample

    for first in iterator:
        yield some(first)
