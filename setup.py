"""Installs eeg-gan and builds its operators; torch must be there first, as they are built against its headers.

CPU kernels are built wherever there is a C++ compiler, CUDA kernels wherever there is an nvcc (a GPU is not needed, nor
a CUDA build of torch). Without a compiler everything installs, and plain PyTorch serves.
EEG_GAN_CUDA=0 leaves the CUDA kernels out, =1 insists on them; TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if importlib.util.find_spec("torch") is None:
    sys.exit(
        "eeg-gan is installed against a torch that is already there, and none was found (or pip built in isolation).\n"
        "Type `make demo` or `make test`, which do everything; or by hand:\n"
        "    pip install torch==2.13.0 torchvision==0.28.0        # both in one command\n"
        "    pip install --no-build-isolation -e ."
    )

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"
TARGET = "0x020b000000000000"  # torch 2.11: the library loads there and in everything later


class BuildOperators(build_ext):
    """Writes a ninja file for csrc/ and runs it."""

    def run(self):
        self.ensure_finalized()
        for extension in self.extensions:
            self.build_extension(extension)

    def get_ext_filename(self, name):
        return os.path.join(*name.split(".")) + ".so"  # no Python in it: one file serves every Python

    def build_extension(self, extension):
        cxx, nvcc = compiler(), cuda_compiler()
        if cxx is None:
            say("no C++ compiler: nothing is built, plain PyTorch serves (cure: sudo apt install g++)")
            return
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build = Path(self.build_temp).resolve()
        for folder in (build, target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(ninja_file(cxx, nvcc, target))
        jobs = os.environ.get("MAX_JOBS")
        command = [sys.executable, "-m", "ninja", "-C", str(build), *(["-j", jobs] if jobs else [])]
        failed = subprocess.run(command).returncode
        if failed:
            sys.exit("the operators could not be built; the compiler's message is above")


def say(message: str) -> None:
    print(f"eeg-gan operators: {message}", file=sys.stderr, flush=True)


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def cuda_compiler() -> str | None:
    wanted = os.environ.get("EEG_GAN_CUDA", "")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which(os.path.join(home, "bin", "nvcc")) or shutil.which("nvcc")
    if wanted == "0":
        say("CPU kernels only (EEG_GAN_CUDA=0)")
        return None
    if nvcc is None:
        if wanted == "1":
            sys.exit("EEG_GAN_CUDA=1, but no nvcc was found; set CUDA_HOME to the folder that holds bin/nvcc")
        say("CPU kernels only: no nvcc was found (set CUDA_HOME, or leave it so on a machine without a GPU)")
        return None
    say(f"CPU and CUDA kernels, by {nvcc}")
    return nvcc


def architectures() -> list[str]:
    """Flags of nvcc for TORCH_CUDA_ARCH_LIST, which is written as torch's own: '8.0;9.0+PTX'."""
    flags = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES).replace(";", " ").split():
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def ninja_file(cxx: str, nvcc: str | None, target: Path) -> str:
    torch = Path(importlib.util.find_spec("torch").origin).parent
    sources = sorted((ROOT / "csrc").glob("*.cpp")) + (sorted((ROOT / "csrc").glob("*.cu")) if nvcc else [])
    flags = ["-O3", "-g0", "-std=c++20", "-fPIC", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TARGET}"]
    flags += ["-isystem", str(torch / "include"), "-isystem", str(torch / "include/torch/csrc/api/include")]
    link = ["-shared", f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu"]
    if nvcc:
        cuda = Path(nvcc).resolve().parent.parent
        flags += ["-DEEG_GAN_CUDA", "-isystem", str(cuda / "include")]
        link += [f"-L{cuda / 'lib64'}", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    nvcc_flags = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden", *architectures()]
    rules = [
        "rule cxx",
        f"  command = {cxx} {' '.join(flags)} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {nvcc} {' '.join(nvcc_flags)} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} $in {' '.join(link)} -o $out",
    ]
    objects = []
    for source in sources:
        objects.append(f"{source.name}.o")
        rules.append(f"build {source.name}.o: {'nvcc' if source.suffix == '.cu' else 'cxx'} {source}")
    rules.append(f"build {target}: link {' '.join(objects)}")
    return "\n".join(rules) + "\n"


setup(ext_modules=[Extension("eeg_gan._C", [])], cmdclass={"build_ext": BuildOperators})
