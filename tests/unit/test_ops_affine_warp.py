"""The affine warp and its adjoint: against the plain PyTorch twin, and against an independent definition in NumPy."""

import contextlib
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import _affine_warp, library

KINDS = ["kernel"] if os.environ.get("EEG_GAN_SANITIZE") == "1" else ["twin", "kernel"]


@pytest.fixture(params=KINDS)
def kind(request):
    """The test runs once with the twins and once with the compiled kernels."""
    if request.param == "kernel" and not library.has_kernel("affine_warp", "cpu"):
        pytest.skip(f"no compiled affine_warp: {ops.why_not()}")
    with library.twins() if request.param == "twin" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def compiled():
    if not library.has_kernel("affine_warp", "cpu"):
        pytest.skip(f"no compiled affine_warp: {ops.why_not()}")


def definition(x, matrix):
    """Per axis and position, from the words of the definition; one plane, float64, no period and no modulo by it."""
    height, width = x.shape
    taps = np.array(_affine_warp.SYM6)

    def pixel(i, size):
        while not 0 <= i < size:
            i = 0 if size == 1 else -i if i < 0 else 2 * (size - 1) - i
        return i

    def fine(j, size):
        """Weights of the pixels in fine sample j: a zero after every pixel, the filter centred between taps 5 and 6."""
        weights = np.zeros(size)
        for i in range((j - 6) // 2, (j + 7) // 2 + 1):
            if 0 <= j - 2 * i + 5 < 12:
                weights[pixel(i, size)] += math.sqrt(2) * taps[j - 2 * i + 5]
        return weights

    def reading(place, size):
        j = math.floor(place)
        return (1 - (place - j)) * fine(j, size) + (place - j) * fine(j + 1, size)

    rows, columns = 2 * height + 10, 2 * width + 10
    samples = np.zeros((rows, columns))
    for a in range(rows):
        for b in range(columns):
            point = np.array([(b - 5.5) / 2 - (width - 1) / 2, (a - 5.5) / 2 - (height - 1) / 2, 1.0])
            u, v = matrix @ point + np.array([(width - 1) / 2, (height - 1) / 2])
            samples[a, b] = reading(2 * v + 0.5, height) @ x @ reading(2 * u + 0.5, width)
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            out[i, j] = taps @ samples[2 * i : 2 * i + 12, 2 * j : 2 * j + 12] @ taps / 2
    return out


def turned(degrees, scale, x=0.0, y=0.0):
    c, s = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    return [[c, -s, x], [s, c, y]]


MATRICES = {
    "identity": turned(0, 1),
    "turn": turned(33, 1.2, 3.3, -4.7),
    "quarter": turned(90, 1, 1, 0),
    "mirror": [[-1.0, 0, 0.5], [0, 1, 0]],
    "shear": [[1.0, 2.5, 0], [-0.1, 1, 3]],
    "small": turned(70, 8, 1.1, 2.2),
    "large": turned(-20, 0.125, -3, 0.3),
    "nothing": [[0.0, 0, 0.3], [0, 0, -2.7]],
    "a line": [[1.0, 2, 0], [0.5, 1, 0]],
    "far": turned(10, 0.9, 123.6, -54.1),
}


@pytest.mark.parametrize("shape", [(6, 5), (1, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("name", MATRICES)
def test_is_its_definition(kind, name, shape):
    torch.manual_seed(0)
    x, matrix = torch.randn(shape, dtype=torch.float64), torch.tensor(MATRICES[name], dtype=torch.float64)
    y = ops.affine_warp(x[None, None], matrix[None])[0, 0]
    correct = torch.from_numpy(definition(x.numpy(), matrix.numpy()))
    torch.testing.assert_close(y, correct, atol=1e-8, rtol=0)


@st.composite
def warps(draw):
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    side = st.one_of(st.integers(1, 12), st.integers(60, 70))
    shape = (n, c, draw(side), draw(side))
    entry = st.floats(-1, 1, width=32).map(lambda v: v if abs(v) > 1e-6 else 0.0)
    scale, far = draw(st.sampled_from([0.0, 0.125, 1.0, 8.0])), draw(st.sampled_from([0.0, 3.0, 1e3, 1e6]))
    matrix = torch.tensor([[[draw(entry) for _ in range(3)] for _ in range(2)] for _ in range(n)], dtype=torch.float64)
    return shape, matrix * torch.tensor([scale, scale, far], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(warps())
def test_kernels_equal_the_twin(warp):
    if not library.has_kernel("affine_warp", "cpu"):
        pytest.skip(f"no compiled affine_warp: {ops.why_not()}")
    shape, matrix = warp
    torch.manual_seed(1)
    x, g = torch.randn(2, *shape, dtype=torch.float64)
    x.requires_grad_()
    correct = _affine_warp._twin(x, matrix)
    (correct_adjoint,) = torch.autograd.grad(correct, x, g)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 2e-3)):
        y = torch.ops.eeg_gan.affine_warp(x.detach().to(dtype), matrix.to(dtype))
        exact = matrix.to(dtype).double()  # a rounded matrix is another matrix
        if dtype == torch.float32:
            correct = _affine_warp._twin(x, exact)
            (correct_adjoint,) = torch.autograd.grad(correct, x, g)
        adjoint = torch.ops.eeg_gan.affine_warp_adjoint(g.to(dtype), matrix.to(dtype))
        torch.testing.assert_close(y.double(), correct, atol=tolerance, rtol=0)
        limit = tolerance * max(1, correct_adjoint.abs().max().item())
        torch.testing.assert_close(adjoint.double(), correct_adjoint, atol=limit, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_large_images_that_shrink(compiled, scale):
    torch.manual_seed(2)
    x, matrix = torch.randn(1, 2, 200, 230, dtype=torch.float64), torch.tensor([turned(31, scale, 7.7, 1.1)]).double()
    x.requires_grad_()
    correct, y = _affine_warp._twin(x, matrix), ops.affine_warp(x, matrix)
    torch.testing.assert_close(y, correct, atol=1e-9, rtol=0)
    adjoints = [torch.autograd.grad(v, x, correct.detach())[0] for v in (correct, y)]
    torch.testing.assert_close(*adjoints, atol=1e-8, rtol=0)


def test_float32_positions_stay_exact_far_away(compiled):
    torch.manual_seed(3)
    x = torch.randn(1, 3, 64, 64)
    period = 2.0 * 63
    near = torch.tensor([turned(25, 1.1, 0.25, -8.5)])
    far = near + torch.tensor([[0, 0, 2.0**14 * period], [0, 0, -(2.0**14) * period]])  # exact in float32
    assert ops.affine_warp(x, far).equal(ops.affine_warp(x, near))
    correct = _affine_warp._twin(x.double(), near.double())
    torch.testing.assert_close(ops.affine_warp(x, near).double(), correct, atol=3e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adjoint_is_the_adjoint(compiled, dtype):
    torch.manual_seed(4)
    x, g = torch.randn(2, len(MATRICES), 3, 33, 70).to(dtype)
    matrix = torch.tensor(list(MATRICES.values())).to(dtype)
    forward = (ops.affine_warp(x, matrix) * g).double().sum((1, 2, 3))
    back = (x * torch.ops.eeg_gan.affine_warp_adjoint(g, matrix)).double().sum((1, 2, 3))
    torch.testing.assert_close(forward, back, atol=1e-8 if dtype == torch.float64 else 0.05, rtol=0)


def test_derivatives_of_any_order(kind):
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([MATRICES["turn"], MATRICES["shear"]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: ops.affine_warp(x, matrix), (x,))
    assert gradgradcheck(lambda x: ops.affine_warp(x, matrix) ** 2, (x,))
    y = ops.affine_warp(x, matrix) ** 3
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert y.abs().sum() > 0 and torch.autograd.grad(y.sum(), matrix, allow_unused=True) == (None,)


def test_opcheck(compiled):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 6, 7).to(memory_format=layout).requires_grad_()
        matrix = torch.tensor([MATRICES["turn"], MATRICES["shear"]])
        for op in (torch.ops.eeg_gan.affine_warp, torch.ops.eeg_gan.affine_warp_adjoint):
            torch.library.opcheck(op, (x, matrix))


def test_compiled_r1(compiled):
    weight = torch.randn(3, 8, 8, dtype=torch.float64, requires_grad=True)
    x, matrix = torch.randn(2, 3, 8, 8).double(), torch.tensor([MATRICES["turn"], MATRICES["shear"]]).double()

    def step(weight, x):
        x = x.detach().requires_grad_()
        score = (ops.affine_warp(x, matrix) * weight).sum((1, 2, 3)).tanh().sum()
        (gradient,) = torch.autograd.grad(score, x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0].detach()

    expected = step(weight, x)
    assert expected.abs().max() > 0
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        actual = torch.compile(step, backend="aot_eager", fullgraph=True)(weight, x)
    torch.testing.assert_close(actual, expected)


def test_threads_and_neighbours_do_not_matter(compiled):
    torch.manual_seed(5)
    x, matrix = torch.randn(len(MATRICES), 6, 75, 40), torch.tensor(list(MATRICES.values()))
    threads = torch.get_num_threads()
    for op in (torch.ops.eeg_gan.affine_warp, torch.ops.eeg_gan.affine_warp_adjoint):
        results = []
        try:
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(op(x, matrix))
        finally:
            torch.set_num_threads(threads)
        assert all(r.equal(results[0]) for r in results)
        alone = torch.cat([op(x[i : i + 1], matrix[i : i + 1]) for i in range(len(x))])
        assert alone.equal(results[0])


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-4)])
def test_types_and_layouts(kind, dtype, tolerance):
    torch.manual_seed(6)
    matrix = torch.tensor([MATRICES["turn"], MATRICES["mirror"]])
    x = torch.randn(2, 3, 18, 22).to(dtype)
    correct = _affine_warp._twin(x.double(), matrix.double())
    strided = torch.randn(2, 3, 18, 44).to(dtype)[..., ::2].copy_(x)
    for y in (x, x.to(memory_format=torch.channels_last), strided, x.mT.contiguous().mT):
        y = y.detach().requires_grad_()
        out = ops.affine_warp(y, matrix)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), correct, atol=tolerance * 4, rtol=0)
        (adjoint,) = torch.autograd.grad(out, y, out.detach())
        assert adjoint.dtype == dtype and adjoint.isfinite().all()
        if kind == "kernel" and y.is_contiguous(memory_format=torch.channels_last):
            assert out.is_contiguous(memory_format=torch.channels_last)
    expanded = x[:, :1, :1].expand(2, 3, 18, 22)
    assert ops.affine_warp(expanded, matrix).equal(ops.affine_warp(expanded.contiguous(), matrix))


