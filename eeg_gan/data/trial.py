"""One trial: what it is called, what was measured, what was seen."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

# H height, W width, C electrode, T time sample

META_FIELDS = {  # of KEY.json; every field but the first two may be unknown, which is None
    "key": "unique name of the trial; letters, digits, _ and - only",
    "label": "class number",
    "class_name": "name of the class",
    "subject": "who was recorded",
    "session": "visit to the laboratory",
    "run": "one start of the stimulus program",
    "block": "uninterrupted stretch of stimuli",
    "recording": "file that onset_s counts in",
    "onset_s": "time of the stimulus in the recording, in seconds",
    "tmin_s": "time of the first sample relative to the stimulus, in seconds",
    "sfreq": "sampling rate in Hz",
    "stimulus": "which image was shown",
    "concept": "what the image shows, finer than the class",
    "image_sha256": "digest of the image's pixels, before any lossy compression",
    "split": "train, val or test",
}


@dataclass(frozen=True)
class Sample:
    """A trial as it lies in the shards."""

    key: str
    eeg: np.ndarray  # [C, T] float32
    image: np.ndarray | None  # [H, W, 3] uint8 RGB
    meta: dict[str, Any]  # the fields of META_FIELDS


def complete(meta: dict[str, Any]) -> dict[str, Any]:
    """The meta fields in their fixed order, with None for what is unknown."""
    assert meta.keys() <= META_FIELDS.keys(), f"unknown meta fields {sorted(meta.keys() - META_FIELDS.keys())}"
    assert meta.get("key") and meta.get("label") is not None, f"a trial has a key and a label: {meta}"
    return {name: meta.get(name) for name in META_FIELDS}


def is_safe_key(key: str) -> bool:
    """Whether a key can name a file and a webdataset sample, whose key ends at the first dot."""
    return bool(key) and key.isascii() and key.replace("_", "").replace("-", "").isalnum()


def safe_keys(names: Iterable[str]) -> dict[str, str]:
    """Each name with every other sign as `_`; names that are then equal also get a digest of their own."""
    plain = {name: re.sub(r"[^A-Za-z0-9_-]+", "_", name) for name in names}
    holders = Counter(plain.values())
    digests = {name: hashlib.sha256(name.encode()).hexdigest()[:8] for name, key in plain.items() if holders[key] > 1}
    return {name: f"{key}-{digests[name]}" if name in digests else key for name, key in plain.items()}
