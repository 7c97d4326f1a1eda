"""Variables of MATLAB files, version 5 (scipy) and 7.3 (HDF5), both with MATLAB's order of axes.

HDF5 keeps MATLAB's column-major arrays with their axes reversed: what MATLAB calls [124, 32, N] lies there as
[N, 32, 124]. A variable may lie at the top or one level down, in a struct.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from eeg_gan.config import UserError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512  # bytes that MATLAB puts before the HDF5 file
DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, NotImplementedError, zlib.error)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """MATLAB's shape of every variable at the top, without reading values."""
    return _guarded(path, lambda: _shapes_hdf5(path) if is_hdf5(path) else _shapes_v5(path))


def read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the named variables that the file has; only they are read."""
    return _guarded(path, lambda: (_read_hdf5 if is_hdf5(path) else _read_v5)(path, names))


def integers(values: Any) -> np.ndarray:
    """Whole numbers as one vector: from a row, a column, a cell of numbers, of any numeric type."""
    array = np.asarray(values)
    while array.dtype == object:
        array = np.concatenate([np.ravel(item) for item in array.ravel()]) if array.size else np.zeros(0)
    numbers = array.ravel().astype(np.float64)
    if not np.all(numbers == np.round(numbers)):
        raise ValueError("not whole numbers")
    return numbers.astype(np.int64)


def is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(USER_BLOCK + len(HDF5_MAGIC))
    return start.startswith(HDF5_MAGIC) or start[USER_BLOCK:] == HDF5_MAGIC


def _guarded(path: Path, read_file: Any) -> Any:
    try:
        return read_file()
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name the folder that holds it") from None
    except DAMAGE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as a MATLAB file ({said}); download it again") from None


def _shapes_v5(path: Path) -> dict[str, tuple[int, ...]]:
    _check_whole(path)
    return {name: tuple(shape) for name, shape, _ in _whos(path)}


def _check_whole(path: Path) -> None:
    """scipy passes over the variables of a version 5 file without noticing that the last one is cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        place = len(head)
        while order and place < size:
            file.seek(place)
            tag = file.read(8)
            place += 8 + struct.unpack(f"{order}II", tag)[1] if len(tag) == 8 else size
    if order and place > size:
        raise EOFError(f"it ends {place - size} bytes too early")


def _read_v5(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    found = loadmat(path, variable_names=list(names))
    found = {name: found[name] for name in names if name in found}
    if len(found) < len(names):
        for name, _, kind in _whos(path):
            if kind == "struct":
                record = loadmat(path, variable_names=[name])[name].ravel()
                inside = record.dtype.names or () if len(record) else ()
                found |= {own: record[0][own] for own in names if own in inside and own not in found}
    return found


def _whos(path: Path) -> list[tuple]:
    from scipy.io import whosmat

    return whosmat(path)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("MATLAB files of version 7.3 need h5py, which is missing; pip install 'eeg-gan[mat]'") from None
    return h5py


def _shapes_hdf5(path: Path) -> dict[str, tuple[int, ...]]:
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        return {name: item.shape[::-1] for name, item in file.items() if isinstance(item, h5py.Dataset)}


def _read_hdf5(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        groups = [file, *(item for name, item in file.items() if isinstance(item, h5py.Group) and name[0] != "#")]
        found = {}
        for name in names:
            holder = next((group for group in groups if isinstance(group.get(name), h5py.Dataset)), None)
            if holder is not None:
                found[name] = _dataset(file, holder[name]).T
        return found


def _dataset(file: Any, data: Any) -> np.ndarray:
    """The values; a cell array is an array of references, each to one value."""
    values = np.asarray(data[()])
    if values.dtype != object:
        return values
    cells = np.empty(values.shape, dtype=object)
    cells.ravel()[:] = [np.asarray(file[reference][()]).T for reference in values.ravel()]
    return cells
