"""Published pickles of large arrays, opened without reading the arrays: they become read-only memory maps.

Since protocol 3 a pickle holds an array's bytes as they are, in one piece, so a file of 33 GB opens in no time and no
memory, in as many processes as one likes. What a pickle may ask for is the table of `unpickle`, nothing else.
"""

import math
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.unpickle import ADMITTED, forbidden, plain_dtype

NPY_MAGIC = b"\x93NUMPY"
LEAST = 64 * 1024  # bytes: what is shorter is read; pickle puts what is longer outside of its frames


def load(path: Path) -> Any:
    """What a .npy of objects (numpy.save) or a plain pickle holds; an object of no dimensions is unwrapped."""
    try:
        with path.open("rb") as file:
            if not _to_pickle(file):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            held = _Unpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged program can fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({said}); it is damaged or no such file: download it again") from None
    return held.item() if isinstance(held, np.ndarray) and held.shape == () else held


def peak_bytes(path: Path) -> int:
    """Memory that opening takes: next to none, or about four times the file where its protocol is older than 3."""
    try:
        with path.open("rb") as file:
            old = _to_pickle(file) and not (file.read(1) == pickle.PROTO and ord(file.read(1)) >= 3)
    except Exception:
        return 0  # no pickle: `load` says so
    return 4 * path.stat().st_size if old else 0


def _to_pickle(file: Any) -> bool:
    """Moves to where the pickle starts; False: a plain array, no pickle."""
    if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
        file.seek(0)
        return True
    file.seek(0)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return header(file)[2].hasobject


@dataclass(frozen=True)
class _Span:
    """Bytes that were passed over."""

    offset: int
    length: int


class _Unpickler(pickle._Unpickler):  # the one in Python: the one in C cannot pass over bytes
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="latin1")
        self._file, self._path = file, path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            raise forbidden(self._path, f"{module}.{name}")
        admitted = ADMITTED[f"{module}.{name}"]
        return self._from_buffer if name == "_frombuffer" else admitted

    def _bytes(self, length: int) -> Any:
        if length < LEAST or self._unframer.current_frame is not None:
            return self.read(length)
        span = _Span(self._file.tell(), length)
        if span.offset + length > self._path.stat().st_size:
            raise pickle.UnpicklingError("it ends too early")
        self._file.seek(length, 1)
        return span

    def load_binbytes(self) -> None:
        self.append(self._bytes(struct.unpack("<I", self.read(4))[0]))

    def load_binbytes8(self) -> None:
        self.append(self._bytes(struct.unpack("<Q", self.read(8))[0]))

    def load_bytearray8(self) -> None:
        held = self._bytes(struct.unpack("<Q", self.read(8))[0])
        self.append(held if isinstance(held, _Span) else bytearray(held))

    def load_build(self) -> None:
        state = self.stack[-1]
        if not (isinstance(state, tuple) and state and isinstance(state[-1], _Span)):
            return super().load_build()
        self.stack.pop()
        unbuilt, (_, shape, dtype, fortran, span) = self.stack[-1], state
        mapped = self._map(shape, dtype, fortran, span)
        self.stack[-1] = mapped
        for key, value in self.memo.items():
            if value is unbuilt:
                self.memo[key] = mapped

    def _map(self, shape: Any, dtype: Any, fortran: Any, span: _Span) -> np.ndarray:
        real = plain_dtype(shape, dtype)
        if real.hasobject or math.prod(shape) * real.itemsize != span.length:
            raise pickle.UnpicklingError(f"an array of shape {list(shape)} does not fit its {span.length} bytes")
        return np.memmap(self._path, real, "r", span.offset, shape, "F" if fortran else "C")

    def _from_buffer(self, held: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> np.ndarray:
        if not isinstance(held, _Span):
            return ADMITTED["numpy.core.numeric._frombuffer"](held, dtype, shape, order, *axes)
        if axes and axes[0] is not None:
            raise pickle.UnpicklingError("an array of permuted axes")
        return self._map(shape, dtype, order == "F", held)

    dispatch[pickle.BINBYTES[0]] = load_binbytes
    dispatch[pickle.BINBYTES8[0]] = load_binbytes8
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.BUILD[0]] = load_build
