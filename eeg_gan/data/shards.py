"""Shards on disk: webdataset tars of deterministic bytes under one index.json, written whole or not at all."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from eeg_gan.config import UserError
from eeg_gan.data import card as cards
from eeg_gan.data.splits import NEEDS, digest
from eeg_gan.data.trial import Sample, complete, is_safe_key

# C electrode, T time sample, H height, W width

VERSION = 1
BLOCK = 512  # bytes, of which tars consist
LONGEST_KEY = 90  # letters: tars hold names of 100, and .eeg.npy is part of them
CURE = "run prepare again, or copy the shards again"


def write_shards(
    out_dir: str | Path,
    splits: Mapping[str, Iterable[Sample]],
    shard_samples: int,
    card: cards.Card,
    preprocessing: dict[str, Any],
    split_policy: dict[str, Any],
    dtype: Literal["float32", "float16"] = "float32",
) -> dict[str, Any]:
    """Writes a folder per split and index.json into `out_dir`, returns the index; old shards stay until then."""
    out_dir = Path(out_dir)
    partial = out_dir / ".partial-shards"
    shutil.rmtree(partial, ignore_errors=True)
    writer = _Writer(partial, shard_samples, np.dtype(dtype))
    try:
        listed = {split: writer.split(split, samples) for split, samples in splits.items()}
        keys = {split: [s["key"] for shard in shards for s in shard["samples"]] for split, shards in listed.items()}
        index = {
            "version": VERSION,
            "card": cards.to_dict(card),
            "preprocessing": preprocessing,
            "split_policy": {**split_policy, "digest": digest(keys)},
            "shape": {"eeg": writer.eeg_shape, "image": writer.image_shape, "dtype": dtype},
            "splits": listed,
        }
        _write(partial / "index.json", json.dumps(index, sort_keys=True).encode() + b"\n")
        (out_dir / "index.json").unlink(missing_ok=True)  # no index names a mixture of old and new shards
        for split in listed:
            shutil.rmtree(out_dir / split, ignore_errors=True)
            os.replace(partial / split, out_dir / split)
        os.replace(partial / "index.json", out_dir / "index.json")
        _sync_folder(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


class _Writer:
    """Checks that samples agree with one another and packs them."""

    def __init__(self, folder: Path, shard_samples: int, dtype: np.dtype):
        assert shard_samples > 0, "a shard holds at least one sample"
        self.folder, self.shard_samples, self.dtype = folder, shard_samples, dtype
        self.eeg_shape: list[int] | None = None
        self.image_shape: list[int] | None = None
        self.keys: set[str] = set()

    def split(self, split: str, samples: Iterable[Sample]) -> list[dict[str, Any]]:
        (self.folder / split).mkdir(parents=True)
        listed = []
        for number, some in enumerate(_groups(samples, self.shard_samples)):
            name = f"{split}/{split}-{number:06d}.tar"
            with (self.folder / name).open("wb") as file:
                entries = [self._add(file, split, sample) for sample in some]
                file.write(bytes(2 * BLOCK))
                _sync(file)
            size = (self.folder / name).stat().st_size
            listed.append({"file": name, "bytes": size, "sha256": _sha256(self.folder / name), "samples": entries})
        _sync_folder(self.folder / split)
        return listed

    def _add(self, file: BinaryIO, split: str, sample: Sample) -> dict[str, Any]:
        self._check(sample)
        image_sha256 = None if sample.image is None else image_digest(sample.image)
        meta = complete({**sample.meta, "key": sample.key, "image_sha256": image_sha256, "split": split})
        offset = file.tell()
        # the json comes first, so that metas are read without images
        file.write(_member(f"{sample.key}.json", json.dumps(meta, sort_keys=True).encode()))
        file.write(_member(f"{sample.key}.eeg.npy", _npy(self._cast(sample))))
        if sample.image is not None:
            file.write(_member(f"{sample.key}.png", _png(sample.image)))
        return {"key": sample.key, "offset": offset, "size": file.tell() - offset}

    def _check(self, sample: Sample) -> None:
        assert is_safe_key(sample.key), f"key {sample.key!r} cannot name a file"
        if len(sample.key) > LONGEST_KEY:
            raise UserError(
                f"trial {sample.key}: a key has {LONGEST_KEY} letters at most; give the trial a shorter one"
            )
        if sample.key in self.keys:
            raise UserError(f"trial {sample.key} is there twice; keys name files, so each trial needs its own")
        self.keys.add(sample.key)
        image_shape = None if sample.image is None else list(sample.image.shape)
        if self.eeg_shape is None:
            self.eeg_shape, self.image_shape = list(sample.eeg.shape), image_shape
        if list(sample.eeg.shape) != self.eeg_shape or sample.eeg.ndim != 2:
            raise UserError(
                f"trial {sample.key}: EEG is {list(sample.eeg.shape)}, but others are {self.eeg_shape} "
                "[channels, samples]; cut all trials alike (preprocess.crop_s)"
            )
        if image_shape != self.image_shape:
            raise UserError(
                f"trial {sample.key}: its image is {image_shape}, but others are {self.image_shape}; "
                "give every trial an image, resized to one size, or none"
            )
        if not np.isfinite(sample.eeg).all():
            raise UserError(f"trial {sample.key}: EEG is not finite after preprocessing; remove the trial")

    def _cast(self, sample: Sample) -> np.ndarray:
        with np.errstate(over="ignore"):
            eeg = np.ascontiguousarray(sample.eeg, dtype=self.dtype)
        if not np.isfinite(eeg).all():
            raise UserError(
                f"trial {sample.key}: {np.abs(sample.eeg).max():g} is beyond {self.dtype}; store float32 or scale it"
            )
        return eeg


class Shards:
    """Random access to the samples of the asked splits; every file is checked against the index when opened."""

    def __init__(
        self,
        index_path: str | Path,
        splits: Sequence[str] = ("train", "val"),
        verify: Literal["digest", "size"] = "digest",
    ):
        self.path = Path(index_path)
        self.index, raw = _read_index(self.path)
        self.digest = hashlib.sha256(raw).hexdigest()
        self.card = cards.from_dict(self.index["card"], str(self.path))
        self.preprocessing: dict[str, Any] = self.index["preprocessing"]
        self.split_policy: dict[str, Any] = self.index["split_policy"]
        self.split_digest: str = self.split_policy["digest"]
        self.confounded = bool(self.split_policy.get("confounded"))
        self.channels, self.n_times = self.index["shape"]["eeg"]
        self.has_images = self.index["shape"]["image"] is not None
        self.image_size: int | None = self.index["shape"]["image"][0] if self.has_images else None
        self.opened = tuple(splits)  # what a stage records: "test" in it is one reading of the test split
        for split in splits:
            if split not in self.index["splits"]:
                raise UserError(
                    f"{self.path}: there is no split {split}; it holds {', '.join(self.index['splits'])}; "
                    f"run prepare again with split.{split} above 0 ({NEEDS})"
                )
            for shard in self.index["splits"][split]:
                _check_shard(self.path.parent / shard["file"], shard, verify)
        self._places = {
            split: [
                (shard["file"], s["key"], s["offset"], s["size"])
                for shard in self.index["splits"][split]
                for s in shard["samples"]
            ]
            for split in splits
        }
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._metas: dict[str, list[dict[str, Any]]] = {}

    def n(self, split: str) -> int:
        return len(self._of(split))

    def keys(self, split: str) -> list[str]:
        return [key for _, key, _, _ in self._of(split)]

    def metas(self, split: str) -> list[dict[str, Any]]:
        """The meta of every sample, in order; read once, without EEG and images."""
        if split not in self._metas:
            self._metas[split] = [self._meta(*place) for place in self._of(split)]
        return self._metas[split]

    def labels(self, split: str) -> np.ndarray:
        """[N] int64."""
        return np.array([meta["label"] for meta in self.metas(split)], dtype=np.int64)

    def read(self, split: str, i: int) -> Sample:
        """One sample, by a single read at its offset; safe in threads."""
        file, key, offset, size = self._of(split)[i]
        members = _members(self._bytes(file, offset, size))
        eeg = np.load(io.BytesIO(members[f"{key}.eeg.npy"]), allow_pickle=False).astype(np.float32)
        png = members.get(f"{key}.png")
        image = None if png is None else np.array(Image.open(io.BytesIO(png)).convert("RGB"))
        return Sample(key, eeg, image, json.loads(members[f"{key}.json"]))

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def __del__(self):
        if hasattr(self, "_lock"):
            self.close()

    def _of(self, split: str) -> list[tuple[str, str, int, int]]:
        if split not in self._places:
            raise UserError(
                f"{self.path}: this stage may not read the {split} split, only {', '.join(self._places)}; "
                "nothing is fitted or selected on the test split"
            )
        return self._places[split]

    def _meta(self, file: str, key: str, offset: int, size: int) -> dict[str, Any]:
        header = self._bytes(file, offset, min(size, 4 * BLOCK))
        length = tarfile.TarInfo.frombuf(header[:BLOCK], "utf-8", "strict").size
        if BLOCK + length > len(header):
            header = self._bytes(file, offset, BLOCK + length)
        return json.loads(header[BLOCK : BLOCK + length])

    def _bytes(self, file: str, offset: int, size: int) -> bytes:
        with self._lock:
            if file not in self._files:
                self._files[file] = os.open(self.path.parent / file, os.O_RDONLY)
        part = os.pread(self._files[file], size, offset)
        if len(part) != size:
            raise UserError(f"{self.path.parent / file} ended while it was read; it was truncated since; {CURE}")
        return part


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of the shape and pixels of [H, W, 3] uint8: equal for equal pictures, whatever file they came from."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, f"{image.shape} {image.dtype}"
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _read_index(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        raw = path.read_bytes()
        index = json.loads(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such index; run prepare, or set loader.index to its index.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {CURE}") from None
    if not isinstance(index, dict) or index.get("version") != VERSION:
        found = index.get("version") if isinstance(index, dict) else None
        raise UserError(f"{path} is of version {found}, but version {VERSION} is read here; run prepare again")
    missing = {"card", "preprocessing", "split_policy", "shape", "splits"} - index.keys()
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}; {CURE}")
    return index, raw


def _check_shard(path: Path, shard: dict[str, Any], verify: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: this shard is missing; {CURE}")
    if path.stat().st_size != shard["bytes"]:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes, but index.json says {shard['bytes']}: it was "
            f"truncated or overwritten; {CURE}"
        )
    if verify == "digest" and (found := _sha256(path)) != shard["sha256"]:
        raise UserError(f"{path}: SHA-256 is {found}, but index.json says {shard['sha256']}: its bytes changed; {CURE}")


def _members(raw: bytes) -> dict[str, bytes]:
    members, place = {}, 0
    while place < len(raw):
        info = tarfile.TarInfo.frombuf(raw[place : place + BLOCK], "utf-8", "strict")
        members[info.name] = raw[place + BLOCK : place + BLOCK + info.size]
        place += BLOCK + -(-info.size // BLOCK) * BLOCK
    return members


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # owner 0, time 0: nothing of the writer gets in
    info.size, info.mode, info.mtime = len(content), 0o644, 0
    assert len(name) <= 100, f"{name}: USTAR holds names of 100 characters"
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=6, optimize=False)
    return buffer.getvalue()


def _groups(samples: Iterable[Sample], size: int) -> Iterator[Iterator[Sample]]:
    """Consecutive runs of at most `size`; each must be used up before the next is asked for."""
    iterator = iter(samples)

    def some(first: Sample) -> Iterator[Sample]:
        yield first
        for _, sample in zip(range(size - 1), iterator, strict=False):
            yield sample

    for first in iterator:
        yield some(first)


@cache
def _digest_of(path: str, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(path: Path) -> str:
    """Remembered per (size, time of change): one process opens the same shards for several uses."""
    status = path.stat()
    return _digest_of(str(path), status.st_size, status.st_mtime_ns)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
