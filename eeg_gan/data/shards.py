"""Reading shards: random access by the offsets of index.json, with every file checked against it when opened."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data import card as cards
from eeg_gan.data.decoding import decode, read_json
from eeg_gan.data.mapped import Mapped
from eeg_gan.data.splits import NEEDS
from eeg_gan.data.tar import BLOCK, CURE, check_size, contents, header, place_of
from eeg_gan.data.trial import Sample
from eeg_gan.data.verifying import check_digest
from eeg_gan.data.writing import LONGEST_KEY, VERSION, Form, image_digest, write_shards

__all__ = ["LONGEST_KEY", "Shards", "image_digest", "read_index", "write_shards"]
SHARD_NAME = re.compile(r"[\w-]+/[\w.-]+\.tar", re.ASCII)  # in an index
READABLE = (1, VERSION)  # version 1 lacks image_format, which was PNG, and checksums of samples


class Shards:
    """Random access to the samples of the asked splits; every file is checked against the index when opened."""

    def __init__(
        self,
        index_path: str | Path,
        splits: Sequence[str] = ("train", "val"),
        verify: Literal["digest", "size", "none"] = "digest",  # none: the shards lie elsewhere, see data/stream
    ):
        self.path = Path(index_path)
        self.index, raw = read_index(self.path)
        self.digest = hashlib.sha256(raw).hexdigest()
        self.card = cards.from_dict(self.index["card"], str(self.path))
        self.preprocessing: dict[str, Any] = self.index["preprocessing"]
        self.split_policy: dict[str, Any] = self.index["split_policy"]
        self.split_digest: str = self.split_policy["digest"]
        self.confounded = bool(self.split_policy.get("confounded"))
        self.form = _form(self.index["shape"])
        self.channels, self.n_times = self.form.eeg_shape
        self.has_images = self.form.image_shape is not None
        self.image_size: int | None = self.form.image_shape[0] if self.has_images else None
        self.opened = tuple(splits)  # what a stage records: "test" in it is one reading of the test split
        for split in splits:
            if split not in self.index["splits"]:
                raise UserError(
                    f"{self.path}: there is no split {split}; it holds {', '.join(self.index['splits'])}; "
                    f"run prepare again with split.{split} above 0 ({NEEDS})"
                )
            for shard in self.index["splits"][split] if verify != "none" else ():
                check_size(self.path.parent / shard["file"], shard["bytes"])
                if verify == "digest":
                    check_digest(self.path.parent / shard["file"], shard, self.form)
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
        place = place_of(self.path.parent / file, key, offset)
        meta, *arrays = contents(self._bytes(file, key, offset, size), self._names(key), place)
        eeg, image = decode(arrays, self.form, place)
        return Sample(key, eeg, image, read_json(meta, place))

    def mapped(self, split: str, cache_bytes: int = 0) -> Mapped:
        """Whole batches of a split, through memory maps."""
        sizes = {shard["file"]: shard["bytes"] for shard in self.index["splits"][split]}
        return Mapped(self.path.parent, self._of(split), sizes, self.form, cache_bytes)

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

    def _names(self, key: str) -> list[str]:
        return [f"{key}.{name}" for name in ("json", *self.form.members)]

    def _meta(self, file: str, key: str, offset: int, size: int) -> dict[str, Any]:
        raw = self._bytes(file, key, offset, min(size, 4 * BLOCK))
        place = place_of(self.path.parent / file, key, offset)
        length = header(raw[:BLOCK], f"{key}.json", place).size
        if BLOCK + length > len(raw):
            raw = self._bytes(file, key, offset, min(size, BLOCK + length))
        return read_json(raw[BLOCK : BLOCK + length], place)

    def _bytes(self, file: str, key: str, offset: int, size: int) -> bytes:
        part = os.pread(self._descriptor(file), size, offset)
        if len(part) != size:
            raise UserError(
                f"{place_of(self.path.parent / file, key, offset)}: expected {size} bytes, found {len(part)}: the file "
                f"was truncated since it was opened; {CURE}"
            )
        return part

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._files:
                try:
                    self._files[file] = os.open(self.path.parent / file, os.O_RDONLY)
                except FileNotFoundError:
                    raise UserError(f"{self.path.parent / file}: this shard is missing; {CURE}") from None
            return self._files[file]


def read_index(path: Path) -> tuple[dict[str, Any], bytes]:
    """The content of an index.json, and its bytes."""
    try:
        raw = path.read_bytes()
        index = json.loads(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such index; run prepare, or set loader.index to its index.json") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; set loader.index to the index.json that prepare wrote there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {CURE}") from None
    if not isinstance(index, dict) or index.get("version") not in READABLE:
        found = index.get("version") if isinstance(index, dict) else None
        raise UserError(
            f"{path} is of version {found}, but versions {' and '.join(map(str, READABLE))} are read here; "
            "run prepare again"
        )
    missing = {"card", "preprocessing", "split_policy", "shape", "splits"} - index.keys()
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}; {CURE}")
    for split, shards in index["splits"].items():
        for shard in shards:  # names become paths, addresses and words of commands
            if not SHARD_NAME.fullmatch(str(shard.get("file"))):
                raise UserError(f"{path}: {split} lists {shard.get('file')!r}, which is no name of a shard; {CURE}")
    return index, raw


def _form(shape: dict[str, Any]) -> Form:
    """The form that an index describes; version 1 knew PNG only."""
    image = None if shape["image"] is None else tuple(shape["image"])
    return Form(tuple(shape["eeg"]), image, shape.get("dtype", "float32"), shape.get("image_format", "png"))
