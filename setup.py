"""Installs eeg-gan and builds its operators; torch must be there first, as they are built against its headers.

CPU kernels are built wherever there is a C++ compiler, CUDA kernels wherever there is an nvcc (a GPU is not needed, nor
a CUDA build of torch). Without a compiler everything installs, and plain PyTorch serves. What was built, by what and
why not more is printed (pip shows it with -v) and written into eeg_gan/_C.json, from which `eeg-gan doctor` tells it.

    EEG_GAN_CUDA=0 or 1     leaves the CUDA kernels out; stops where they cannot be built
    EEG_GAN_BUILD=0         builds no kernels at all
    TORCH_CUDA_ARCH_LIST    as torch reads it: "8.0;9.0+PTX", "Hopper", "native"
    CXX, CUDA_HOME          the compilers, if not g++ and the nvcc in PATH;  MAX_JOBS how many run at once
    EEG_GAN_SANITIZE=1      CPU kernels for AddressSanitizer, into build/sanitized (make test-asan)
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# One per generation: code for 8.0 runs on 8.6 to 8.9 too, 10.0 on 10.3 and 12.0 on 12.1, and these kernels wait for
# memory, so that nothing finer pays. PTX is for what comes later.
ARCHITECTURES = "7.5 8.0 9.0 10.0 12.0+PTX"
TARGET = (2, 11)  # the oldest torch whose symbols are used: the library loads there and in everything later
GENERATIONS = {  # torch's names
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Blackwell+Tegra": "11.0",
}
WITHOUT_TORCH = (
    "eeg-gan is installed against a torch that is already there, and none was found (or pip built in isolation).\n"
    "Type `make demo` or `make test`, which do everything; or by hand:\n"
    "    pip install torch==2.13.0 torchvision==0.28.0 ninja        # all in one command\n"
    "    pip install --no-build-isolation -e ."
)
# Every message ends the program; torch's own types are not known well enough for the check of virtual tables.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


class Missing(Exception):
    """Why kernels cannot be built here, and the cure, after which eeg-gan is installed again."""

    def __init__(self, why: str, cure: str):
        super().__init__(f"{why} (cure: {cure}, then install eeg-gan again)")
        self.why, self.cure = why, cure


@dataclass(frozen=True)
class Cuda:
    nvcc: str
    version: str
    include: tuple[Path, ...]
    libraries: tuple[Path, ...]
    static: bool  # the runtime library is linked in
    architectures: tuple[str, ...]


class BuildOperators(build_ext):
    """Writes a ninja file for csrc/, runs it, and puts _C.so and _C.json where the package is, or will be."""

    def run(self):
        self.ensure_finalized()
        for extension in self.extensions:
            self.build_extension(extension)

    def get_ext_filename(self, name):
        return os.path.join(*name.split(".")) + ".so"  # no Python in it: one file serves every Python

    def get_outputs(self):
        return [path for path in self._products() if os.path.exists(path)]

    def get_output_mapping(self):
        if not self.inplace:
            return {}
        build_py = self.get_finalized_command("build_py")
        inplace, regular = self._get_inplace_equivalent(build_py, self.extensions[0])
        pairs = {regular: inplace, f"{regular[:-3]}.json": f"{inplace[:-3]}.json"}
        return {built: source for built, source in pairs.items() if os.path.exists(source)}

    def _products(self):
        library = self.get_ext_fullpath(self.extensions[0].name)
        return [library, f"{library[:-3]}.json"]

    def build_extension(self, extension):
        sanitize = switch("EEG_GAN_SANITIZE") == "1"
        folder = (Path(self.get_finalized_command("build").build_base) / "operators").resolve()
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        if sanitize:
            folder = folder.with_name("sanitized")
            target = folder / "_C.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in (target, target.with_suffix(".json")):
            stale.unlink(missing_ok=True)
        facts = {"cpu": False, "cuda": "", "sources": digest()}
        try:
            cxx = compiler()
        except Missing as missing:
            say(f"none are built, plain PyTorch serves: {missing}")
            facts |= {"why": missing.why, "cure": missing.cure}
        else:
            facts |= build(cxx, folder, target, sanitize, quiet=not self.verbose)
        target.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


class Wheel(bdist_wheel):
    """Tagged py3-none-PLATFORM: the library holds no Python and no symbol of it, so that no ABI of Python matters."""

    def get_tag(self):
        built = any(Path(self.bdist_dir).rglob("_C.so")) or not Path(self.bdist_dir).exists()
        return "py3", "none", super().get_tag()[2] if built else "any"


def build(cxx: list[str], folder: Path, target: Path, sanitize: bool, quiet: bool) -> dict:
    """Runs ninja; what was built, by what."""
    torch = importlib.metadata.version("torch")
    if tuple(int(n) for n in torch.split(".")[:2]) < TARGET:
        sys.exit(f"torch {torch} is too old for eeg-gan's kernels: pip install -U torch torchvision")
    version = ask([*cxx, "-dumpfullversion", "-dumpversion"]).strip()
    facts = {"cpu": True, "torch": torch, "cxx": shlex.join(cxx), "cxx_version": version}
    said = f"CPU kernels by {facts['cxx']} {version}"
    try:
        if sanitize:
            raise Missing("EEG_GAN_SANITIZE=1 is for the CPU kernels", "leave it away")
        cuda = find_cuda()
        facts |= {"cuda": cuda.version, "nvcc": cuda.nvcc, "architectures": cuda.architectures, "static": cuda.static}
        say(f"{said}; CUDA kernels by {cuda.nvcc} {cuda.version} for {' '.join(cuda.architectures)}")
    except Missing as missing:
        if switch("EEG_GAN_CUDA") == "1":
            sys.exit(f"EEG_GAN_CUDA=1, but the CUDA kernels cannot be built: {missing}")
        cuda = None
        facts |= {"why": missing.why, "cure": missing.cure}
        say(f"{said}; no CUDA kernels: {missing}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(cxx, cuda, folder, sanitize))
    run_ninja(folder, quiet, cuda is not None)
    if folder / "_C.so" != target:
        partial = target.with_suffix(".partial")  # renamed: a process that runs from the old file keeps it
        shutil.copy2(folder / "_C.so", partial)
        os.replace(partial, target)
    return facts


def run_ninja(folder: Path, quiet: bool, cuda: bool) -> None:
    if subprocess.run([*ninja(), "-C", str(folder), *jobs(), *(["--quiet"] if quiet else [])]).returncode:
        ways = ["another compiler by CXX=...", "no kernels and plain PyTorch by EEG_GAN_BUILD=0"]
        ways[:0] = ["CPU kernels alone by EEG_GAN_CUDA=0", "another toolkit by CUDA_HOME=..."] if cuda else []
        sys.exit(f"eeg-gan's kernels could not be compiled; the message is above.\nWays round it: {'; '.join(ways)}.")


def say(message: str) -> None:
    print(f"eeg-gan operators: {message}", file=sys.stderr, flush=True)


def switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name} is 0 or 1; got {value!r}")
    return value


def ask(command: list[str]) -> str:
    """What a tool answers, on either stream; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def digest() -> str:
    """Of all sources: tells a library that was built from others."""
    files = sorted(p for p in (ROOT / "csrc").iterdir() if p.suffix in (".h", ".cuh", ".cpp", ".cu"))
    return hashlib.sha256(b"".join(p.name.encode() + b"\0" + p.read_bytes() for p in files)).hexdigest()[:16]


