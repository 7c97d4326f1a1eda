"""Members of a tar, byte for byte: what shards consist of, made and checked without an archive object around them."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.config import UserError

BLOCK = 512  # bytes, of which tars consist
CURE = "run prepare again, or copy the shards again"


def member(name: str, content: bytes) -> bytes:
    """One file of a tar with its header, padded to whole blocks."""
    info = tarfile.TarInfo(name)  # owner 0, time 0: nothing of the writer gets in
    info.size, info.mode, info.mtime = len(content), 0o644, 0
    assert len(name) <= 100, f"{name}: USTAR holds names of 100 characters"
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def span(size: int) -> int:
    """Bytes that a member with a content of `size` bytes takes."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...], dtype: Any) -> bytes:
    """What precedes the values of such an array in a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    )
    return buffer.getvalue()


def contents(raw: bytes, names: list[str], place: str) -> list[memoryview]:
    """The contents of the members `names`, which `raw` must consist of; `place` says where it lies, for errors."""
    found, at, view = [], 0, memoryview(raw)
    for name in names:
        info = header(raw[at : at + BLOCK], name, place)
        if at + BLOCK + info.size > len(raw):
            raise UserError(f"{place}: {name} would have {info.size} bytes there, more than index.json leaves; {CURE}")
        found.append(view[at + BLOCK : at + BLOCK + info.size])
        at += span(info.size)
    if at != len(raw):
        raise UserError(f"{place}: {', '.join(names)} take {at} bytes, but index.json says {len(raw)}; {CURE}")
    return found


def header(block: bytes, name: str, place: str) -> tarfile.TarInfo:
    """The header of a member, which must be that of `name`."""
    try:
        info = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: expected the header of {name}, found damaged bytes ({error}); {CURE}") from None
    if info.name != name:
        raise UserError(
            f"{place}: expected {name}, found {info.name}: the file belongs to another index or was overwritten; {CURE}"
        )
    return info


def place_of(path: str | Path, key: str, offset: int) -> str:
    return f"{path}, sample {key} at byte {offset}"


def check_size(path: Path, size: int) -> None:
    """Refuses a shard that is not there, or not as long as index.json says."""
    try:
        found = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: this shard is missing; index.json says {size} bytes; {CURE}") from None
    if found != size:
        raise UserError(
            f"{path} has {found} bytes, but index.json says {size}: it was truncated or overwritten; {CURE}"
        )
