"""The compiled half of the ops: finds and loads `eeg_gan/_C.so` once, and says why when it cannot."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_forced = False


def available() -> bool:
    """True when the compiled library is loaded into this process."""
    return why_not() == ""


@functools.cache
def why_not() -> str:
    """The reason in one line why the PyTorch twins serve; empty when the compiled library does."""
    found = sorted(Path(__file__).resolve().parent.parent.glob("_C*.so"))
    if not found:
        return "eeg_gan/_C.so was not built (pip install . builds it where a compiler is found)"
    try:
        torch.ops.load_library(str(found[0]))
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} cannot be loaded: {' '.join(str(error).split())}"
    _register()
    return ""


def _register() -> None:
    from eeg_gan.ops import _affine_warp, _bias_act, _upfirdn2d

    for module in (_upfirdn2d, _bias_act, _affine_warp):
        getattr(module, "register", lambda: None)()


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the library holds a kernel of `op` for the device: it may have been built without CUDA."""
    return _has_kernel(op, device_type)


has_kernel._dynamo_marked_constant = True  # what torch.compiler.assume_constant_result does, without its import


@functools.cache
def _has_kernel(op: str, device_type: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None or not available():
        return False
    name = f"eeg_gan::{op}"
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def serves(op: str, x: Tensor) -> bool:
    """Whether the compiled `op` is to be called for x, rather than its twin."""
    return not _forced and has_kernel(op, x.device.type)


@contextlib.contextmanager
def twins() -> Iterator[None]:
    """Within it the plain PyTorch twins serve: for comparisons and for finding out who is at fault."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before
