"""Whether shards still are what index.json says, and where exactly they are not."""

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from eeg_gan.config import UserError
from eeg_gan.data.tar import CURE, check_size, contents, place_of
from eeg_gan.data.writing import Form


def check_digest(path: Path, shard: dict[str, Any], form: Form) -> None:
    """Refuses a shard whose bytes are not those of the index, and names its first wrong sample."""
    found = file_digest(path)
    if found != shard["sha256"]:
        wrong = next(wrong_samples(path, shard, form), "")
        raise UserError(
            f"{path}: SHA-256 is {found}, but index.json says {shard['sha256']}: its bytes changed; "
            + (f"{wrong}; " if wrong else "")
            + CURE
        )


def problems(folder: Path, index: dict[str, Any], split: str, form: Form) -> Iterator[str]:
    """Everything that is wrong with the shards of a split, every byte of which is read."""
    listed = {shard["file"] for shard in index["splits"][split]}
    for path in sorted((folder / split).glob("*")):
        if f"{split}/{path.name}" not in listed:
            yield f"{path}: foreign: index.json lists no such file; expected only its {len(listed)} shards"
    for shard in index["splits"][split]:
        path = folder / shard["file"]
        try:
            check_size(path, shard["bytes"])
        except UserError as error:
            yield str(error)
        if path.is_file() and _digest(path) != shard["sha256"]:
            wrong = list(wrong_samples(path, shard, form))
            yield from wrong or [
                f"{path}: SHA-256 is {_digest(path)}, but index.json says {shard['sha256']}, and no sample is wrong: "
                "the bytes between or after them changed"
            ]


def wrong_samples(path: Path, shard: dict[str, Any], form: Form) -> Iterator[str]:
    """A line for each sample that is damaged, foreign or cut off."""
    with open(path, "rb") as file:
        for sample in shard["samples"]:
            file.seek(sample["offset"])
            try:
                checked(file.read(sample["size"]), sample, form.members, path)
            except UserError as error:
                yield str(error).removesuffix(f"; {CURE}")


def checked(raw: bytes, sample: dict[str, Any], members: Sequence[str], path: str | Path) -> list[memoryview]:
    """The contents of a sample's json and other `members`; raises UserError where index.json says something else."""
    place = place_of(path, sample["key"], sample["offset"])
    if len(raw) < sample["size"]:
        raise UserError(f"{place}: expected {sample['size']} bytes, found {len(raw)}: the file is truncated; {CURE}")
    found = contents(raw, [f"{sample['key']}.{name}" for name in ("json", *members)], place)
    crc32 = zlib.crc32(raw)
    if crc32 != sample.get("crc32", crc32):
        raise UserError(f"{place}: damaged: expected CRC-32 {sample['crc32']:08x}, found {crc32:08x}; {CURE}")
    return found


def file_digest(path: Path) -> str:
    """SHA-256, remembered per (size, time of change): one process opens the same shards for several uses."""
    status = os.stat(path)
    return _remembered(str(path), status.st_size, status.st_mtime_ns)


@cache
def _remembered(path: str, size: int, changed_ns: int) -> str:
    return _digest(Path(path))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
