"""Which kernels serve, why not, and the cure: in the library's words and the doctor's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eeg_gan.ops import library
from eeg_gan.stages import doctor

ROOT = Path(__file__).parents[2]
CUDA = {"cpu": True, "cuda": "13.0", "architectures": ["8.0", "9.0+PTX"], "cxx": "g++", "cxx_version": "12"}


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Makes the library believe in a build with these facts, loadable if `loads`."""

    def pretend(facts: dict | None, loads: bool = True, gpu: tuple[int, int] | None = None, driver: int = 13000):
        monkeypatch.setenv("EEG_GAN_LIBRARY", str(tmp_path / "_C.so"))
        if facts is not None:
            (tmp_path / "_C.json").write_text(json.dumps({"sources": library.digest(ROOT / "csrc")} | facts))
        if loads:
            (tmp_path / "_C.so").touch()
            monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
            monkeypatch.setattr(library.importlib, "import_module", lambda name: None)
        monkeypatch.setattr(torch.version, "cuda", "12.8" if gpu else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: gpu)
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
        forget()

    def forget():
        for cached in (library.facts, library._problem, library._has_kernel):
            cached.cache_clear()

    yield pretend
    monkeypatch.undo()
    forget()


def test_without_a_build_the_cure_is_to_install(built):
    built(None, loads=False)
    assert "was not built" in library.why_not() and "pip install --no-build-isolation" in library.cure()
    assert library.why_not("cuda") == library.why_not()
    finding = doctor._operators_cpu()
    assert finding.state == "note" and "was not built" in finding.fact and "pip install" in finding.cure


def test_without_a_compiler_the_cure_is_a_compiler(built):
    built({"cpu": False, "why": "there was no C++ compiler", "cure": "sudo apt install g++"}, loads=False)
    assert library.why_not() == "no kernels were built: there was no C++ compiler"
    assert library.cure().startswith("sudo apt install g++, then ")


def test_a_library_that_cannot_be_loaded_says_so(built, tmp_path):
    built(CUDA, loads=False)
    (tmp_path / "_C.so").write_text("no library")
    assert "cannot be loaded" in library.why_not() and not library.serves("bias_act", torch.zeros(1))


def test_cuda_that_was_left_out_is_told_with_the_reason(built):
    built({"cpu": True, "cuda": "", "why": "there was no nvcc", "cure": "set CUDA_HOME"}, gpu=(9, 0))
    assert library.why_not() == "" and library.why_not("cuda") == "no CUDA kernels were built: there was no nvcc"
    finding = doctor._operators_cuda()
    assert finding.state == "missing" and finding.cure.startswith("set CUDA_HOME, then ")
    assert not library.has_kernel("bias_act", "cuda")


def test_a_driver_that_is_too_old_leaves_the_twins_in_place(built):
    built(CUDA, gpu=(9, 0), driver=12080)
    assert "CUDA 13.0" in library.why_not("cuda") and "CUDA 12 only" in library.why_not("cuda")


def test_a_gpu_for_which_nothing_was_built_names_the_cure(built):
    built(CUDA, gpu=(7, 5))
    assert library.why_not("cuda") == "GPU 0 is a 7.5, and kernels were built for 8.0 9.0+PTX"
    assert "TORCH_CUDA_ARCH_LIST=7.5 pip install" in library.cure("cuda")


def test_the_doctor_is_content_with_what_serves(built):
    built(CUDA, gpu=(9, 0))
    assert library.why_not("cuda") == "" and doctor._operators_cuda().state == "ok"
    assert doctor._operators_cpu().state == "ok"
    built(CUDA)
    assert "build without CUDA" in library.why_not("cuda")
    finding = doctor._operators_cuda()
    assert finding.state == "note" and "8.0 9.0+PTX" in finding.fact and not finding.cure


def test_the_doctor_sees_sources_that_are_newer_than_the_library(built):
    built(CUDA | {"sources": "other"})
    assert doctor._operators_cpu().state == "missing" and "pip install" in doctor._operators_cpu().cure


@pytest.mark.parametrize(
    ("architectures", "capability", "fits"),
    [
        (["8.0"], (8, 0), True),
        (["8.0"], (8, 9), True),
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0+PTX"], (12, 1), True),
        (["9.0a"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),
        (["7.5", "12.0+PTX"], (10, 0), False),
        (["7.5", "10.0"], (10, 3), True),
    ],
)
def test_code_runs_on_its_generation_and_ptx_on_later_ones(architectures, capability, fits):
    assert library.covers(architectures, capability) == fits


def test_the_twins_can_be_asked_for(built, monkeypatch):
    built(CUDA)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: key == "CPU")
    x = torch.zeros(1)
    assert library.serves("bias_act", x) and not library.serves("bias_act", torch.zeros(1, device="meta"))
    with library.twins():
        assert not library.serves("bias_act", x)
    assert library.serves("bias_act", x)


def test_compiled_code_asks_once(built):
    """The question may be asked for the first time while torch.compile traces."""
    built(None, loads=False)
    f = torch.compile(lambda x: x + 1 if library.serves("bias_act", x) else x - 1, backend="eager", fullgraph=True)
    assert f(torch.zeros(1)).item() == -1


def test_importing_the_operators_takes_torch_and_numpy_alone():
    code = (
        "import sys; import torch, numpy; before = set(sys.modules); import eeg_gan.ops; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names); print(*new)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["eeg_gan"]


@pytest.mark.parametrize(
    "known, computes",
    [({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx512_bf16": False}, True), ({"avx512_f": True}, False)],
)
def test_a_processor_computes_in_bfloat16_where_it_says_so(monkeypatch, known, computes):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert library.computes_bfloat16() is computes


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_compiled_at_import_or_at_the_first_call(there, tmp_path):
    """No program is started: with the library, and with the twins where there is none."""
    code = """
import sys, torch, numpy
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"):
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(watch)
from eeg_gan import ops
x = torch.randn(1, 2, 8, 8, requires_grad=True)
y = ops.bias_act(ops.upsample2d(x, ops.setup_filter([1, 3, 3, 1])), torch.zeros(2), act="lrelu")
(gradient,) = torch.autograd.grad(ops.affine_warp(y, torch.eye(2, 3)[None]).sum(), x, create_graph=True)
torch.autograd.grad(gradient.square().sum(), x, allow_unused=True)
print(ops.available())
"""
    environment = dict(os.environ)
    if not there:
        environment["EEG_GAN_LIBRARY"] = str(tmp_path / "none.so")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(there and library.available())
