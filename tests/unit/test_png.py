import io
import zlib

import numpy as np
import pytest
from PIL import Image

from eeg_gan.config import UserError
from eeg_gan.data import png
from eeg_gan.data.decoding import read_image
from eeg_gan.data.writing import Form, encode_image

RANDOM = np.random.default_rng(0)
ACROSS = np.repeat(RANDOM.integers(0, 256, (1, 9, 3), dtype=np.uint8), 7, axis=0)  # rows are equal
DOWN = np.repeat(RANDOM.integers(0, 256, (7, 1, 3), dtype=np.uint8), 9, axis=1)
NOISE = RANDOM.integers(-1, 3, (7, 9, 3)).astype(np.uint8)  # nothing is gained by taking differences
IMAGES = {"across": (ACROSS, png.UP), "down": (DOWN, png.SUB), "noise": (NOISE, png.NONE)}
IMAGES |= {f"{h}x{w}": (RANDOM.integers(0, 256, (h, w, 3), dtype=np.uint8), None) for h, w in ((1, 1), (1, 5), (6, 1))}


def rows_of(raw):
    start = raw.index(b"IDAT") + 4
    return zlib.decompress(raw[start : start + int.from_bytes(raw[start - 8 : start - 4], "big")])


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_written_is_read_here_and_by_others(name):
    image, expected = IMAGES[name]
    raw = png.encode(image)
    np.testing.assert_array_equal(png.decode(raw, *image.shape[:2]), image)
    with Image.open(io.BytesIO(raw)) as other:
        assert other.mode == "RGB" and other.format == "PNG"
        np.testing.assert_array_equal(np.asarray(other), image)
    assert expected is None or rows_of(raw)[0] == expected


@pytest.mark.parametrize("filtered", [png.NONE, png.SUB, png.UP])
def test_large_pictures_with_each_filter(filtered, monkeypatch):
    image = RANDOM.integers(0, 256, (130, 67, 3), dtype=np.uint8)
    monkeypatch.setattr(png, "min", lambda pairs, key: list(pairs)[filtered], raising=False)
    raw = png.encode(image)
    assert set(rows_of(raw)[:: 3 * 67 + 1]) == {filtered}
    np.testing.assert_array_equal(png.decode(raw, 130, 67), image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(raw))), image)


def test_a_changed_byte_never_changes_pixels_unseen():
    image = RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    raw, passed = encode_image(image, "png").content, 0
    for at in range(len(raw)):
        damaged = raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]
        found = png.decode(damaged, 16, 16)
        passed += found is not None
        assert found is None or np.array_equal(found, image), at
    assert passed <= 4, "the check sum beside the pixels' own is not looked at"


def test_damaged_pixels_are_named():
    raw = bytearray(encode_image(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8), "png").content)
    raw[300] ^= 4
    with pytest.raises(UserError, match="here: its image cannot be decoded"):
        read_image(bytes(raw), Form((1, 1), (16, 16, 3)), "here")


@pytest.mark.parametrize("cut", [0, 5, 30, 45, 200])
def test_a_file_that_was_cut_off_is_no_picture(cut):
    raw = encode_image(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8), "png").content[:cut]
    assert png.decode(raw, 16, 16) is None
    with pytest.raises(UserError, match="here: its image cannot be decoded"):
        read_image(raw, Form((1, 1), (16, 16, 3)), "here")


def test_more_pixels_than_announced_are_refused_before_they_are_made():
    bomb = png.encode(np.zeros((4000, 4, 3), np.uint8)).replace(png._form(4000, 4), png._form(4, 4))
    assert png.decode(bomb, 4, 4) is None


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_files_of_other_programs_are_left_to_pillow(mode):
    picture = Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    found = read_image(buffer.getvalue(), Form((1, 1), (16, 16, 3)), "here")
    np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))
    assert png.decode(buffer.getvalue(), 16, 16) is None or mode == "RGB"
