"""Features of trials on disk: one row per trial in features.safetensors, their keys and origin in features.json."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from eeg_gan.config import UserError

# N trial, D feature

CURE = "run embed again"


@dataclass(frozen=True)
class Features:
    """One vector per trial."""

    features: Tensor  # [N, D] float32
    keys: list[str]  # [N]
    meta: dict[str, Any]  # splits [N], encoder_digest, split_digest, ...

    def rows(self, keys: Sequence[str]) -> Tensor:
        """[len(keys), D] in the order of `keys`."""
        place = {key: i for i, key in enumerate(self.keys)}
        absent = [key for key in keys if key not in place]
        if absent:
            raise UserError(
                f"{len(absent)} of {len(keys)} trials have no feature (for example {absent[0]}); the features were "
                f"made from other shards or other splits; {CURE} on these shards"
            )
        return self.features[[place[key] for key in keys]]


def save(path_dir: str | Path, features: Tensor, keys: Sequence[str], meta: dict[str, Any]) -> None:
    """Writes features [N, D] and what is known about them; each file appears whole, the json last."""
    assert features.ndim == 2 and len(features) == len(keys) == len(set(keys)), "one row per key, keys unique"
    assert "keys" not in meta, "keys are an argument of their own"
    folder = Path(path_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").unlink(missing_ok=True)  # never the description of other features
    _write(folder / "features.safetensors", save_tensors({"features": features.detach().float().cpu().contiguous()}))
    text = json.dumps({**meta, "keys": list(keys)}, indent=1, sort_keys=True)
    _write(folder / "features.json", text.encode() + b"\n")


def load(path_dir: str | Path) -> Features:
    """The features that `save` wrote."""
    folder = Path(path_dir)
    for name in ("features.safetensors", "features.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; run embed first, or name the folder it wrote into")
    try:
        tensors = load_tensors((folder / "features.safetensors").read_bytes())
        meta = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        features, keys = tensors["features"], meta.pop("keys")
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: the features cannot be read ({error}); {CURE}") from None
    if features.ndim != 2 or len(features) != len(keys):
        raise UserError(f"{folder}: {len(features)} features, but {len(keys)} keys; {CURE}")
    if not torch.isfinite(features).all():
        raise UserError(f"{folder}: the features hold values that are not finite; {CURE}")
    return Features(features, keys, meta)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
