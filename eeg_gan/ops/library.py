"""The compiled half of the ops: finds and loads `eeg_gan/_C.so` once, and says why when it cannot.

Nothing is compiled here: setup.py does that on installing, and leaves `_C.json`, which tells what was built.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parent.parent
_forced = False


def available() -> bool:
    """True when the compiled library is loaded into this process."""
    return why_not() == ""


def why_not(device_type: str = "cpu") -> str:
    """The reason in one line why the PyTorch twins serve on that device; empty when the compiled library does."""
    return _problem(device_type)[0]


def cure(device_type: str = "cpu") -> str:
    """The command, or what to do, that would let the compiled library serve; empty when it does."""
    return _problem(device_type)[1]


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; one that cannot imitates it, slower than float32."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the compiled `op` can be called on the device: the library may have been built without CUDA."""
    return _has_kernel(op, device_type)


# What torch.compiler.assume_constant_result sets, without importing the compiler for it.
has_kernel._dynamo_marked_constant = True


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


def path() -> Path:
    """The library; EEG_GAN_LIBRARY names another one, for tests."""
    return Path(os.environ.get("EEG_GAN_LIBRARY") or PACKAGE / "_C.so")


@functools.cache
def facts() -> dict:
    """What was built, by what, and why not more; empty when nobody knows."""
    try:
        return json.loads(path().with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}


def stale() -> bool:
    """True when the library was built from other sources than those that lie beside the package."""
    sources = PACKAGE.parent / "csrc"
    return path().exists() and sources.is_dir() and digest(sources) != facts().get("sources")


def digest(folder: Path) -> str:
    """Of all sources, as setup.py takes it."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".h", ".cuh", ".cpp", ".cu"))
    return hashlib.sha256(b"".join(p.name.encode() + b"\0" + p.read_bytes() for p in files)).hexdigest()[:16]


def install(*settings: str) -> str:
    """The command that builds the library again."""
    here = (PACKAGE.parent / "setup.py").exists()
    words = [*(["cd", shlex.quote(str(PACKAGE.parent)), "&&"] if here else []), *settings, "pip install"]
    return " ".join([*words, "--no-build-isolation --no-deps", "-e ." if here else "."])


@functools.cache
def _has_kernel(op: str, device_type: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None or why_not(device_type):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"eeg_gan::{op}", key)


@functools.cache
def _problem(device_type: str) -> tuple[str, str]:
    """The reason why the library does not serve on a device, and the cure; both empty when it does."""
    if device_type == "cpu":
        return _load()
    return _problem("cpu") if why_not() else _cuda_problem()


def _load() -> tuple[str, str]:
    if not path().exists():
        if "why" in facts():
            return f"no kernels were built: {facts()['why']}", f"{facts()['cure']}, then {install()}"
        return "eeg_gan/_C.so was not built", install()
    try:
        torch.ops.load_library(str(path()))
    except (OSError, RuntimeError) as error:
        return f"{path().name} cannot be loaded: {' '.join(str(error).split())}", install()
    for name in ("_upfirdn2d", "_bias_act", "_affine_warp"):  # derivatives and fake kernels
        getattr(importlib.import_module(f"eeg_gan.ops.{name}"), "register", lambda: None)()
    return "", ""


def _cuda_problem() -> tuple[str, str]:
    built = facts()
    if not built.get("cuda"):
        why, how = built.get("why", "they were left out"), built.get("cure")
        return f"no CUDA kernels were built: {why}", f"{how}, then {install()}" if how else install()
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA", "pip install torch torchvision with CUDA"
    if not torch.cuda.is_available():
        return "no GPU that torch can use", "eeg-gan doctor says what is there"
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)() // 1000
    if 0 < driver < int(built["cuda"].split(".")[0]):
        return (
            f"the kernels were built by CUDA {built['cuda']}, but the GPU's driver knows CUDA {driver} only",
            f"a newer driver, or an older toolkit: {install('CUDA_HOME=/path/to/it')}",
        )
    for number in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(number)
        if not covers(built["architectures"], capability):
            name = ".".join(map(str, capability))
            return (
                f"GPU {number} is a {name}, and kernels were built for {' '.join(built['architectures'])}",
                install(f"TORCH_CUDA_ARCH_LIST={name}"),
            )
    return "", ""


def covers(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Code runs on its own generation from its number on, PTX on everything from its number on."""
    for name in architectures:
        number = name.removesuffix("+PTX")
        major, minor = (int(part) for part in number.rstrip("af").split("."))
        if number[-1] in "af":
            fits = (major, minor) == capability
        else:
            fits = major == capability[0] and minor <= capability[1]
            fits = fits or (name.endswith("+PTX") and (major, minor) <= capability)
        if fits:
            return True
    return False
