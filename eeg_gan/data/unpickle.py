"""Published pickles without running what they hold: numpy arrays and plain containers are built, all else is refused.

A pickle is a program that may call any function of any module. Here every name that it asks for is looked up in one
short table; the functions in it are our own and build arrays only from bytes whose size was checked, so that a crafted
dtype cannot make numpy follow foreign pointers. numpy's allow_pickle=True is never used.
"""

import math
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from eeg_gan.config import UserError

PICKLE_PEAK = 3  # times the file's size: the file's text, its bytes, and the array made of them
LEGACY_PEAK = 1.1  # times the file's size: every storage, read once
LARGE = 1 << 16  # bytes; pickles hold what is larger outside of their frames
PLAIN_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}|O[48]?)")
CURE = "download or copy it again"


class ForbiddenGlobal(UserError):
    """A pickle asks for a function or class that no data need; it was not called."""


class _Fixed(type):
    """Classes whose attributes a pickle cannot set."""

    def __setattr__(cls, name, value):
        raise pickle.UnpicklingError(f"it sets {name} of a class")


class _DType(metaclass=_Fixed):
    """A dtype of numbers, text or objects; records and sub-arrays are refused."""

    __slots__ = ("spec", "order")

    def __new__(cls, spec, align=False, copy=False):
        if not isinstance(spec, str) or not PLAIN_DTYPE.fullmatch(spec):
            raise pickle.UnpicklingError(f"it holds an array of type {str(spec)[:40]!r}")
        self = object.__new__(cls)
        self.spec, self.order = spec, "="
        return self

    def __setstate__(self, state):
        order, *structure = state[1:5]
        if order not in ("<", ">", "|", "=") or structure != [None] * 3:
            raise pickle.UnpicklingError("it holds a structured array")
        self.order = order

    def real(self) -> np.dtype:
        if self.spec.lstrip("<>|=").startswith("O"):
            return np.dtype(object)
        return np.dtype(self.spec).newbyteorder(self.order if self.order in "<>" else "=")


class _Array(np.ndarray, metaclass=_Fixed):
    """An array that takes only a state whose size fits its shape."""

    __slots__ = ()

    def __new__(cls):
        return np.ndarray.__new__(cls, (0,))

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        np.ndarray.__setstate__(self, (1, shape, *_checked(shape, dtype, fortran, raw)))

    def __reduce_ex__(self, protocol):
        return np.asarray(self).__reduce_ex__(protocol)


class _reconstruct(metaclass=_Fixed):
    def __new__(cls, subtype, shape, typecode):
        if subtype is not _Array:
            raise pickle.UnpicklingError("it builds an array of a foreign class")
        return _Array()


class _scalar(metaclass=_Fixed):
    def __new__(cls, dtype, raw):
        real, _, raw = _checked((1,), dtype, False, raw)
        if real.hasobject:
            raise pickle.UnpicklingError("it holds a scalar that is an object")
        return np.frombuffer(raw, real)[0]


class _frombuffer(metaclass=_Fixed):
    def __new__(cls, buffer, dtype, shape, order, *axes):
        self = _Array()
        self.__setstate__((1, shape, dtype, order == "F", bytes(buffer)))
        if axes and axes[0] is not None:
            raise pickle.UnpicklingError("it holds an array of permuted axes")
        return self


class _encode(metaclass=_Fixed):
    """Bytes of Python 2, which newer pickles hold as text."""

    def __new__(cls, text, encoding="latin1"):
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it encodes by {str(encoding)[:40]!r}")
        return text.encode("latin1")


class _bytes(metaclass=_Fixed):
    def __new__(cls):
        return b""


class _bytearray(metaclass=_Fixed):
    def __new__(cls, value=b"", encoding="latin1"):
        return bytearray(_encode(value, encoding) if isinstance(value, str) else bytes(memoryview(value)))


def _admitted() -> dict[str, Any]:
    """Name in a pickle -> what stands for it here, of numpy 1 and 2 and of Python 2 and 3."""
    table = {"numpy.ndarray": _Array, "numpy.dtype": _DType, "_codecs.encode": _encode}
    table["collections.OrderedDict"] = OrderedDict
    for core in ("numpy.core", "numpy._core"):
        table |= {f"{core}.multiarray._reconstruct": _reconstruct, f"{core}.multiarray.scalar": _scalar}
        table[f"{core}.numeric._frombuffer"] = _frombuffer
    for builtins in ("builtins", "__builtin__"):
        plain = {"set": set, "frozenset": frozenset, "complex": complex, "bytes": _bytes, "bytearray": _bytearray}
        table |= {f"{builtins}.{name}": kind for name, kind in plain.items()}
    return table


ADMITTED = _admitted()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path: Path):
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module, name):
        if f"{module}.{name}" not in ADMITTED:
            raise _forbidden(self.path, f"{module}.{name}")
        return ADMITTED[f"{module}.{name}"]


