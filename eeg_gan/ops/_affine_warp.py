"""The geometric part of adaptive augmentation: an affine warp of the endlessly reflected image, at double resolution.

Upsampling uses the low-pass of the sym6 wavelet and downsampling its adjoint, so that the identity returns the image
(sym6 is orthonormal). The taps are not symmetric: the upsampled reflected signal has the period of the reflection,
2 (W - 1) pixels, but is not itself a reflection. One whole period is therefore held at double resolution, positions
are taken modulo the period, and every shape is fixed by the shape of the images.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.ops import library

SYM6 = (  # low-pass of the least asymmetric Daubechies wavelet with 6 vanishing moments; sums to the root of 2
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
TAPS = len(SYM6)
MARGIN = TAPS // 2 - 1  # fine samples that downsampling needs on either side


def affine_warp(x: Tensor, matrix: Tensor) -> Tensor:
    """[N, C, H, W] warped by [N, 2, 3], which takes an output pixel to its place in the input.

    Both are (x right, y down, 1) in pixels from the image centre. Differentiable in x any number of times, not in the
    matrix. A side of one pixel is that pixel everywhere.
    """
    if x.ndim != 4:
        raise ValueError(f"affine_warp: x is [N, C, H, W]; got the shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"affine_warp: x holds floating-point numbers; got {x.dtype}")
    if matrix.shape != (len(x), 2, 3):
        raise ValueError(f"affine_warp: matrix is [N, 2, 3] with N = {len(x)} as x has; got {tuple(matrix.shape)}")
    if matrix.device != x.device:
        raise ValueError(f"affine_warp: matrix is on {matrix.device}, but x is on {x.device}; move it there")
    double = torch.float64 if x.dtype == torch.float64 else torch.float32
    matrix = matrix.detach().to(double).contiguous()
    if library.serves("affine_warp", x):
        return torch.ops.eeg_gan.affine_warp(x, matrix)
    return _twin(x, matrix)


def register() -> None:
    """The two operators are linear in the image, and each is the derivative of the other."""
    for name, other in (("affine_warp", "affine_warp_adjoint"), ("affine_warp_adjoint", "affine_warp")):
        torch.library.register_fake(f"eeg_gan::{name}", lambda x, matrix: torch.empty_like(x))
        backward = functools.partial(_backward, other)
        torch.library.register_autograd(f"eeg_gan::{name}", backward, setup_context=_keep_matrix)


def _keep_matrix(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(other: str, ctx, grad: Tensor):
    return getattr(torch.ops.eeg_gan, other)(grad, ctx.saved_tensors[0]), None


def _twin(x: Tensor, matrix: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.clone()
    height, width = x.shape[2:]
    with torch.autocast(x.device.type, enabled=False):
        y = x if x.dtype in (torch.float32, torch.float64) else x.float()
        key = (y.dtype, y.device)
        y = _reflected_upsampling(height, *key) @ (y @ _reflected_upsampling(width, *key).mT)
        y = _Sample.apply(y, _positions(matrix, height, width))
        y = _downsampling(height, *key) @ (y @ _downsampling(width, *key).mT)
    return y.to(x.dtype)


@functools.lru_cache(maxsize=32)
def _reflected_upsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[period + 1, size]: row j is the value of the reflected image at pixel (j - 1/2) / 2, from 0 to one period."""
    period = max(2 * (size - 1), 1)
    weights = torch.zeros(2 * period + 1, size, dtype=torch.float64)
    rows = torch.arange(2 * period + 1)
    for k, tap in enumerate(reversed(SYM6)):
        pixel, odd = (rows + k - TAPS // 2).div(2, rounding_mode="floor"), (rows + k) % 2 == 1
        pixel = (pixel + size - 1).remainder(period) - (size - 1)  # -(size - 1) .. size - 2, a mirror about 0
        weights[rows, pixel.abs()] += (~odd).double() * (tap * 2**0.5)
    return _constant(weights, dtype, device)


@functools.lru_cache(maxsize=32)
def _downsampling(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, 2 size + 2 margins], the adjoint of the upsampling with unit gain at zero frequency."""
    weights = torch.zeros(size, 2 * size + 2 * MARGIN, dtype=torch.float64)
    rows = torch.arange(size)
    for k, tap in enumerate(SYM6):
        weights[rows, 2 * rows + k] = tap / 2**0.5
    return _constant(weights, dtype, device)


def _constant(weights: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached tensor must serve autograd later
        return weights.to(device=device, dtype=dtype, copy=True)


def _positions(matrix: Tensor, height: int, width: int) -> Tensor:
    """[N, 2H + 2 margins, 2W + 2 margins, 2]: where to sample, with one period from -1 to 1 as grid_sample wants it."""
    from_centre = [
        (torch.arange(-MARGIN, 2 * size + MARGIN, device=matrix.device, dtype=matrix.dtype) - 0.5) / 2 - (size - 1) / 2
        for size in (height, width)
    ]
    y, x = from_centre[0][:, None, None], from_centre[1][:, None]
    sizes = torch.tensor([width, height], device=matrix.device, dtype=matrix.dtype)
    period = (4 * (sizes - 1)).clamp(min=2)  # in fine samples; fine = 2 * pixel + 1/2, pixel counted from the first one
    to_grid = matrix[:, None, None] * (4 / period)[:, None]
    shift = (sizes - 1 + 0.5) * 2 / period
    positions = torch.addcmul(to_grid[..., 2] + shift, to_grid[..., 0], x) + to_grid[..., 1] * y
    return positions.remainder_(2).sub_(1)


class _Sample(torch.autograd.Function):
    """Bilinear `grid_sample`, linear in the image, with every derivative in the image on any version of PyTorch."""

    @staticmethod
    def forward(ctx, image: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = image.shape
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _SampleAdjoint.apply(grad, ctx.saved_tensors[0], ctx.shape), None


class _SampleAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        unread = grad.new_zeros(1).expand(shape)  # the operator wants the image for its shape
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(grad, unread, grid, 0, 1, True, [True, False])[0]  # bilinear, border, align_corners

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Sample.apply(grad, ctx.saved_tensors[0]), None, None
