"""The image operations against their definitions, and their first and second derivatives."""

import math
import os
import shutil

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import _affine_warp, _upfirdn2d


def naive(x, f, up, down, pads, flip, gain):
    """Insert zeros, pad or crop, convolve tap by tap, keep every d-th sample; all in the order (x, y)."""
    f = torch.outer(f, f) if f.ndim == 1 else f
    n, c, height, width = x.shape
    z = x.new_zeros(n, c, height * up[1], width * up[0])
    z[:, :, :: up[1], :: up[0]] = x
    big = x.new_zeros(n, c, z.shape[2] + 40, z.shape[3] + 40)
    big[:, :, 20:-20, 20:-20] = z
    x0, x1, y0, y1 = pads
    z = big[:, :, 20 - y0 : big.shape[2] - 20 + y1, 20 - x0 : big.shape[3] - 20 + x1]
    f = f if flip else f.flip((0, 1))
    rows, columns = z.shape[2] - f.shape[0] + 1, z.shape[3] - f.shape[1] + 1
    out = sum(f[i, j] * z[:, :, i : i + rows, j : j + columns] for i in range(f.shape[0]) for j in range(f.shape[1]))
    return gain * out[:, :, :: down[1], :: down[0]]


CASES = [
    ((1, 1), (1, 1), (0, 0, 0, 0)),
    ((2, 1), (1, 2), (2, 1, 3, 0)),
    ((2, 3), (1, 1), (4, 3, 2, 2)),
    ((2, 2), (3, 2), (-1, 4, 3, -2)),
    ((1, 1), (2, 2), (-2, 1, 2, 2)),
    ((3, 1), (2, 1), (7, 6, 5, 8)),
]


@pytest.mark.parametrize("matrix", [True, False])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(4,), (5,), (3, 4)])
@pytest.mark.parametrize(("up", "down", "pads"), CASES)
def test_upfirdn2d_is_its_definition_and_has_the_right_adjoint(monkeypatch, up, down, pads, shape, flip, matrix):
    monkeypatch.setattr(_upfirdn2d, "MATRIX_MAX", 64 if matrix else 0)
    f = torch.randn(shape).double()
    x = torch.randn(2, 3, 9, 8, dtype=torch.double, requires_grad=True)
    y = ops.upfirdn2d(x, f, up, down, pads, flip, 1.7)
    torch.testing.assert_close(y, naive(x, f, up, down, pads, flip, 1.7))
    other = torch.randn_like(y)
    (adjoint,) = torch.autograd.grad(y, x, other)
    torch.testing.assert_close((y * other).sum(), (x * adjoint).sum())
    fh, fw = shape if len(shape) == 2 else shape * 2
    height, width = y.shape[2:]
    x0, _, y0, _ = pads
    back = (
        fw - x0 - 1,
        8 * up[0] - width * down[0] + x0 - up[0] + 1,
        fh - y0 - 1,
        9 * up[1] - height * down[1] + y0 - up[1] + 1,
    )
    torch.testing.assert_close(adjoint, ops.upfirdn2d(other, f, down, up, back, not flip, 1.7))


def test_setup_filter():
    short, long = ops.setup_filter([1, 3, 3, 1]), ops.setup_filter([1.0] * 8)
    assert short.shape == (4, 4) and long.shape == (8,)
    torch.testing.assert_close(short[1], torch.tensor([3.0, 9, 9, 3]) / 64)
    torch.testing.assert_close(ops.setup_filter([1, 3, 3, 1], separable=True), torch.tensor([1.0, 3, 3, 1]) / 8)
    torch.testing.assert_close(ops.setup_filter([1, 1], gain=4.0, separable=True), torch.ones(2))
    with pytest.raises(ValueError, match="one or two axes"):
        ops.setup_filter(torch.ones(1, 2, 3))