class _Skimmed:
    """A file whose large pieces are passed over and read as zeros: labels and shapes without the data."""

    def __init__(self, file: BinaryIO):
        self.file, self.readline = file, file.readline

    def read(self, n: int) -> bytes:
        return self._pass(n) and bytes(n) if n > LARGE else self.file.read(n)

    def readinto(self, buffer) -> int:
        if len(buffer) > LARGE:
            memoryview(buffer)[:] = bytes(self._pass(len(buffer)))
            return len(buffer)
        return self.file.readinto(buffer)

    def _pass(self, n: int) -> int:
        if self.file.tell() + n > os.fstat(self.file.fileno()).st_size:
            raise EOFError("pickle data was truncated")
        self.file.seek(n, os.SEEK_CUR)
        return n


def load_pickle(path: str | Path) -> Any:
    """What a pickle of Python 2 or 3 holds; it is read whole, see PICKLE_PEAK."""
    path = Path(path)
    size = file_size(path)
    check_memory(path, PICKLE_PEAK * size, "a pickle can only be read whole; use a machine with more memory")
    with path.open("rb") as file:
        return _load(file, path)


def load_npy(path: str | Path, skim: bool = False) -> np.ndarray:
    """The array of a .npy file, objects included; with `skim` the large arrays inside of it are zeros, not read."""
    path = Path(path)
    file_size(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = header(file)
            if dtype == np.dtype(object):
                array = _load(_Skimmed(file) if skim else file, path)
            else:
                file.seek(0)
                array = np.lib.format.read_array(file, allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # numpy's reader of headers fails in any way
        raise UserError(f"{path}: not a whole .npy array ({_first_line(error)}); {CURE}") from None
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise UserError(f"{path}: its header promises an array {list(shape)}, but it holds another; {CURE}")
    return array


def load_pth(path: str | Path) -> Any:
    """What torch.save wrote, tensors mapped from the disk; files of torch before 1.6 are read whole, see pth_peak."""
    path = Path(path)
    peak = pth_peak(path)
    cure = "use a machine with more memory, or let it write the file anew by torch.save, which is then read piecewise"
    check_memory(path, peak, cure)
    stand_ins = [(value, name) for name, value in ADMITTED.items() if name.startswith("numpy")]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=peak == 0)
    except Exception as error:  # of torch's reader, whatever the damage
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked and not _ends_with(path, asked[1]):
            raise _forbidden(path, asked[1]) from None
        reason = re.search(r"(?:WeightsUnpickler error: |\n\n)(.+)", str(error))
        reason = "it ends within a name" if asked else reason[1] if reason else _first_line(error)
        raise UserError(f"{path}: not a whole file of torch.save ({reason[:200]}); {CURE}") from None


def pth_peak(path: str | Path) -> int:
    """Bytes of memory that opening a .pth takes: none to speak of where it is a zip, more than its size else."""
    size = file_size(Path(path))
    with Path(path).open("rb") as file:
        return 0 if file.read(4) == b"PK\x03\x04" else int(LEGACY_PEAK * size)


def check_memory(path: Path, needed: int, cure: str) -> None:
    """Refuses to start reading what the memory cannot hold."""
    available = available_bytes()
    if available is not None and needed > available:
        raise UserError(
            f"{path}: reading it takes {needed / 2**30:.2f} GiB of memory, but {available / 2**30:.2f} GiB are "
            f"available; {cure}"
        )


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024
    except (OSError, TypeError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def file_size(path: Path) -> int:
    """Bytes of a file that must be there and hold something."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; set source.path to where the data set lies")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; {CURE}")
    return path.stat().st_size


def _load(file, path: Path) -> Any:
    try:
        return _Unpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged program can fail in any way
        raise UserError(
            f"{path}: not a whole pickle of arrays and plain containers ({_first_line(error)}); {CURE}"
        ) from None


def _checked(shape, dtype, fortran, raw) -> tuple[np.dtype, bool, Any]:
    """dtype, order and contents of an array whose shape they fit."""
    if not isinstance(dtype, _DType) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("it holds an array without a dtype or shape")
    real, raw = dtype.real(), raw.encode("latin1") if isinstance(raw, str) else raw
    kind, size = (list, 1) if real.hasobject else (bytes, real.itemsize)
    if not isinstance(raw, kind) or len(raw) != math.prod(shape) * size:
        raise pickle.UnpicklingError(f"it holds an array {list(shape)} whose contents have another size")
    return real, bool(fortran), raw


def _ends_with(path: Path, name: str) -> bool:
    """Whether a file stops within this name, of which torch's reader takes off the last letter."""
    with path.open("rb") as file:
        file.seek(max(0, file_size(path) - len(name) - 2))
        left = file.read().rsplit(b"\n", 1)[-1]
    return name.endswith(".") or left[:-1] == name.rsplit(".", 1)[-1].encode()


def _forbidden(path: Path, name: str) -> ForbiddenGlobal:
    return ForbiddenGlobal(
        f"{path}: refused: it asks to call {name}, which data do not need and which was not called; "
        "get the file from its authors"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
