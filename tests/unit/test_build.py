"""setup.py: which kernels are built for which machine, and what the built library is made of."""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from eeg_gan.ops import library

ROOT = Path(__file__).parents[2]
KNOWN = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
SETTINGS = (
    "CXX", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS",
    "EEG_GAN_CUDA", "EEG_GAN_BUILD", "EEG_GAN_SANITIZE",
)  # fmt: skip
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, with none of its settings made."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("eeg_gan_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "eeg_gan_setup", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        (" 8.0 8.6, 8.0 ", ["8.0", "8.6"]),
        ("9.0a", ["9.0a"]),
        ("Hopper", ["9.0+PTX"]),
        ("Ampere;12.0", ["8.0", "8.6+PTX", "12.0"]),
    ],
)
def test_architectures_are_written_as_torch_writes_them(build, wanted, names):
    assert build.architectures(wanted, KNOWN) == names


def test_the_default_is_cut_to_what_nvcc_knows_and_ends_in_ptx(build):
    assert build.architectures("", KNOWN) == ["7.5", "8.0", "9.0", "10.0", "12.0+PTX"]
    assert build.architectures("", ["8.0", "8.6", "9.0"]) == ["8.0", "9.0+PTX"]
    assert build.architectures(" ", []) == build.ARCHITECTURES.split()
    with pytest.raises(build.Missing, match="none of"):
        build.architectures("", ["3.5"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("sm_80", "write numbers such as 8.0"), ("hopper", "Hopper"), ("7.0", "this nvcc knows"), ("8.0;;x", "'x'")],
)
def test_nonsense_in_the_list_of_architectures_is_named(build, wanted, message):
    with pytest.raises(SystemExit, match=message):
        build.architectures(wanted, KNOWN)


def test_native_asks_for_the_gpus(build, tool, monkeypatch):
    tool("nvidia-smi", "printf '9.0\\n8.0\\n9.0\\n'")
    assert build.architectures("native", KNOWN) == ["8.0", "9.0"]
    tool("nvidia-smi", "exit 9")
    with pytest.raises(SystemExit, match="no GPU"):
        build.architectures("native", KNOWN)


def test_flags(build):
    assert build.gencode(("8.0", "9.0a+PTX")) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    assert build.words(["a b", "$c"]) == "'a b' '$$c'"
    assert build.escaped("../a b/$c:d") == "../a$ b/$$c$:d"


@pytest.mark.parametrize(
    ("name", "value", "call"),
    [
        ("EEG_GAN_CUDA", "yes", "find_cuda"),
        ("EEG_GAN_BUILD", "2", "compiler"),
        ("MAX_JOBS", "many", "jobs"),
        ("MAX_JOBS", "0", "jobs"),
        ("CXX", "/nowhere/g++ -m64", "compiler"),
    ],
)
def test_a_wrong_setting_stops_and_is_named(build, monkeypatch, name, value, call):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=name):
        getattr(build, call)()


def test_settings_choose_the_compiler(build, tool, monkeypatch):
    tool("ccache", "")
    monkeypatch.setenv("CXX", "ccache g++-12")
    assert build.compiler() == ["ccache", "g++-12"]
    cuda = build.Cuda("nvcc", "13.0", (), (), True, ("9.0",))
    assert build.nvcc_words(cuda, build.compiler())[-3:] == ["-ccbin", "g++-12", *build.gencode(("9.0",))]
    monkeypatch.setenv("EEG_GAN_BUILD", "0")
    with pytest.raises(build.Missing, match="EEG_GAN_BUILD"):
        build.compiler()


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a shell script of that name first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, script: str) -> str:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        return str(folder / name)

    return write


@pytest.fixture
def toolkit(tmp_path, tool):
    """A CUDA toolkit of empty files, and an nvcc in PATH that is a wrapper elsewhere."""

    def write(*files: str, version: str = "release 12.4, V12.4.1", known: str = "compute_80\\ncompute_90") -> str:
        for name in ("include", "lib"):
            (tmp_path / "tool kit" / name).mkdir(parents=True, exist_ok=True)
        for name in files:
            (tmp_path / "tool kit" / name).touch()
        top = tmp_path / "tool kit"
        return tool(
            "nvcc",
            f'case "$1" in --version) echo "{version}";; --list-gpu-arch) printf "{known}";;'
            f""" *) echo '#$ TOP={top}/bin/..' >&2; echo '#$ INCLUDES="-I{top}/include"' >&2;; esac""",
        )

    return write


