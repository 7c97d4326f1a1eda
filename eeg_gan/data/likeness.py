"""Pictures that are nearly the same: resized, recompressed or slightly cropped copies of one another."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from PIL import Image
from scipy.fft import dctn

# N picture; a fingerprint is 64 signs and a thumbnail of 16 x 16 luminances

SIDE, SIGNS = 32, 8  # of the reduced picture, and of the corner of its cosine transform that is kept
NEAR = 6  # of 64 signs may differ
ALIKE = 0.98  # correlation of thumbnails that a pair needs besides
ROWS = 512  # of one split that are compared at a time


def fingerprint(image: np.ndarray) -> tuple[int, np.ndarray]:
    """uint8 [H, W, 3] -> (64 bits, thumbnail [256] float32 of zero mean and unit length).

    The bits are the signs of the 8 x 8 lowest cosine coefficients of the 32 x 32 luminance about their median
    (Zauner 2010); flat pictures have few details, so the thumbnails must agree as well.
    """
    grey = Image.fromarray(image).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    low = dctn(small, norm="ortho")[:SIGNS, :SIGNS].ravel()
    bits = int("".join("1" if value > np.median(low[1:]) else "0" for value in low), 2)
    thumbnail = small.reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3)).ravel()
    thumbnail = thumbnail - thumbnail.mean()
    return bits, (thumbnail / max(np.linalg.norm(thumbnail), 1e-9)).astype(np.float32)


def near_duplicates(pictures: Mapping[str, Mapping[str, tuple[int, np.ndarray]]]) -> dict[str, list[tuple[str, str]]]:
    """`a/b` -> pairs (name, name) of different pictures of splits a and b that look the same.

    `pictures` maps each split to the fingerprints of its pictures by digest; equal digests are `duplicates`' business.
    """
    return {f"{a}/{b}": _pairs(pictures[a], pictures[b]) for a, b in combinations(pictures, 2)}


def _pairs(first: Mapping[str, tuple], second: Mapping[str, tuple]) -> list[tuple[str, str]]:
    if not first or not second:
        return []
    names, others = list(first), list(second)
    bits, other_bits = (np.array([own[n][0] for n in own], dtype=np.uint64) for own in (first, second))
    thumbs, other_thumbs = (np.stack([own[n][1] for n in own]) for own in (first, second))
    found = []
    for start in range(0, len(names), ROWS):
        part = slice(start, start + ROWS)
        rows, columns = np.nonzero(np.bitwise_count(bits[part, None] ^ other_bits) <= NEAR)
        alike = (thumbs[part][rows] * other_thumbs[columns]).sum(axis=1) >= ALIKE
        found += [(names[start + r], others[c]) for r, c in zip(rows[alike], columns[alike], strict=True)]
    return [pair for pair in found if pair[0] != pair[1]]
