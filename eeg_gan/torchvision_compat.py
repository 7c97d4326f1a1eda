"""The one door to torchvision and to what imports it: open_clip, timm, torch_fidelity, torchmetrics.

The registry's torchvision wheels are CUDA builds. Beside a CPU torch their `_C.so` cannot load; torchvision tolerates
that, but then registers fake kernels for two operators that nobody defined, and its import raises. Declaring the two
schemas first lets the import through. Where `_C.so` loads, nothing is done.
"""

import glob
import importlib
import importlib.util
import os
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # dropping a Library removes its definitions


def load(name: str) -> ModuleType:
    """`importlib.import_module(name)` that works beside a CPU torch; raises ImportError where it is not installed."""
    _declare_missing_operators()
    return importlib.import_module(name)


def _declare_missing_operators() -> None:
    spec = importlib.util.find_spec("torchvision")  # finds, does not import
    if spec is None or spec.origin is None or _declared or _binary_loads(os.path.dirname(spec.origin)):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _binary_loads(folder: str) -> bool:
    for path in glob.glob(os.path.join(folder, "_C*.so")):
        try:
            torch.ops.load_library(path)  # what torchvision does itself; a second load is a no-op
            return True
        except OSError:
            continue
    return False
