"""Runs the compiled operators of an installed wheel: values, derivatives, shapes under fake tensors, against the twins.

Needs torch and numpy alone. Run from outside the source folder: python -P check_ops.py
"""

import ctypes
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eeg_gan import ops
from eeg_gan.ops import library

MATRIX = [[0.8, -0.5, 1.3], [0.6, 0.9, -2.1]]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}


def calls(x: torch.Tensor, dtype: torch.dtype) -> dict:
    """Every operator as a function of an image; what it needs besides has values of `dtype`, in the image's type."""
    f = ops.setup_filter([1, 3, 3, 1], separable=True)
    b = torch.linspace(-1, 1, x.shape[1]).to(dtype).to(x.dtype)
    matrix = torch.tensor([MATRIX] * len(x), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    found = {
        "upfirdn2d up": lambda x: ops.upsample2d(x, f),
        "upfirdn2d down": lambda x: ops.downsample2d(x, ops.setup_filter([1, 2, 1])),
        "affine_warp": lambda x: ops.affine_warp(x, matrix),
    }
    clamp = 2.0 if dtype.itemsize > 2 else None  # a rounded value may lie on the other side of it
    found |= {f"bias_act {act}": lambda x, act=act: ops.bias_act(x, b, act=act, clamp=clamp) for act in ops.ACTIVATIONS}
    return found


def derivatives(f, x: torch.Tensor) -> list[torch.Tensor]:
    """The value, its derivative in a fixed direction, and the derivative of that one's square."""
    x = x.detach().clone().requires_grad_()
    y = f(x)
    weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
    (first,) = torch.autograd.grad((y * weight * y).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return [y.detach(), first.detach(), second]


def check(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Against the twin in float64, which has the same values before it and no rounding of its own."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 13, 10).to(dtype).contiguous(memory_format=layout)
    values = derivatives(calls(x, dtype)[name], x)
    with library.twins():
        twins = derivatives(calls(x.double(), dtype)[name], x.double())
    for order, (value, twin) in enumerate(zip(values, twins, strict=True)):
        gap = (value.double() - twin).abs().max().item() / max(twin.abs().max().item(), 1.0)
        assert gap < TOLERANCE[dtype] * (1 + 2 * order), f"{name}, {dtype}, {layout}: order {order} is off by {gap}"
    y = values[0]
    with FakeTensorMode():
        x = torch.empty(x.shape, dtype=dtype).to(memory_format=layout)
        fake = calls(x, dtype)[name](x)
    assert (fake.shape, fake.stride(), fake.dtype) == (y.shape, y.stride(), y.dtype), f"{name}: {fake.stride()}"


def main() -> None:
    where = Path(ops.__file__)
    assert "site-packages" in where.parts, f"{where} is not the installed wheel"
    assert library.available(), library.why_not()
    for name in ("upfirdn2d", "bias_act", "affine_warp"):
        assert library.has_kernel(name, "cpu"), f"no CPU kernel of {name}"
        if library.facts()["cuda"]:
            found = torch._C._dispatch_has_kernel_for_dispatch_key(f"eeg_gan::{name}", "CUDA")
            assert found, f"no CUDA kernel of {name}"
    assert library.has_kernel("conv3x3", "cpu"), "no CPU kernel of conv3x3"
    x, weight = torch.randn(2, 32, 13, 10), torch.randn(64, 32, 3, 3)
    values = ops.conv3x3(x, weight)
    with library.twins():
        torch.testing.assert_close(values, ops.conv3x3(x, weight), rtol=0, atol=1e-3)
    if torch.version.cuda and library.facts()["cuda"]:  # looked up as the loader did it: in what the library links to
        assert ctypes.CDLL(str(library.path())).aoti_torch_get_current_cuda_stream
    names, count = list(calls(torch.zeros(1, 8, 4, 4), torch.float32)), 0
    for dtype in TOLERANCE:
        for layout in (torch.contiguous_format, torch.channels_last):
            for name in names:
                check(name, dtype, layout)
                count += 1
    cuda = f"CUDA kernels for {' '.join(library.facts()['architectures'])}" if library.facts()["cuda"] else "no CUDA"
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}: {count} checks passed; {cuda}")


if __name__ == "__main__":
    main()
