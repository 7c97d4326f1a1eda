"""Compiles a kernel file of csrc/ as C++ against cusim.h, where every CUDA thread of a block is a fiber, and loads it.

The same source goes through nvcc for a GPU. What the simulator cannot show: timing, and races between blocks.
EEG_GAN_SANITIZE=1 compiles for AddressSanitizer; the process then needs the preloading of tests/asan.sh.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZED = os.environ.get("EEG_GAN_SANITIZE") == "1"
# Threads run forward, backward, shuffled: a result that depends on it is a race. Addresses are the same in all orders.
ORDERS = (2,) if SANITIZED else (0, 1, 2)
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")


def why_not() -> str:
    if shutil.which("g++") is None:
        return "the simulator needs g++"
    if cuda_include() is None:
        return "the simulator needs CUDA's headers (cuda_fp16.h) in CUDA_HOME, beside nvcc or in /usr/local/cuda"
    return ""


def cuda_include() -> Path | None:
    """The first folder with CUDA's headers: of CUDA_HOME, of the nvcc that setup.py would take, of /usr/local/cuda."""
    homes = [Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if any((home / "cuda_fp16.h").exists() for home in homes):  # without starting anything
        return next(home for home in homes if (home / "cuda_fp16.h").exists())
    places = [*nvcc_includes(os.environ.get("PATH", "")), Path("/usr/local/cuda/include")]
    return next((place for place in places if (place / "cuda_fp16.h").exists()), None)


@functools.cache
def nvcc_includes(path: str) -> tuple[Path, ...]:
    """Where the nvcc on this PATH, which may be a wrapper that lies elsewhere, has its headers by its own word."""
    spec = importlib.util.spec_from_file_location("eeg_gan_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = setup  # its dataclasses look themselves up
    spec.loader.exec_module(setup)
    try:
        nvcc = shutil.which("nvcc", path=path) or setup.find_nvcc()
    except setup.Missing:
        return ()
    return (*setup.folders(nvcc)[0], Path(nvcc).resolve().parents[1] / "include")


@functools.cache
def load(name: str, *flags: str, folder: Path = ROOT / "csrc") -> ctypes.CDLL:
    """The launchers of csrc/NAME.cu, which run on the CPU."""
    if SANITIZED:
        flags += SANITIZERS
    return ctypes.CDLL(str(compiled(folder / f"{name}.cu", *flags)))


def compiled(source: Path, *flags: str) -> Path:
    """The shared library of one file, made once per content."""
    headers = [*sorted((ROOT / "csrc").glob("*.h")), *sorted((ROOT / "csrc").glob("*.cuh"))]
    parts = [source, *headers, Path(__file__), Path(__file__).with_name("cusim.h")]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts) + " ".join(flags).encode())
    folder = Path(tempfile.gettempdir()) / f"eeg-gan-cusim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-x", "c++", "-O2", "-g", "-std=c++17", "-fPIC", "-shared", "-w", "-DEEG_GAN_SIMULATED"]
        command += [*flags, f"-I{Path(__file__).parent}", f"-I{ROOT / 'csrc'}", f"-I{cuda_include()}"]
        subprocess.run([*command, str(source), "-o", str(partial)], check=True)
        os.replace(partial, library)
    return library


def run(function, *arguments, order: int = 0) -> None:
    """Calls a launcher with the threads of each block in this order; its return code is that of the launch."""
    os.environ["CUSIM_ORDER"] = str(order)
    code = function(*arguments)
    assert code == 0, f"the launch failed with code {code}"