def test_a_toolkit_is_found_by_what_nvcc_says_of_itself(build, toolkit, tmp_path):
    nvcc = toolkit("include/cuda_runtime.h", "lib/libcudart_static.a")
    cuda = build.find_cuda()
    assert (cuda.nvcc, cuda.version, cuda.static) == (nvcc, "12.4", True)
    assert cuda.include == (tmp_path / "tool kit/include",) and cuda.libraries == (tmp_path / "tool kit/lib",)
    assert cuda.architectures == ("8.0", "9.0+PTX")
    assert "-lcudart_static" in build.link_flags(cuda, False)


def test_a_toolkit_without_the_static_library_takes_the_shared_one(build, toolkit, tmp_path):
    toolkit("include/cuda_runtime.h", "lib/libcudart.so")
    cuda = build.find_cuda()
    assert not cuda.static
    assert build.link_flags(cuda, False)[-2:] == ["-lcudart", f"-Wl,-rpath,{tmp_path}/tool kit/lib"]


@pytest.mark.parametrize(
    ("files", "version", "why"),
    [
        (["lib/libcudart.so"], "release 12.4", "without cuda_runtime.h"),
        (["include/cuda_runtime.h"], "release 12.4", "without libcudart_static.a"),
        (["include/cuda_runtime.h", "lib/libcudart.so"], "no such thing", "does not answer"),
    ],
)
def test_half_a_toolkit_leaves_the_cuda_kernels_out_and_says_why(build, toolkit, files, version, why):
    toolkit(*files, version=version)
    with pytest.raises(build.Missing, match=why) as caught:
        build.find_cuda()
    assert "install eeg-gan again" in str(caught.value)


def test_cuda_home_is_believed(build, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.Missing, match="holds no bin/nvcc"):
        build.find_nvcc()


SOURCES = {
    "library.cpp": """#include <torch/csrc/stable/library.h>
#include "answer.h"
STABLE_TORCH_LIBRARY(eeg_gan_try, m) { m.def(ANSWER); }
""",
    "answer.h": '#define ANSWER "first(Tensor x) -> Tensor"\n',
    "kernel.cu": "__global__ void k(float* x) { x[threadIdx.x] = 1; }\n"
    'extern "C" int go(float* x) { k<<<1, 32>>>(x); return cudaGetLastError(); }\n',
}


@pytest.fixture
def project(tmp_path):
    """A small package that is built by this setup.py, in a folder whose name wants care."""
    root = tmp_path / "my $HOME is here"
    (root / "csrc").mkdir(parents=True)
    (root / "eeg_gan").mkdir()
    (root / "eeg_gan/__init__.py").write_text('__version__ = "1.0"\n')
    shutil.copy(ROOT / "setup.py", root)
    text = '[project]\nname = "eeg-gan"\nversion = "1.0"\n[tool.setuptools]\npackages = ["eeg_gan"]\n'
    (root / "pyproject.toml").write_text(text)
    for name, source in SOURCES.items():
        (root / "csrc" / name).write_text(source)
    return root


