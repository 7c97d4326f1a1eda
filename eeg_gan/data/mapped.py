"""Whole batches, copied by offset out of memory-mapped shards: no archive is opened, and arrays are not decoded.

The headers around a sample's members are compared with what they must be when it is first read. From then on the
length of its json says where the EEG starts, and the EEG, which has one length in all samples, where the image does.
"""

import mmap
import resource
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.decoding import read_image
from eeg_gan.data.tar import BLOCK, CURE, check_size, header, npy_header, place_of, span
from eeg_gan.data.writing import Form

# b batch, C electrode, T time sample, H height, W width
SIZE = slice(124, 135)  # of a tar's header: octal digits


class Mapped:
    """The samples of one split; `places` are (file, key, offset, size) of each, `sizes` the bytes of each file.

    Compressed images are kept decoded in up to `cache_bytes`.
    """

    def __init__(
        self,
        folder: Path,
        places: list[tuple[str, str, int, int]],
        sizes: dict[str, int],
        form: Form,
        cache_bytes: int = 0,
    ):
        self.folder, self.places, self.form = folder, places, form
        self.is_array = form.image_format == "npy"
        self._files, self._starts = [place[0] for place in places], [0] * len(places)  # 0: not looked at yet
        self._eeg = _Array(form.eeg_shape, form.dtype)
        self._image = None if form.image_shape is None else _Array(form.image_shape, "uint8")
        self._maps, self._buffers = _Maps(folder, sizes), _Buffers()
        self.room, self.cache, self._lock = cache_bytes, dict[int, np.ndarray](), threading.Lock()

    def batch(self, indices: np.ndarray, pool: ThreadPoolExecutor | None = None) -> tuple[Tensor, Tensor | None]:
        """EEG float32 [b, C, T] and images uint8 [b, 3, H, W], or None where there are no images."""
        files, wanted = self._files, indices.tolist()
        maps = {file: self._maps.get(file) for file in {files[i] for i in wanted}}
        for i in wanted:
            if not self._starts[i]:
                self._starts[i] = self._check(i, maps[files[i]])
        stored = self._buffers.get((len(wanted), self._eeg.bytes), np.uint8)
        skip, end = self._eeg.start, self._eeg.start + self._eeg.bytes
        for row, i in enumerate(wanted):
            start = self._starts[i]
            stored[row] = maps[files[i]][start + skip : start + end]
        eeg = self._as_float(stored)
        if self._image is None:
            return eeg, None
        read = self._view if self.is_array else self._decoded
        pixels = (pool.map if pool and not self.is_array else map)(lambda i: read(i, maps[files[i]]), wanted)
        height, width, channels = self._image.shape
        images = self._buffers.get((len(wanted), channels, height, width), np.uint8)
        for planes, image in zip(images, pixels, strict=True):
            flat = image.reshape(-1, channels)
            for channel, plane in enumerate(planes.reshape(channels, -1)):  # much faster than to transpose at once
                plane[:] = flat[:, channel]
        return eeg, torch.from_numpy(images)

    def _as_float(self, raw: np.ndarray) -> Tensor:
        stored = torch.from_numpy(raw.view(self._eeg.dtype).reshape(len(raw), *self._eeg.shape))
        if stored.dtype == torch.float32:
            return stored
        return torch.from_numpy(self._buffers.get(tuple(stored.shape), np.float32)).copy_(stored)

    def _view(self, i: int, raw: np.ndarray) -> np.ndarray:
        """The pixels of an image that is stored as an array."""
        start = self._starts[i] + self._eeg.span + self._image.start
        return raw[start : start + self._image.bytes]

    def _decoded(self, i: int, raw: np.ndarray) -> np.ndarray:
        """[H, W, 3] of a compressed image; safe in threads."""
        kept = self.cache.get(i)
        if kept is not None:
            return kept
        member, (file, key, offset, _) = self._starts[i] + self._eeg.span, self.places[i]
        size = int(_bytes(raw, member, BLOCK)[SIZE], 8)
        content = raw[member + BLOCK : member + BLOCK + size]
        image = read_image(content, self.form, place_of(self.folder / file, key, offset))
        with self._lock:
            if i not in self.cache and image.nbytes <= self.room:  # a full cache keeps what it has
                self.room -= image.nbytes
                self.cache[i] = image
        return image

    def _check(self, i: int, raw: np.ndarray) -> int:
        """Compares the headers of a sample with what they must be; returns where that of the EEG starts."""
        file, key, offset, size = self.places[i]
        place, at, start = place_of(self.folder / file, key, offset), offset, 0
        arrays = {"eeg.npy": self._eeg, "img.npy": self._image}
        for name in ("json", *self.form.members):
            found = header(_bytes(raw, at, BLOCK), f"{key}.{name}", place).size
            array = arrays.get(name)
            if array and (found != array.size or _bytes(raw, at + BLOCK, len(array.header)) != array.header):
                raise UserError(
                    f"{place}: {key}.{name} is not the {array.dtype} array {list(array.shape)} that index.json says; "
                    + CURE
                )
            start = at if name == "eeg.npy" else start
            at += span(found)
        if at != offset + size:
            raise UserError(f"{place}: its members take {at - offset} bytes, but index.json says {size}; {CURE}")
        return start


class _Array:
    """Where the values of a .npy member of known shape lie in it."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.header = npy_header(self.shape, self.dtype)
        self.bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.size = len(self.header) + self.bytes  # of the member's content
        self.span, self.start = span(self.size), BLOCK + len(self.header)


class _Buffers:
    """Arrays that are used again once nobody else holds them: fresh memory costs more than what is copied into it."""

    def __init__(self, most: int = 12):
        self._kept, self._most, self._lock = [np.empty(0)], most, threading.Lock()
        for array in self._kept:
            self._alone = sys.getrefcount(array)  # as below, with nobody else

    def get(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        with self._lock:
            for array in self._kept:
                if array.shape == shape and array.dtype == dtype and sys.getrefcount(array) == self._alone:
                    return array
            fresh = np.empty(shape, dtype)
            self._kept = [*self._kept[1 - self._most :], fresh]
            return fresh


class _Maps:
    """Memory maps of shards, the longest unused of which are closed before the process runs out of open files."""

    def __init__(self, folder: Path, sizes: dict[str, int]):
        self.sizes, self.paths = sizes, {file: folder / file for file in sizes}
        self._open, self._lock = OrderedDict[str, np.ndarray](), threading.Lock()
        self.most = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def get(self, file: str) -> np.ndarray:
        """The bytes of a shard; its length is looked at each time, as reading beyond the end kills a process."""
        path = self.paths[file]
        check_size(path, self.sizes[file])
        with self._lock:
            known = self._open.pop(file, None)
            if known is None:
                known = _map(path)
            self._open[file] = known
            while len(self._open) > self.most:
                self._open.popitem(last=False)
        return known


def _map(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)


def _bytes(raw: np.ndarray, start: int, size: int) -> bytes:
    return raw[start : start + size].tobytes()
