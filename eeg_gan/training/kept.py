"""Tensors that are dear to compute, kept in a file between runs and used only if they are what was written."""

import logging
import os
import socket
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.training import checkpoint

log = logging.getLogger("eeg_gan")


def read(path: Path, otherwise: str) -> dict[str, Tensor] | None:
    """The tensors by name, or None where the file is missing or damaged; `otherwise` says what is done then."""
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        digest = bytes(tensors.pop("digest").tolist()).hex()
        if digest != checkpoint.tensors_digest(tensors):
            raise ValueError("its digest is not the one that was written")
        return tensors
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s cannot be used (%s); %s", path, error, otherwise)
        return None


def write(path: Path, tensors: dict[str, Tensor], otherwise: str) -> None:
    """Writes beside and renames, since several runs may do so at once; where that fails, `otherwise` is said."""
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    digest = torch.tensor(list(bytes.fromhex(checkpoint.tensors_digest(tensors))), dtype=torch.uint8)
    own = path.with_name(f"{path.stem}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(own, {**tensors, "digest": digest})
        os.replace(own, path)
    except (OSError, UserError) as error:
        log.warning("%s; %s", error, otherwise)
