"""What the assembler says of the CUDA kernels: no spilled registers, and what each takes."""

import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "csrc").glob("*.cu"))
TARGETS = ("8.0", "9.0")


class Kernel(NamedTuple):
    name: str
    target: str
    registers: int
    shared: int
    stack: int
    spilled: int


def read(text: str) -> list[Kernel]:
    """Every kernel of what `nvcc -Xptxas -v` prints."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    kernels = []
    for name, target, stack, stores, loads, registers, rest in re.findall(pattern, text, re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels.append(
            Kernel(name, target, int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads))
        )
    return kernels


def families(names: list[str]) -> list[str]:
    """`k` for each mangled `void eeg_gan::(anonymous namespace)::k<float, 2>(float*)`."""
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.split(r"::| ", line.split("<")[0])[-1] for line in done.stdout.splitlines()]


def table(kernels: list[Kernel]) -> str:
    """One line for each kernel and target: the instances of a template together."""
    groups = defaultdict(list)
    for kernel, name in zip(kernels, families([kernel.name for kernel in kernels]), strict=True):
        groups[name, kernel.target].append(kernel)
    lines = ["kernel | target | instances | registers | shared bytes | stack bytes"]
    for (name, target), group in sorted(groups.items()):
        registers = sorted(kernel.registers for kernel in group)
        shared, stack = max(kernel.shared for kernel in group), max(kernel.stack for kernel in group)
        lines.append(f"{name} | {target} | {len(group)} | {registers[0]} to {registers[-1]} | {shared} | {stack}")
    return "\n".join(lines)


def compiled(source: Path, folder: Path) -> list[Kernel]:
    """Compiled with the flags of the installed library."""
    spec = importlib.util.spec_from_file_location("eeg_gan_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    cuda = setup.Cuda(setup.find_nvcc(), "", (), (), True, TARGETS)
    command = [*setup.nvcc_words(cuda, setup.compiler()), "-Xptxas", "-v", "-c", str(source), "-o", folder / "x.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read(done.stderr)


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_no_kernel_spills(source, tmp_path, capsys):
    kernels = compiled(source, tmp_path)
    assert {kernel.target for kernel in kernels} == {"sm_80", "sm_90"}
    with capsys.disabled():
        print(f"\n{table(kernels)}")
    assert [kernel for kernel in kernels if kernel.spilled] == []


def test_what_the_assembler_prints_is_read():
    text = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7eeg_gan12_GLOBAL__N_11kIfLi2EEEvPfl' for 'sm_90'
ptxas info    : Function properties for _ZN7eeg_gan12_GLOBAL__N_11kIfLi2EEEvPfl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 1024 bytes smem, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN7eeg_gan12_GLOBAL__N_11kIdLi2EEEvPfl' for 'sm_90'
ptxas info    : Function properties for _ZN7eeg_gan12_GLOBAL__N_11kIdLi2EEEvPfl
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
ptxas info    : Compile time = 3.6 ms
"""
    first, second = read(text)
    assert first[1:] == ("sm_90", 10, 1024, 0, 0) and second[1:] == ("sm_90", 255, 0, 16, 12)
    assert table([first, second]).splitlines()[1] == "k | sm_90 | 2 | 10 to 255 | 1024 | 16"