def setup(root: Path, *command: str, check: bool = True, **settings: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings
    done = subprocess.run(
        [sys.executable, "setup.py", *command], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def facts(root: Path) -> dict:
    return json.loads((root / "eeg_gan/_C.json").read_text())


def operators(library: Path, name: str) -> str:
    code = "import torch, sys; torch.ops.load_library(sys.argv[1]); "
    code += f"print(torch.ops.eeg_gan_try.{name}.default._schema)"
    return subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True).stdout.strip()


@needs_compiler
def test_builds_again_what_has_changed_and_only_that(project):
    done = setup(project, "build_ext", "--inplace", EEG_GAN_CUDA="0", MAX_JOBS="1")
    assert "CPU kernels by" in done.stderr and "EEG_GAN_CUDA=0" in done.stderr
    assert facts(project)["cpu"] and not facts(project)["cuda"] and "EEG_GAN_CUDA=0" in facts(project)["why"]
    assert operators(project / "eeg_gan/_C.so", "first").startswith("eeg_gan_try::first(")
    assert "no work to do" in setup(project, "build_ext", "--inplace", EEG_GAN_CUDA="0").stdout

    (project / "csrc/answer.h").write_text('#define ANSWER "second(Tensor x) -> Tensor"\n')
    before = facts(project)["sources"]
    setup(project, "build_ext", "--inplace", EEG_GAN_CUDA="0")
    assert operators(project / "eeg_gan/_C.so", "second").startswith("eeg_gan_try::second(")
    assert facts(project)["sources"] != before

    (project / "csrc/answer.h").write_text("#define ANSWER nonsense\n")
    done = setup(project, "build_ext", "--inplace", check=False, EEG_GAN_CUDA="0")
    assert done.returncode != 0 and "EEG_GAN_BUILD=0" in done.stderr and "nonsense" in done.stdout
    assert not (project / "eeg_gan/_C.so").exists()  # one that was made from other sources would mislead


@needs_compiler
def test_a_wheel_serves_every_python_and_takes_nothing_from_the_source_folder(project):
    (project / "eeg_gan/_C.so").write_text("from an earlier build in place")
    setup(project, "bdist_wheel", EEG_GAN_CUDA="0")
    (wheel,) = (project / "dist").iterdir()
    assert re.fullmatch(r"eeg_gan-1\.0-py3-none-(linux|macosx)\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert {"eeg_gan/_C.so", "eeg_gan/_C.json"} <= set(archive.namelist())
        assert archive.read("eeg_gan/_C.so")[:4] != b"from"


def test_without_a_compiler_everything_installs(project):
    (project / "eeg_gan/_C.so").write_text("from an earlier build")
    empty = project / "empty"
    empty.mkdir()
    done = setup(project, "build_ext", "--inplace", PATH=str(empty))
    assert "plain PyTorch serves" in done.stderr and not (project / "eeg_gan/_C.so").exists()
    assert facts(project)["why"] == "there was no C++ compiler" and "g++" in facts(project)["cure"]
    setup(project, "bdist_wheel", PATH=str(empty))
    (wheel,) = (project / "dist").iterdir()
    assert wheel.name == "eeg_gan-1.0-py3-none-any.whl"


@needs_compiler
def test_cuda_that_is_insisted_on_stops_where_there_is_none(project):
    done = setup(project, "build_ext", "--inplace", check=False, EEG_GAN_CUDA="1", CUDA_HOME=str(project))
    assert done.returncode != 0 and "EEG_GAN_CUDA=1" in done.stderr and "holds no bin/nvcc" in done.stderr


@needs_compiler
def test_cuda_kernels_need_no_gpu_and_the_library_no_cuda(project):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here")
    setup(project, "build_ext", "--inplace", TORCH_CUDA_ARCH_LIST="8.0")
    assert facts(project)["cuda"] and facts(project)["architectures"] == ["8.0"]
    library = project / "eeg_gan/_C.so"
    assert operators(library, "first").startswith("eeg_gan_try::first(")
    symbols = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
    assert not re.search(r" _*cuda\w+| _?Py\w+", symbols), "a symbol of CUDA's runtime or of Python's"


def test_the_digest_of_the_sources_is_the_one_that_the_doctor_compares(build):
    assert build.digest() == library.digest(ROOT / "csrc")


def test_no_kernel_file_includes_a_torch_header():
    for path in sorted((ROOT / "csrc").glob("*.cu*")):
        included = re.findall(r'#include ["<]([^">]+)', path.read_text())
        assert not [name for name in included if "torch" in name or "ATen" in name or name == "check.h"], path.name


@pytest.mark.heavy
@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the widths of vectors are those of x86-64")
def test_the_loops_of_activations_are_made_of_vectors(build, tmp_path):
    """On each instruction set, by what the compiler says of the flags of the library: one vector loop per activation.

    Element by element, with a branch for each sign, they take twenty times as long.
    """
    report = tmp_path / "report.txt"
    flags = [*map(str, build.cxx_flags(None, False)), f"-fopt-info-vec-optimized={report}", "-o", str(tmp_path / "x.o")]
    subprocess.run(["g++", *flags, "-c", str(ROOT / "csrc" / "bias_act.cpp")], check=True, capture_output=True)
    said = re.findall(r"bias_act_loops.h:(\d+):.*loop vectorized using (\d+) byte vectors", report.read_text())
    lines = (ROOT / "csrc" / "bias_act_loops.h").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("#define FORWARD"))
    loops = [number + 1 for number, line in enumerate(lines[:end]) if "i < n; ++i" in line]
    versions = (1, 1, 2, 2)  # backward, and backward of it, by x or by y
    assert len(loops) == len(versions)
    for line, each in zip(loops, versions, strict=True):
        for width in (16, 32, 64):
            assert said.count((str(line), str(width))) >= 7 * each, f"line {line}, vectors of {width} bytes"