def test_autocast_leaves_it_exact(kind):
    x, matrix = torch.randn(1, 3, 17, 17), torch.tensor([MATRICES["turn"]])
    expected = ops.affine_warp(x, matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.affine_warp(x, matrix)
    assert y.dtype == torch.float32 and y.equal(expected)


def test_empty_batches(kind):
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8)):
        x = torch.zeros(shape, requires_grad=True)
        y = ops.affine_warp(x, torch.zeros(shape[0], 2, 3))
        y.sum().backward()
        assert y.shape == shape and x.grad.shape == shape


def test_strange_numbers_do_no_harm(compiled):
    x = torch.randn(1, 3, 20, 20)
    for value in (math.nan, math.inf, 1e30, -1e12):
        for i in range(6):
            matrix = torch.eye(2, 3)[None].clone()
            matrix.view(-1)[i] = value
            assert ops.affine_warp(x, matrix).shape == x.shape
            assert torch.ops.eeg_gan.affine_warp_adjoint(x, matrix).shape == x.shape


def test_errors_name_the_argument(kind):
    x, matrix = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match="affine_warp: x is"):
        ops.affine_warp(x[0], matrix)
    with pytest.raises(ValueError, match="affine_warp: x holds"):
        ops.affine_warp(x.int(), matrix)
    with pytest.raises(ValueError, match="affine_warp: matrix is"):
        ops.affine_warp(x, matrix[:1])
    with pytest.raises(ValueError, match="affine_warp: matrix is on"):
        ops.affine_warp(x, matrix.to("meta"))


def test_the_operators_check_for_themselves(compiled):
    op = torch.ops.eeg_gan.affine_warp_adjoint
    x, matrix = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 3)
    for arguments, words in [
        ((x[0], matrix), "grad must be"),
        ((x, matrix[0]), "matrix must be"),
        ((x, matrix.double()), "matrix must be float64 for"),
        ((x.int(), matrix), "grad must be float32"),
        ((x, matrix.mT.contiguous().mT), "contiguous"),
    ]:
        with pytest.raises(RuntimeError, match=f"affine_warp_adjoint: .*{words}"):
            op(*arguments)
