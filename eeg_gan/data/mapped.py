"""Arrays of whole batches, copied by offset out of memory-mapped shards: no archive is opened, nothing is decoded.

The EEG's member and, where images are arrays, the image's have one length in all samples. They end a sample, so their
places follow from the index alone. The headers around them are compared with what they must be once per sample.
"""

import mmap
import resource
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.tar import BLOCK, CURE, check_size, header, npy_header, place_of, span
from eeg_gan.data.writing import Form

# b batch, C electrode, T time sample, H height, W width


class Mapped:
    """The samples of one split as arrays; `places` are (file, key, offset, size) of each, `sizes` those of files."""

    def __init__(self, folder: Path, places: list[tuple[str, str, int, int]], sizes: dict[str, int], form: Form):
        self.folder, self.form = folder, form
        self.files = [place[0] for place in places]
        self.keys = [place[1] for place in places]
        self.ends = np.array([offset + size for _, _, offset, size in places], dtype=np.int64)
        self._checked = np.zeros(len(places), dtype=bool)
        self._eeg = _Array(form.eeg_shape, form.dtype)
        self._image = None if form.image_shape is None else _Array(form.image_shape, "uint8")
        self._maps = _Maps(folder, sizes)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """EEG float32 [b, C, T] and images uint8 [b, 3, H, W], or None where there are no images."""
        eeg = np.empty((len(indices), self._eeg.bytes), np.uint8)
        image = None
        if self._image is not None:
            height, width, channels = self._image.shape
            image = np.empty((len(indices), channels, height, width), np.uint8)
        opened = {file: self._maps.get(file) for file in {self.files[i] for i in indices}}
        for row, i in enumerate(indices):
            raw, end = opened[self.files[i]], int(self.ends[i])
            if not self._checked[i]:
                self._check(int(i), raw)
            if image is not None:
                end -= self._image.span
                start = end + self._image.start
                pixels = raw[start : start + self._image.bytes].reshape(self._image.shape)
                for channel, plane in enumerate(image[row]):  # much faster than to transpose at once
                    plane[:] = pixels[..., channel]
            start = end - self._eeg.span + self._eeg.start
            eeg[row] = raw[start : start + self._eeg.bytes]
        return self._as_float(eeg), None if image is None else torch.from_numpy(image)

    def _as_float(self, raw: np.ndarray) -> Tensor:
        stored = torch.from_numpy(raw.view(self._eeg.dtype).reshape(len(raw), *self._eeg.shape))
        if stored.dtype == torch.float32:
            return stored
        whole = torch.from_numpy(np.empty(stored.shape, np.float32))  # numpy reuses memory where torch asks for new
        return whole.copy_(stored)

    def _check(self, i: int, raw: np.ndarray) -> None:
        key, end = self.keys[i], int(self.ends[i])
        parts = [(self._image, f"{key}.img.npy")] if self._image is not None else []
        for array, name in [*parts, (self._eeg, f"{key}.eeg.npy")]:
            end -= array.span
            place = place_of(self.folder / self.files[i], key, max(end, 0))
            block = raw[max(end, 0) : max(end, 0) + array.start].tobytes()
            size = header(block[:BLOCK], name, place).size
            if size != array.size or block[BLOCK:] != array.header:
                raise UserError(
                    f"{place}: {name} is not the {array.dtype} array {list(array.shape)} that index.json says; {CURE}"
                )
        self._checked[i] = True


class _Array:
    """Where the values of a .npy member of known shape lie in it."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.header = npy_header(self.shape, self.dtype)
        self.bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.size = len(self.header) + self.bytes  # of the member's content
        self.span, self.start = span(self.size), BLOCK + len(self.header)


class _Maps:
    """Memory maps of shards, the longest unused of which are closed before the process runs out of open files."""

    def __init__(self, folder: Path, sizes: dict[str, int]):
        self.folder, self.sizes = folder, sizes
        self._open, self._lock = OrderedDict[str, np.ndarray](), threading.Lock()
        self.most = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def get(self, file: str) -> np.ndarray:
        """The bytes of a shard; its length is looked at each time, as reading beyond the end kills a process."""
        path = self.folder / file
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
