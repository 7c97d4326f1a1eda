"""Compiles a kernel file of csrc/ as C++ against cusim.h, where every CUDA thread of a block is a fiber, and loads it.

The same source goes through nvcc for a GPU. What the simulator cannot show: timing, and races between blocks.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORDERS = (0, 1, 2)  # threads run forward, backward, shuffled: a result that depends on it is a race


def why_not() -> str:
    if shutil.which("g++") is None:
        return "the simulator needs g++"
    if not (cuda_include() / "cuda_fp16.h").exists():
        return "the simulator needs CUDA's headers (cuda_fp16.h), from CUDA_HOME or /usr/local/cuda"
    return ""


def cuda_include() -> Path:
    return Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"


@functools.cache
def load(name: str, *flags: str) -> ctypes.CDLL:
    """The launchers of csrc/NAME.cu, which run on the CPU; compiled once per content."""
    source = ROOT / "csrc" / f"{name}.cu"
    parts = [source, *sorted((ROOT / "csrc").glob("*.h")), *sorted((ROOT / "csrc").glob("*.cuh")), Path(__file__)]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in [*parts, Path(__file__).with_name("cusim.h")]))
    digest.update(" ".join(flags).encode())
    folder = Path(tempfile.gettempdir()) / f"eeg-gan-cusim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{name}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-x", "c++", "-O2", "-g", "-std=c++17", "-fPIC", "-shared", "-w", "-DEEG_GAN_SIMULATED"]
        command += [*flags, f"-I{Path(__file__).parent}", f"-I{cuda_include()}", str(source), "-o", str(partial)]
        subprocess.run(command, check=True)
        os.replace(partial, library)
    return ctypes.CDLL(str(library))


def run(function, *arguments, order: int = 0) -> None:
    """Calls a launcher with the threads of each block in this order; its return code is that of the launch."""
    os.environ["CUSIM_ORDER"] = str(order)
    code = function(*arguments)
    assert code == 0, f"the launch failed with code {code}"
