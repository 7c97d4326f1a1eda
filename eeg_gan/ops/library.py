"""The compiled half of the ops: finds and loads `eeg_gan/_C*.so` once, and says why when it cannot."""

import functools
from pathlib import Path

import torch


def available() -> bool:
    """True when the compiled library is loaded into this process."""
    return why_not() == ""


@functools.cache
def why_not() -> str:
    """The reason in one line why the PyTorch twins serve; empty when the compiled library does."""
    found = sorted(Path(__file__).resolve().parent.parent.glob("_C*.so"))
    if not found:
        return "eeg_gan/_C*.so was not built (pip install . builds it where a compiler is found)"
    try:
        torch.ops.load_library(str(found[0]))
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} cannot be loaded: {' '.join(str(error).split())}"
    return ""
