"""Tensors of more than 2^31 elements, in bfloat16: slices about the 2^31st element against the twin of that slice.

Each takes up to 13 GB of memory and minutes: make test-big.
"""

import pytest
import torch

from eeg_gan import ops
from eeg_gan.ops import library

pytestmark = [pytest.mark.big, pytest.mark.skipif(not library.available(), reason=library.why_not() or "-")]
EDGE = 2**31


def filled(*shape: int) -> torch.Tensor:
    """Values that differ from image to image: a wrapped index cannot find the right one."""
    x = torch.empty(shape, dtype=torch.bfloat16)
    flat, chunk = x.flatten(), 1 << 24
    pattern = torch.randn(chunk + 4093, generator=torch.Generator().manual_seed(0)).bfloat16()
    for number, begin in enumerate(range(0, flat.numel(), chunk)):
        part = flat[begin : begin + chunk]
        part.copy_(pattern[number * 31 % 4093 :][: part.numel()])
    return x


def about_the_edge(*tensors: torch.Tensor) -> list[int]:
    """The first images, the last, and those beside element 2^31 of each tensor [N, ...]."""
    n = len(tensors[0])
    wanted = {0, 1, n - 2, n - 1}
    for tensor in tensors:
        image = EDGE // tensor[0].numel()
        wanted |= {i for i in range(image - 1, image + 2) if i < n}
    return sorted(wanted)


def compare(f, x: torch.Tensor, y: torch.Tensor, reach: float, **tolerance) -> None:
    assert max(x.numel(), y.numel()) > EDGE
    for i in about_the_edge(x, y):
        with library.twins():
            expected = f(x[i : i + 1].float(), i)
        torch.testing.assert_close(y[i : i + 1].float(), expected, **tolerance, msg=lambda m, i=i: f"image {i}: {m}")


CLOSE = {"atol": 0.03, "rtol": 0.02}  # what bfloat16 resolves at the size of these values


def test_bias_act():
    x, b = filled(9, 256, 1024, 1024 - 32), torch.randn(256)
    y = ops.bias_act(x, b.bfloat16(), act="lrelu", clamp=2.0)
    compare(lambda x, i: ops.bias_act(x, b.bfloat16().float(), act="lrelu", clamp=2.0), x, y, EDGE, **CLOSE)


def test_bias_act_backward():
    x, b = filled(9, 256, 1024, 1024 - 32), torch.randn(256).bfloat16()
    x.requires_grad_()
    y = ops.bias_act(x, b, act="lrelu", gain=1.0)
    (dx,) = torch.autograd.grad(y, x, x.detach())
    x = x.detach()
    del y
    slope = lambda x, i: x * torch.where(x + b.float()[:, None, None] > 0, 1.0, 0.2)  # noqa: E731
    compare(slope, x, dx, EDGE, **CLOSE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upfirdn2d_writes_beyond(layout):
    f = ops.setup_filter([1, 3, 3, 1], separable=True)
    x = filled(9, 64, 1024, 1024 - 32).contiguous(memory_format=layout)
    compare(lambda x, i: ops.upsample2d(x, f), x, ops.upsample2d(x, f), EDGE, **CLOSE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upfirdn2d_reads_beyond(layout):
    f = ops.setup_filter([1, 3, 3, 1])
    x = filled(9, 256, 1024, 1024 - 32)
    if layout == torch.channels_last:  # the same bytes, read as another image: a copy would take as much again
        x = x.view(9, 1024, 1024 - 32, 256).permute(0, 3, 1, 2)
    compare(lambda x, i: ops.downsample2d(x, f), x, ops.downsample2d(x, f), EDGE, **CLOSE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upfirdn2d_at_the_same_size(layout):
    f = ops.setup_filter([1, 2, 1])
    x = filled(9, 256, 1024, 1024 - 32)
    if layout == torch.channels_last:
        x = x.view(9, 1024, 1024 - 32, 256).permute(0, 3, 1, 2)
    compare(lambda x, i: ops.filter2d(x, f), x, ops.filter2d(x, f), EDGE, **CLOSE)


def test_affine_warp():
    """Very many small planes: the product of N and C counts, and each plane is cheap."""
    x = filled(35, 2**18, 16, 16 - 1)
    matrix = torch.tensor([[0.8, -0.5, 1.3], [0.6, 0.9, -2.1]]).repeat(len(x), 1, 1) + torch.randn(len(x), 2, 3) / 9
    y = ops.affine_warp(x, matrix)
    compare(lambda x, i: ops.affine_warp(x, matrix[i : i + 1]), x, y, EDGE, **CLOSE)
