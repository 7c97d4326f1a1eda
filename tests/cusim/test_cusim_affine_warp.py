"""The CUDA kernels of the affine warp, run on the CPU thread by thread, against the PyTorch twin in float64."""

import ctypes
import math

import pytest
import simulator
import torch

from eeg_gan.ops import _affine_warp

if simulator.why_not():
    pytest.skip(simulator.why_not(), allow_module_level=True)

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class Shape(ctypes.Structure):
    _fields_ = [
        ("n", ctypes.c_int64),
        ("c", ctypes.c_int64),
        ("h", ctypes.c_int),
        ("w", ctypes.c_int),
        ("read", ctypes.c_int64 * 4),
        ("written", ctypes.c_int64 * 4),
    ]


def simulated(name, x, matrix, order=0, like=None):
    y = torch.full_like(x if like is None else like, math.nan)
    strides = [(ctypes.c_int64 * 4)(*t.stride()) for t in (x, y)]
    matrix = matrix.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, matrix, y)]
    shape = Shape(*x.shape, *strides)
    function = getattr(simulator.load("affine_warp"), name)
    simulator.run(function, ctypes.byref(shape), DTYPES[x.dtype], *pointers, ctypes.c_void_p(0), order=order)
    return y


def expected(x, matrix):
    """The warp and its adjoint, both of x."""
    x = x.double().requires_grad_()
    y = _affine_warp._twin(x, matrix.double())
    (adjoint,) = torch.autograd.grad(y, x, x.detach())
    return y.detach(), adjoint


def check(x, matrix, order=0, like=None):
    tolerance = TOLERANCE[x.dtype]
    names = ("eeg_gan_affine_warp", "eeg_gan_affine_warp_adjoint")
    for name, correct in zip(names, expected(x, matrix), strict=True):
        y = simulated(name, x, matrix, order, like)
        error = (y.double() - correct).abs().max() / correct.abs().max().clamp(min=1)
        assert error <= tolerance, (name, float(error))


def turned(degrees, scale, x=0.0, y=0.0):
    c, s = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    return torch.tensor([[[c, -s, x], [s, c, y]]])


@pytest.mark.parametrize("order", simulator.ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_in_every_order_of_threads(dtype, order):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 21, 37).to(dtype)
    check(x, torch.cat([turned(40, 1.1, 3.3, -7.1), turned(0, 1)]), order)


@pytest.mark.parametrize("degrees, scale", [(30, 1), (200, 3), (80, 0.3), (45, 8), (10, 0.125)])
def test_turns_and_scales(degrees, scale):
    torch.manual_seed(1)
    check(torch.randn(1, 1, 40, 40), turned(degrees, scale, 13.7, -1000.2))


MATRICES = {
    "nothing": [[0.0, 0, 0], [0, 0, 0]],
    "one row": [[1.0, 0, 2], [0, 0, 1.3]],
    "one column": [[0.0, 0, -3.2], [0, 1, 4]],
    "a line": [[1.0, 2, 0], [0.5, 1, 0]],
    "nearly a line": [[1.0, 2, 0], [0.5, 1 + 1e-5, 0]],
    "mirror": [[-1.0, 0, 0.5], [0, 1, 0]],
    "shear": [[1.0, 2.5, 0], [0, 1, 0]],
    "far": [[0.9, 0.3, 1e5 + 0.3], [-0.3, 0.9, -3e5]],
    "flat": [[8.0, 0, 1], [0, 0.125, 0]],
    "very strong": [[300.0, 20, 1], [-50, 400, 0]],
}


@pytest.mark.parametrize("name", MATRICES)
def test_singular_and_extreme_matrices(name):
    torch.manual_seed(2)
    x = torch.randn(1, 1, 18, 20, dtype=torch.float64)
    check(x, torch.tensor([MATRICES[name]]))
    if name not in ("very strong", "far"):
        check(x.float(), torch.tensor([MATRICES[name]]))


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 2, 1, 9), (1, 1, 9, 1), (1, 1, 2, 3), (1, 1, 3, 33), (2, 3, 8, 5)])
def test_small_and_thin_images(shape):
    torch.manual_seed(3)
    matrix = torch.randn(shape[0], 2, 3)
    check(torch.randn(shape, dtype=torch.float64), matrix)


def test_layouts():
    torch.manual_seed(4)
    x, matrix = torch.randn(2, 3, 19, 18), torch.cat([turned(70, 0.9), turned(-20, 1.2, 5)])
    check(x.to(memory_format=torch.channels_last), matrix)
    check(x.mT.contiguous().mT[:, :, ::2], matrix, like=torch.empty(2, 3, 10, 18))
