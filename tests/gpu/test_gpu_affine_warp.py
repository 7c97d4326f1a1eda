"""The affine warp on a CUDA device against the PyTorch twin in float64 on the CPU."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import library

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
if not library.has_kernel("affine_warp", "cuda"):
    pytest.skip(f"no CUDA kernel of affine_warp: {ops.why_not() or 'built without nvcc'}", allow_module_level=True)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def turned(degrees, scale, x=0.0, y=0.0):
    c, s = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    return [[c, -s, x], [s, c, y]]


MATRICES = torch.tensor(
    [
        turned(0, 1),
        turned(33, 1.2, 3.3, -4.7),
        turned(90, 1, 1, 0),
        [[-1.0, 0, 0.5], [0, 1, 0]],
        [[1.0, 2.5, 0], [-0.1, 1, 3]],
        turned(70, 8, 1.1, 2.2),
        turned(-20, 0.125, -3, 0.3),
        [[0.0, 0, 0.3], [0, 0, -2.7]],
        [[1.0, 2, 0], [0.5, 1, 0]],
        turned(10, 0.9, 12345.5, -54321.25),
    ]
)


def both(x, matrix):
    """The warp of x, and the adjoint of that result."""
    x = x.detach().requires_grad_()
    y = ops.affine_warp(x, matrix)
    (adjoint,) = torch.autograd.grad(y, x, y.detach())
    return y.detach(), adjoint


def expected(x, matrix):
    with library.twins():
        return both(x.double().cpu(), matrix.double().cpu())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_twin(dtype, layout):
    torch.manual_seed(0)
    for shape in ((10, 3, 64, 64), (10, 1, 37, 150), (10, 2, 1, 5), (10, 1, 1, 1)):
        x = torch.randn(shape).to(dtype).cuda().to(memory_format=layout)
        results = both(x, MATRICES.cuda())
        for result, correct in zip(results, expected(x, MATRICES), strict=True):
            assert result.dtype == dtype and result.stride() == x.stride()
            scale = correct.abs().amax((1, 2, 3), keepdim=True).clamp(min=1)  # singular matrices gather many pixels
            error = (result.double().cpu() - correct).abs() / scale
            assert error.max() <= 2 * TOLERANCE[dtype], (shape, error.amax((1, 2, 3)))


def test_strides_and_empty_batches():
    x = torch.randn(10, 3, 20, 44, device="cuda")[..., ::2]
    torch.testing.assert_close(both(x, MATRICES.cuda())[0], both(x.contiguous(), MATRICES.cuda())[0])
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8)):
        assert ops.affine_warp(torch.zeros(shape, device="cuda"), torch.zeros(shape[0], 2, 3).cuda()).shape == shape


def test_derivatives():
    x = torch.randn(2, 1, 4, 5, dtype=torch.float64, device="cuda", requires_grad=True)
    matrix = MATRICES[[1, 4]].double().cuda()
    assert gradcheck(lambda x: ops.affine_warp(x, matrix), (x,))
    assert gradgradcheck(lambda x: ops.affine_warp(x, matrix) ** 2, (x,))
    for op in (torch.ops.eeg_gan.affine_warp, torch.ops.eeg_gan.affine_warp_adjoint):
        torch.library.opcheck(op, (x, matrix))


def test_is_deterministic_and_does_not_see_its_neighbours():
    x, matrix = torch.randn(10, 3, 64, 64, device="cuda"), MATRICES.cuda()
    first = both(x, matrix)
    for _ in range(5):
        assert all(a.equal(b) for a, b in zip(both(x, matrix), first, strict=True))
    alone = [both(x[i : i + 1], matrix[i : i + 1])[0] for i in range(10)]
    assert torch.cat(alone).equal(first[0])


def test_inside_a_cuda_graph_without_synchronisation():
    x, matrix = torch.randn(10, 3, 32, 32, device="cuda"), MATRICES.cuda()
    operators = torch.ops.eeg_gan.affine_warp, torch.ops.eeg_gan.affine_warp_adjoint
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for op in operators:
            op(x, matrix)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [op(x, matrix) for op in operators]
    x.copy_(torch.randn_like(x)), matrix.copy_(MATRICES.flip(0))
    graph.replay()
    for op, result in zip(operators, results, strict=True):
        assert result.equal(op(x, matrix))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for op in operators:
            op(x, matrix)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_more_than_two_thousand_million_elements():
    n = 2**31 // (64 * 64 * 4) + 3
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n * 64 * 64 * 4:
        pytest.skip("needs 13 GB of GPU memory")
    x = torch.zeros(n, 4, 64, 64, dtype=torch.bfloat16, device="cuda")
    x[-1] = torch.randn(4, 64, 64)
    matrix = MATRICES[1:2].cuda().expand(n, 2, 3)
    y = ops.affine_warp(x, matrix)
    assert y[-1].equal(ops.affine_warp(x[-1:], matrix[-1:])[0]) and not y[-2].any() and not y[0].any()
