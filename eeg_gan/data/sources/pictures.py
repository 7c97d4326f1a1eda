"""Pictures from files, read one at a time."""

from pathlib import Path

import numpy as np
from PIL import Image

from eeg_gan.config import UserError


def read_picture(path: Path) -> np.ndarray:
    """[H, W, 3] uint8 RGB."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read ({error}); save it again as PNG or JPEG") from None
