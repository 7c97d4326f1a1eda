"""The CUDA kernels of upfirdn2d, run thread by thread on the CPU, against the PyTorch twin."""

import ctypes

import pytest
import simulator
import torch

from eeg_gan.ops import _upfirdn2d

pytestmark = pytest.mark.skipif(bool(simulator.why_not()), reason=simulator.why_not() or "it runs")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
FACTORS = [(1, 1), (2, 1), (1, 2)]
NUMBERS = ("size", "out", "up", "down", "pad", "taps")


class Axis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in NUMBERS]


class Job(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "f", "y")]
    _fields_ += [(name, ctypes.c_int32) for name in ("dtype", "channels_last", "separable", "flip")]
    _fields_ += [("gain", ctypes.c_double), ("n", ctypes.c_int64), ("c", ctypes.c_int64), ("ax", Axis), ("ay", Axis)]


def simulated(x, f, up, down, pads, flip, gain, order, shift=0):
    """The kernel's result; x and the result lie `shift` elements behind an aligned address."""
    f = f.double() if x.dtype == torch.double else f
    (x0, x1, y0, y1), (height, width) = pads, x.shape[2:]
    out_w = (width * up[0] + x0 + x1 - f.shape[-1]) // down[0] + 1
    out_h = (height * up[1] + y0 + y1 - len(f)) // down[1] + 1
    last = not x.is_contiguous()
    moved = torch.empty(x.numel() + shift, dtype=x.dtype)[shift:]
    moved.copy_((x.permute(0, 2, 3, 1) if last else x).reshape(-1))
    shape = (x.shape[0], out_h, out_w, x.shape[1]) if last else (*x.shape[:2], out_h, out_w)
    y = torch.full((torch.Size(shape).numel() + shift,), torch.nan, dtype=x.dtype)[shift:].view(shape)
    job = Job(
        x=moved.data_ptr(), f=f.data_ptr(), y=y.data_ptr(), dtype=DTYPES.index(x.dtype), channels_last=last,
        separable=f.ndim == 1, flip=flip, gain=gain, n=x.shape[0], c=x.shape[1],
        ax=Axis(width, out_w, up[0], down[0], x0, f.shape[-1]), ay=Axis(height, out_h, up[1], down[1], y0, len(f)),
    )  # fmt: skip
    simulator.run(simulator.load("upfirdn2d").eeg_gan_upfirdn2d, ctypes.byref(job), None, order=order)
    return y.permute(0, 3, 1, 2) if last else y


def check(x, f, up, down, pads, flip=False, gain=1.5, order=0, shift=0):
    wide = _upfirdn2d._twin(x.double(), f.double(), *up, *down, *pads, flip, gain)
    y = simulated(x, f, up, down, pads, flip, gain, order, shift)
    close = TOLERANCE[x.dtype]
    torch.testing.assert_close(y.double(), wide, rtol=close, atol=close)


def images(*shape, dtype=torch.float32, last=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return x.to(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("order", simulator.ORDERS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("up", "down"), FACTORS)
def test_4x4_taps(up, down, dtype, last, order):
    x = images(2, 16 if last else 3, 9, 11, dtype=dtype, last=last)
    check(x, torch.randn(4, 4), (up, up), (down, down), (2, 1, 1, 2), True, order=order)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), FACTORS)
@pytest.mark.parametrize("pads", [(1, 2, 2, 1), (3, 0, -1, 4), (-1, -2, -3, -2), (5, 6, 7, 9)])
def test_4x4_taps_at_any_padding_size_and_alignment(pads, up, down, last):
    for shape in ((1, 1, 6, 5), (1, 6, 7, 12), (2, 5, 1, 40)):
        if shape[2] * up + pads[2] + pads[3] >= 4:
            check(images(*shape, last=last), torch.randn(4, 4), (up, up), (down, down), pads, shift=shape[1] % 4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), FACTORS)
def test_several_tiles(up, down, last):
    x = images(1, 72 if last else 1, 6 if last else 37, 40, last=last)
    check(x, torch.randn(4, 4), (up, up), (down, down), (2, 2, 2, 1))
    check(x, torch.randn(12), (up, up), (down, down), (6, 5, 6, 6))


@pytest.mark.parametrize("order", simulator.ORDERS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("up", "down"), FACTORS)
def test_separable_taps(up, down, dtype, last, order):
    x = images(2, 3, 6, 5, dtype=dtype, last=last)
    check(x, torch.randn(12 if order else 7) / 3, (up, up), (down, down), (7, 6, 5, 7), order=order)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather(dtype, last):
    x = images(2, 3, 7, 5, dtype=dtype, last=last)
    check(x, torch.randn(3, 5) / 3, (3, 2), (2, 1), (2, 4, -1, 3), True)
    check(x, torch.randn(5) / 2, (1, 2), (2, 3), (-2, 4, 3, 3))
    check(x, torch.randn(70) / 8, (2, 2), (1, 1), (40, 40, 40, 40))  # taps that no tile holds