def jobs() -> list[str]:
    number = os.environ.get("MAX_JOBS", "")
    if number and not (number.isdigit() and int(number) > 0):
        sys.exit(f"MAX_JOBS is how many compilers run at once, 1 or more; got {number!r}")
    return ["-j", number] if number else []


def ninja() -> list[str]:
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if found := shutil.which("ninja"):
        return [found]
    sys.exit("the kernels are built by ninja, which is missing: pip install ninja")


def compiler() -> list[str]:
    """The words of CXX (which may begin with ccache), or g++, or c++."""
    if switch("EEG_GAN_BUILD") == "0":
        raise Missing("EEG_GAN_BUILD=0 when it was installed", "unset EEG_GAN_BUILD")
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted:
        if shutil.which(wanted[0]) is None:
            sys.exit(f"CXX={os.environ['CXX']}, but there is no {wanted[0]}")
        return wanted
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise Missing("there was no C++ compiler", "sudo apt install g++ (or conda install gxx)")
    return [found]


def find_cuda() -> Cuda:
    if switch("EEG_GAN_CUDA") == "0":
        raise Missing("EEG_GAN_CUDA=0 when it was installed", "unset EEG_GAN_CUDA")
    nvcc = find_nvcc()
    release = re.search(r"release (\d+\.\d+)", ask([nvcc, "--version"]))
    if release is None:
        raise Missing(f"{nvcc} --version does not answer", "repair it or set CUDA_HOME")
    include, libraries = folders(nvcc)
    for places, names in (include, ["cuda_runtime.h"]), (libraries, ["libcudart_static.a", "libcudart.so"]):
        if not any((place / name).exists() for place in places for name in names):
            cure = "set CUDA_HOME to a whole toolkit (from pip: nvidia-cuda-nvcc and nvidia-cuda-runtime)"
            raise Missing(f"{nvcc} comes without {names[0]}", cure)
    # Linked in, the runtime library needs no libcudart.so anywhere, and does not meet the one of torch: streams and
    # memory belong to the driver and are the same for both. So code built by CUDA 13 runs in a torch made for CUDA 12,
    # if the machine's driver is new enough for CUDA 13 (580 or later); eeg_gan/ops/library.py compares the two.
    static = any((folder / "libcudart_static.a").exists() for folder in libraries)
    known = re.findall(r"compute_(\d+)(\d)\b", ask([nvcc, "--list-gpu-arch"]))
    chosen = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), [f"{a}.{b}" for a, b in known])
    return Cuda(nvcc, release[1], include, libraries, static, tuple(chosen))


