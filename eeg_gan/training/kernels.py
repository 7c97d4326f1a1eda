"""How a GPU computes while networks train: float32 is float32, and the bits are the same each time where that is asked.

A CPU needs none of it.
"""

import contextlib
import os
from collections.abc import Iterator

import torch

from eeg_gan.config import UserError
from eeg_gan.ops import library


@contextlib.contextmanager
def chosen(device: torch.device, deterministic: bool) -> Iterator[None]:
    """No TF32 in convolutions; their fastest algorithm, or with `deterministic` only what gives the same bits again."""
    why = library.why_not("cuda") if deterministic and device.type == "cuda" else ""
    if why:
        raise UserError(
            f"deterministic=true needs the compiled operators on the GPU, for those of PyTorch give other bits each "
            f"time, but {why}; `eeg-gan doctor` has the cure, or set deterministic=false"
        )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    strict, fills = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    flags = {"benchmark": not deterministic, "deterministic": deterministic, "allow_tf32": False}
    with torch.backends.cudnn.flags(enabled=True, **flags):
        try:
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads it
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.utils.deterministic.fill_uninitialized_memory = fills
