"""What the simulator of kernels finds: each seeded fault, and none where there is none."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulator
import torch

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(bool(simulator.why_not()), reason=simulator.why_not() or "-")


@pytest.fixture(scope="module")
def faults():
    return simulator.load("faults", folder=HERE)


def pointer(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def reversed_blocks(faults, sync: bool, order: int) -> bool:
    x = torch.arange(192.0)
    expected = x.reshape(3, 64).flip(1).flatten()
    simulator.run(faults.run_reverse, pointer(x), 3, int(sync), order=order)
    return x.equal(expected)


@pytest.mark.parametrize("order", simulator.ORDERS)
def test_a_missing_barrier_shows_in_every_order(faults, order):
    assert reversed_blocks(faults, True, order)
    assert not reversed_blocks(faults, False, order)


@pytest.mark.parametrize("order", simulator.ORDERS)
def test_warps_exchange_and_vote(faults, order):
    x = torch.randn(128)
    sums, again, count = torch.zeros(2), torch.zeros(1, dtype=torch.double), torch.zeros(1, dtype=torch.int32)
    simulator.run(faults.run_sums, pointer(x), pointer(sums), pointer(again), pointer(count), 2, order=order)
    torch.testing.assert_close(sums, x.reshape(2, 64).sum(1))
    torch.testing.assert_close(again[0], x.double().sum(), atol=1e-5, rtol=0)
    assert count.item() == (x > 0).sum()


@pytest.mark.parametrize("order", simulator.ORDERS)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("sync_at_two_places", "threads wait at different __syncthreads"),
        ("sync_after_some_left", "not reached by all threads"),
        ("lanes_that_never_meet", "deadlock"),
    ],
)
def test_a_barrier_that_not_all_reach_fails_the_launch(faults, capfd, kernel, message, order):
    x = torch.zeros(64)
    with pytest.raises(AssertionError, match="the launch failed"):
        simulator.run(getattr(faults, f"run_{kernel}"), pointer(x), order=order)
    said = capfd.readouterr().err
    assert f"cusim: block (0, 0, 0): {message}" in said or message in said, said
    assert reversed_blocks(faults, True, order)  # the next launch is a new one


def test_shared_memory_that_nobody_wrote_is_not_a_number(faults):
    x = torch.zeros(64)
    simulator.run(faults.run_reads_what_nobody_wrote, pointer(x))
    assert x[:63].eq(1).all() and x[63].isnan()


@pytest.mark.skipif(os.environ.get("EEG_GAN_SANITIZE") == "1", reason="AddressSanitizer guards its ends instead")
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("order", simulator.ORDERS)
def test_static_shared_memory_that_nobody_wrote_is_not_a_number(faults, order, blocks):
    """Neither zero, as of a static variable, nor what the block before has left."""
    for _ in range(2):
        x, y = torch.zeros(64), torch.zeros(64, dtype=torch.double)
        simulator.run(faults.run_reads_static, pointer(x), pointer(y), blocks, order=order)
        for result in x, y:
            assert result[:63].eq(1).all() and result[63].isnan()


def test_headers_are_found_beside_an_nvcc_that_is_a_wrapper(tmp_path, monkeypatch):
    """An nvcc on PATH tells where its headers are; CUDA_HOME and /usr/local/cuda need not."""
    toolkit = tmp_path / "elsewhere"
    (toolkit / "include").mkdir(parents=True)
    (toolkit / "include/cuda_fp16.h").touch()
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}'\n")
    wrapper.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert simulator.cuda_include() == toolkit / "include"
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert simulator.cuda_include() == toolkit / "include"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((0, 1, 64, 256, 0), "an empty grid"),
        ((1, 65536, 64, 256, 0), "a grid that is too large"),
        ((1, 1, 1025, 256, 0), "a block of 1025 threads"),
        ((1, 1, 64, 50_000, 0), "50000 bytes of shared memory"),
    ],
)
def test_a_launch_that_a_gpu_would_refuse_is_refused(faults, capfd, words, message):
    x = torch.zeros(64)
    with pytest.raises(AssertionError, match="the launch failed"):
        simulator.run(faults.run_with, pointer(x), *words)
    assert message in capfd.readouterr().err


def test_more_shared_memory_is_had_for_the_asking(faults):
    x = torch.zeros(64)
    assert faults.run_with(pointer(x), 1, 1, 64, 50_000, 300_000) != 0
    simulator.run(faults.run_with, pointer(x), 1, 1, 64, 50_000, 60_000)


@pytest.mark.parametrize("order", simulator.ORDERS)
@pytest.mark.parametrize("kernel", ["writes_past_the_end", "reads_past_shared", "reverse"])
def test_address_sanitizer_names_the_line_of_a_bad_index(kernel, order):
    library = simulator.compiled(HERE / "faults.cu", *simulator.SANITIZERS)
    preload = " ".join(
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    )
    words = "x, 1, 1" if kernel == "reverse" else "x"
    code = f"import ctypes; x = (ctypes.c_float * 64)(); ctypes.CDLL({str(library)!r}).run_{kernel}({words})"
    environment = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "CUSIM_ORDER": str(order)}
    environment |= {"PYTHONMALLOC": "malloc"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if kernel == "reverse":
        assert done.returncode == 0, done.stderr
        return
    assert "heap-buffer-overflow" in done.stderr, done.stderr
    assert f"{kernel}" in done.stderr and "faults.cu:" in done.stderr
