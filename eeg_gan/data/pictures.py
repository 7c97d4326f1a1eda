"""The encoded images of a data set, each made once however many trials show it."""

import hashlib
import json
import os
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eeg_gan.data.writing import ImageFormat, Picture, encode_image

ROOM = 64 * 2**20  # bytes of encoded images kept in memory; the others wait in the folder


class Pictures:
    """Images of a source, resized and encoded; those that several trials show are shared by processes in `folder`.

    A source that has `image_key(i)`, the name of the picture of trial i, is asked for each picture once. From others
    every trial's image is read, and known again by its pixels.
    """

    def __init__(self, source: Any, folder: Path, size: int | None, image_format: ImageFormat):
        self.source, self.folder, self.size, self.image_format = source, folder, size, image_format
        self.key_of = getattr(source, "image_key", None)
        shown = (self.key_of(i) if self.key_of else trial.get("stimulus") for i, trial in enumerate(source.trials))
        self.repeated = {name for name, count in Counter(shown).items() if count > 1 and name is not None}
        self._kept, self._room = OrderedDict[str, Picture](), ROOM
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, i: int) -> Picture | None:
        """The picture of trial `i`, None where it has none."""
        image = None
        if self.key_of:
            name, repeated = self.key_of(i), self.key_of(i) in self.repeated
        else:
            image = self.source.image(i)
            if image is None:
                return None
            name = f"{hashlib.sha256(np.ascontiguousarray(image)).hexdigest()} {image.shape}"
            repeated = self.source.trials[i].get("stimulus") in self.repeated
        known = self._known(str(name), repeated)
        if known is not None:
            return known
        image = self.source.image(i) if image is None else image
        return None if image is None else self._keep(str(name), self._encoded(image), repeated)

    def _encoded(self, image: np.ndarray) -> Picture:
        if self.size is not None and image.shape[:2] != (self.size, self.size):
            square = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
            image = np.asarray(square)
        return encode_image(image, self.image_format)

    def _known(self, name: str, repeated: bool) -> Picture | None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        if not repeated:
            return None
        try:
            line, content = self._path(name).read_bytes().split(b"\n", 1)
        except FileNotFoundError:
            return None
        about = json.loads(line)
        return self._keep(name, Picture(about["sha256"], tuple(about["shape"]), content), False)

    def _keep(self, name: str, picture: Picture, share: bool) -> Picture:
        self._kept[name] = picture
        self._room -= len(picture.content)
        while self._room < 0:
            self._room += len(self._kept.popitem(last=False)[1].content)
        if share:
            about = json.dumps({"sha256": picture.sha256, "shape": list(picture.shape)}).encode()
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(about + b"\n" + picture.content)
            os.replace(file.name, self._path(name))  # whole or not there, for other processes too
        return picture

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()