@pytest.mark.parametrize("separable", [True, False])
def test_resampling_keeps_a_constant_and_the_size(separable):
    f = ops.setup_filter([1, 3, 3, 1], separable=separable)
    x = torch.full((1, 2, 12, 8), 3.0)
    for y, size in [
        (ops.upsample2d(x, f), (24, 16)),
        (ops.downsample2d(x, f), (6, 4)),
        (ops.filter2d(x, f), (12, 8)),
        (ops.upsample2d(x, f, up=(2, 1)), (12, 16)),
    ]:
        assert y.shape[2:] == size
        torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.full_like(y[:, :, 2:-2, 2:-2], 3.0))


def test_upfirdn2d_types_and_errors():
    x = torch.randn(1, 2, 8, 8, dtype=torch.bfloat16)
    assert ops.upsample2d(x, ops.setup_filter([1, 3, 3, 1])).dtype == torch.bfloat16
    assert ops.upfirdn2d(x, None).equal(x)
    with pytest.raises(ValueError, match="at least 1"):
        ops.upfirdn2d(x, None, up=0)
    with pytest.raises(ValueError, match="do not fit"):
        ops.upfirdn2d(x, torch.ones(4, 4), padding=-3)


FORMULAS = {
    "linear": lambda v: v,
    "relu": lambda v: math.sqrt(2) * max(v, 0),
    "lrelu": lambda v: math.sqrt(2) * (v if v > 0 else 0.2 * v),
    "tanh": math.tanh,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "elu": lambda v: v if v > 0 else math.expm1(v),
    "selu": lambda v: 1.0507009873554805 * (v if v > 0 else 1.6732632423543772 * math.expm1(v)),
    "softplus": lambda v: math.log1p(math.exp(v)),
    "swish": lambda v: math.sqrt(2) * v / (1 + math.exp(-v)),
}


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
def test_bias_act(act):
    x = torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True)
    b = torch.randn(3, dtype=torch.double, requires_grad=True)
    before = x.detach().clone()
    y = ops.bias_act(x, b, act=act)
    assert x.equal(before)
    assert y[1, 2, 0, 1].item() == pytest.approx(FORMULAS[act]((x[1, 2, 0, 1] + b[2]).item()))
    torch.testing.assert_close(ops.bias_act(x, b, act=act, gain=-3.0), y * (-3.0 / ops.ACTIVATIONS[act][0]))
    assert gradcheck(lambda x, b: ops.bias_act(x, b, act=act, clamp=0.9), (x, b))
    assert gradgradcheck(lambda x, b: ops.bias_act(x, b, act=act, gain=1.3, alpha=0.3), (x, b))


def test_bias_act_clamp_ends_the_gradient_and_dim_picks_the_axis():
    x = torch.tensor([-3.0, -2.0, 0.5, 2.0, 3.0], requires_grad=True)
    y = ops.bias_act(x, clamp=2.0)
    y.sum().backward()
    assert y.tolist() == [-2, -2, 0.5, 2, 2] and x.grad.tolist() == [0, 0, 1, 0, 0]
    assert ops.bias_act(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), dim=0).tolist() == [[1] * 3, [2] * 3]
    with pytest.raises(ValueError, match="lrelu"):
        ops.bias_act(x, act="leaky")


def brute_force_warp(x, matrix):
    """Tile the image by reflection, upsample it whole, sample pixel by pixel, downsample; one channel of one image."""
    height, width = x.shape
    tiles, period = 5, (2 * (height - 1), 2 * (width - 1))
    place = [torch.arange(-tiles * p, tiles * p + 1) for p in period]
    rows, columns = (torch.minimum(i % p, p - i % p) for i, p in zip(place, period, strict=True))
    taps = torch.tensor(_affine_warp.SYM6, dtype=torch.double)
    f = torch.outer(taps, taps) / 2
    fine = ops.upsample2d(x[rows][:, columns][None, None], f, up=2)[0, 0]
    out = torch.zeros(2 * height + 10, 2 * width + 10, dtype=x.dtype)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            point = ((j - 5.5) / 2 - (width - 1) / 2, (i - 5.5) / 2 - (height - 1) / 2, 1.0)
            u, v = (sum(m * p for m, p in zip(row, point, strict=True)) for row in matrix.tolist())
            u = 2 * (u + (width - 1) / 2 + tiles * period[1]) + 0.5
            v = 2 * (v + (height - 1) / 2 + tiles * period[0]) + 0.5
            a, b, s, t = int(v), int(u), v - int(v), u - int(u)
            upper = fine[a, b] * (1 - t) + fine[a, b + 1] * t
            lower = fine[a + 1, b] * (1 - t) + fine[a + 1, b + 1] * t
            out[i, j] = upper * (1 - s) + lower * s
    return ops.upfirdn2d(out[None, None], f, down=2, flip_filter=True)[0, 0]


