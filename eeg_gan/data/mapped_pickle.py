"""Published pickles of large arrays, opened without reading the arrays: they become read-only memory maps.

Since protocol 3 a pickle holds an array's bytes as they are, in one piece, so a file of 33 GB opens in no time and no
memory, in as many processes as one likes. Only numpy arrays, scalars and plain containers are admitted; any other
name that the pickle asks for is refused before it is imported.
"""

import codecs
import math
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.config import UserError

NPY_MAGIC = b"\x93NUMPY"
LEAST = 64 * 1024  # bytes: what is shorter is read; pickle puts what is longer outside of its frames
DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError, struct.error)


def load(path: Path) -> Any:
    """What a .npy of objects (numpy.save) or a plain pickle holds; an object of no dimensions is unwrapped."""
    try:
        with path.open("rb") as file:
            if not _to_pickle(file):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            held = _Unpickler(file, path).load()
    except UserError:
        raise
    except DAMAGE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({said}); it is damaged or no such file: download it again") from None
    return held.item() if isinstance(held, np.ndarray) and held.shape == () else held


def peak_bytes(path: Path) -> int:
    """Memory that opening takes: next to none, or about four times the file where its protocol is older than 3."""
    try:
        with path.open("rb") as file:
            old = _to_pickle(file) and not (file.read(1) == pickle.PROTO and ord(file.read(1)) >= 3)
    except DAMAGE:
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


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return codecs.encode(text, "latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    multiarray = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    found: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for home in ("numpy.core", "numpy._core"):
        found[f"{home}.multiarray", "_reconstruct"], found[f"{home}.multiarray", "scalar"] = multiarray
    return found


class _Unpickler(pickle._Unpickler):  # the one in Python: the one in C cannot pass over bytes
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, path: Path):
        super().__init__(file)
        self._file, self._path, self._allowed = file, path, _allowed()
        for home in ("numpy.core", "numpy._core"):  # protocol 5
            self._allowed[f"{home}.numeric", "_frombuffer"] = self._from_buffer

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise UserError(
                f"{self._path} asks for {module}.{name}, but published data hold numpy arrays and plain containers "
                "only; nothing of it was run: take the file from its authors"
            )
        return self._allowed[module, name]

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
        unbuilt, mapped = self.stack[-1], self._map(*state)
        self.stack[-1] = mapped
        for key, value in self.memo.items():
            if value is unbuilt:
                self.memo[key] = mapped

    def _map(self, version: int, shape: tuple, dtype: np.dtype, fortran: bool, span: _Span) -> np.ndarray:
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != span.length:
            raise pickle.UnpicklingError(f"an array of shape {shape} does not fit its {span.length} bytes")
        return np.memmap(self._path, dtype, "r", span.offset, shape, "F" if fortran else "C")

    def _from_buffer(self, held: Any, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
        if isinstance(held, _Span):
            return self._map(1, shape, dtype, order == "F", held)
        return np.frombuffer(held, dtype=dtype).reshape(shape, order=order)

    dispatch[pickle.BINBYTES[0]] = load_binbytes
    dispatch[pickle.BINBYTES8[0]] = load_binbytes8
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.BUILD[0]] = load_build