def find_nvcc() -> str:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            if found := shutil.which(os.path.join(home, "bin", "nvcc")):
                return found
            raise Missing(f"{name}={home} holds no bin/nvcc", f"set {name} to the toolkit's folder")
    if found := shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc"):
        return found
    package = importlib.util.find_spec("nvidia")  # pip install nvidia-cuda-nvcc
    for folder in package.submodule_search_locations if package else []:
        for path in sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True):
            return str(path)
    raise Missing("there was no nvcc", "set CUDA_HOME to the CUDA toolkit's folder")


def folders(nvcc: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Where this nvcc has its headers and libraries, by its own word: it may be a wrapper that lies elsewhere."""
    answer = ask([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])
    found = {"I": [], "L": []}
    for line in re.findall(r"^#\$ (?:INCLUDES|LIBRARIES)=(.*)$", answer, re.M):
        for word in shlex.split(line):
            if word[:2] in ("-I", "-L"):
                found[word[1]].append(Path(word[2:]).resolve())
    for line in re.findall(r"^#\$ TOP=(.*)$", answer, re.M):
        top = Path(line.strip()).resolve()
        found["I"].append(top / "include")
        found["L"] += [top / "lib64", top / "lib", top / f"lib/{os.uname().machine}-linux-gnu"]
    return tuple(tuple(dict.fromkeys(p for p in found[kind] if p.is_dir())) for kind in "IL")


def architectures(wanted: str, known: list[str]) -> list[str]:
    """['8.0', '9.0+PTX'] for what torch reads from TORCH_CUDA_ARCH_LIST; the default is cut to what nvcc knows."""
    if not wanted.strip():
        names = [name for name in ARCHITECTURES.removesuffix("+PTX").split() if not known or name in known]
        if not names:
            raise Missing(f"nvcc knows none of {ARCHITECTURES}", "set TORCH_CUDA_ARCH_LIST")
        return [*names[:-1], f"{names[-1]}+PTX"]
    names = []
    for word in re.split(r"[;,\s]+", wanted.strip("; ")):
        names += native() if word == "native" else GENERATIONS.get(word, word).split(";")
    for name in names:
        number = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)
        if number is None:
            sys.exit(
                f"TORCH_CUDA_ARCH_LIST holds {name!r}; write numbers such as 8.0 or 9.0+PTX, "
                f"native, or one of {', '.join(GENERATIONS)}"
            )
        if known and number[1] not in known:
            sys.exit(f"TORCH_CUDA_ARCH_LIST holds {name}, but this nvcc knows {' '.join(known)}; or set EEG_GAN_CUDA=0")
    return list(dict.fromkeys(names))


def native() -> list[str]:
    found = sorted(set(ask(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]).split()))
    if not found:
        sys.exit("TORCH_CUDA_ARCH_LIST=native, but nvidia-smi shows no GPU; write numbers such as 8.0 or 9.0+PTX")
    return found


def ninja_file(cxx: list[str], cuda: Cuda | None, folder: Path, sanitize: bool) -> str:
    sources = sorted((ROOT / "csrc").glob("*.cpp")) + (sorted((ROOT / "csrc").glob("*.cu")) if cuda else [])
    rules = [
        "rule cxx",
        f"  command = {words([*cxx, *cxx_flags(cuda, sanitize)])} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {words(nvcc_words(cuda, cxx))} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {words(cxx)} $in {words(link_flags(cuda, sanitize))} -o $out",
    ]
    for source in sources:  # by relative paths: nvcc cannot read a path with a dollar in it
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        rules.append(f"build {source.name}.o: {rule} {escaped(os.path.relpath(source, folder))}")
    rules.append(f"build _C.so: link {' '.join(f'{source.name}.o' for source in sources)}")
    return "\n".join(rules) + "\n"


def cxx_flags(cuda: Cuda | None, sanitize: bool) -> list:
    headers = torch_folder() / "include"
    version = f"0x{TARGET[0]:02x}{TARGET[1]:02x}{0:012x}"
    flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={version}"]
    # Else what stands behind a `?` is computed only where it is chosen, as it might trap, and no loop over it is made
    # of vectors unless the processor has masks: without AVX-512 the activations took twenty times as long.
    flags += ["-fno-trapping-math", "-fno-math-errno"]
    flags += ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS] if sanitize else ["-O3", "-g0"]
    flags += ["-isystem", headers, "-isystem", headers / "torch/csrc/api/include"]
    if cuda:
        flags += ["-DEEG_GAN_CUDA"]
        # Named as a system folder, /usr/include would come before the headers that wrap its own.
        flags += [word for path in cuda.include if path != Path("/usr/include") for word in ("-isystem", path)]
    return flags


def link_flags(cuda: Cuda | None, sanitize: bool) -> list:
    # torch's libtorch.so brings libtorch_cuda.so along, where the stream is asked for; the linker would drop it.
    flags = ["-shared", "-L", torch_folder() / "lib", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu"]
    if sys.platform == "darwin":
        flags = ["-shared", "-undefined", "dynamic_lookup"]
    if sanitize:
        flags += SANITIZERS
    if cuda:
        flags += [word for path in cuda.libraries for word in ("-L", path)]
        if cuda.static:
            flags += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        else:
            flags += [
                "-lcudart",
                *(f"-Wl,-rpath,{path}" for path in cuda.libraries if (path / "libcudart.so").exists()),
            ]
    return flags


def nvcc_words(cuda: Cuda | None, cxx: list[str]) -> list[str]:
    if cuda is None:
        return []
    flags = [cuda.nvcc, "-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden"]
    if os.environ.get("CXX") and not os.environ.get("NVCC_CCBIN"):
        flags += ["-ccbin", next(word for word in cxx if Path(word).name not in ("ccache", "sccache", "distcc"))]
    return flags + gencode(cuda.architectures)


def torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


def gencode(names: tuple[str, ...]) -> list[str]:
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def words(command: list) -> str:
    """A command as ninja hands it to the shell."""
    return shlex.join(str(word) for word in command).replace("$", "$$")


def escaped(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None:
        sys.exit(WITHOUT_TORCH)
    setup(ext_modules=[Extension("eeg_gan._C", [])], cmdclass={"build_ext": BuildOperators, "bdist_wheel": Wheel})
