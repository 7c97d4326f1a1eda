"""What the members of a sample hold, from their bytes; what cannot be is named with its place."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from eeg_gan.config import UserError
from eeg_gan.data import png
from eeg_gan.data.tar import CURE
from eeg_gan.data.writing import Form


def decode(members: Sequence[bytes], form: Form, place: str) -> tuple[np.ndarray, np.ndarray | None]:
    """EEG float32 [C, T] and image uint8 [H, W, 3] or None from the contents of a sample's EEG and image."""
    eeg = read_array(members[0], form.eeg_shape, place).astype(np.float32)
    return eeg, None if form.image_shape is None else read_image(members[1], form, place)


def read_image(raw: bytes, form: Form, place: str) -> np.ndarray:
    """[H, W, 3] uint8."""
    if form.image_format == "npy":
        return read_array(raw, form.image_shape, place).copy()
    image = png.decode(raw, *form.image_shape[:2]) if form.image_format == "png" else None
    if image is not None:
        return image
    try:
        picture = Image.open(io.BytesIO(raw))
        image = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{place}: its image cannot be decoded ({error}): the bytes changed; {CURE}") from None
    if image.shape != form.image_shape:
        raise UserError(
            f"{place}: its image is {list(image.shape)}, but index.json says {list(form.image_shape)}; {CURE}"
        )
    return image


def read_array(raw: bytes, shape: tuple[int, ...], place: str) -> np.ndarray:
    """A view of the values of a .npy file of version 1."""
    try:
        file = io.BytesIO(raw[:256])
        version = np.lib.format.read_magic(file)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if version != (1, 0) or tuple(found) != tuple(shape) or fortran or dtype.hasobject:
            raise ValueError(f"it holds {list(found)} {dtype}")
        return np.frombuffer(raw, dtype, int(np.prod(shape)), file.tell()).reshape(shape)
    except ValueError as error:
        raise UserError(f"{place}: expected the array {list(shape)} ({error}); {CURE}") from None


def read_json(raw: bytes, place: str) -> dict[str, Any]:
    """The meta of a sample."""
    try:
        return json.loads(bytes(raw))
    except ValueError as error:
        raise UserError(f"{place}: its json cannot be read ({error}); {CURE}") from None