WARPS = [
    [[1.0, 0, 0], [0, 1, 0]],
    [[0.8, -0.5, 3.3], [0.6, 0.9, -2.1]],
    [[-1.4, 0.2, 11.7], [0.3, 1.6, -14.2]],
    [[0.0, 1.0, 0.0], [-1.0, 0.0, 4.0]],
]


@pytest.mark.parametrize("warp", WARPS)
def test_affine_warp_is_the_warp_of_the_endless_reflection(warp):
    x = torch.randn(1, 1, 7, 9, dtype=torch.double)
    matrix = torch.tensor([warp], dtype=torch.double)
    torch.testing.assert_close(ops.affine_warp(x, matrix)[0, 0], brute_force_warp(x[0, 0], matrix[0]))


def test_sym6_is_orthonormal():
    taps = torch.tensor(_affine_warp.SYM6, dtype=torch.double)
    products = [(taps[2 * k :] * taps[: 12 - 2 * k]).sum() for k in range(6)]
    torch.testing.assert_close(torch.stack(products), torch.eye(6, dtype=torch.double)[0], atol=1e-9, rtol=0)


def test_affine_warp_known_answers():
    x = torch.randn(2, 3, 12, 10)
    eye = torch.eye(2, 3).expand(2, 2, 3)
    torch.testing.assert_close(ops.affine_warp(x, eye), x, atol=1e-4, rtol=0)
    shifted = ops.affine_warp(x, eye + torch.tensor([[0.0, 0, 3], [0, 0, -2]]))  # reads 3 px right, 2 px up
    torch.testing.assert_close(shifted[:, :, 2:, :-3], x[:, :, :-2, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(shifted[:, :, 0, :-3], x[:, :, 2, 3:], atol=1e-4, rtol=0)  # reflected about row 0
    period = ops.affine_warp(x, eye + torch.tensor([[0.0, 0, 18], [0, 0, -22]]))
    torch.testing.assert_close(period, x, atol=1e-4, rtol=0)


def test_affine_warp_turns_and_mirrors_smooth_images():
    t = torch.arange(24) * (math.pi / 23)
    x = (torch.cos(t)[:, None] + 0.5 * torch.cos(2 * t)[None, :])[None, None]
    mirrored = ops.affine_warp(x, torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]))
    torch.testing.assert_close(mirrored, x.flip(3), atol=0.06, rtol=0)
    turned = ops.affine_warp(x, torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]))  # output x axis reads the input y axis
    torch.testing.assert_close(turned, x.mT.flip(2), atol=0.06, rtol=0)


def test_affine_warp_is_twice_differentiable():
    x = torch.randn(2, 1, 4, 5, dtype=torch.double, requires_grad=True)
    matrix = torch.tensor(WARPS[1:3], dtype=torch.double)
    assert gradcheck(lambda x: ops.affine_warp(x, matrix), (x,))
    assert gradgradcheck(lambda x: ops.affine_warp(x, matrix) ** 2, (x,))


def test_affine_warp_stays_exact_under_autocast_and_after_inference_mode():
    x, matrix = torch.randn(1, 3, 17, 17, requires_grad=True), torch.tensor(WARPS[1:2])
    with torch.inference_mode():
        expected = ops.affine_warp(x, matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.affine_warp(x, matrix)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), expected.clone())


@pytest.mark.skipif(shutil.which("g++") is None or os.environ.get("EEG_GAN_BUILD") == "0", reason="nothing was built")
def test_library_serves_where_there_is_a_compiler():
    assert ops.available(), ops.why_not()
