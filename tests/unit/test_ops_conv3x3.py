"""The 3x3 convolution against PyTorch's in float64: values, derivatives, and what its results must not depend on."""

import pytest
import torch
import torch.nn.functional as F

from eeg_gan import ops
from eeg_gan.ops import library

SHAPES = [  # N, C, O, H, W: whole tiles, torn ones, smaller than one, and more tiles than are summed at once
    (2, 32, 32, 8, 8),
    (3, 64, 32, 5, 10),
    (1, 32, 96, 3, 1),
    (9, 32, 32, 24, 25),
]
needs_library = pytest.mark.skipif(not library.has_kernel("conv3x3", "cpu"), reason=f"no kernel: {library.why_not()}")


def data(n, c, o, h, w, layout=torch.channels_last):
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w).contiguous(memory_format=layout)
    return x, torch.randn(o, c, 3, 3) / (9 * c) ** 0.5


def derivatives(f, x, weight):
    """The value, both derivatives of a quadratic of it, and those of their squares: every term of the second order."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = f(x, weight)
    slope = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view(y.shape).to(y.dtype)
    first = torch.autograd.grad((y * (slope + y)).sum(), (x, weight), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
    return [y, *first, *second]


def close(found, expected):
    for i, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        gap = (value.double() - wanted).abs().max() / wanted.abs().max()
        assert gap < 3e-5, f"value {i} is off by {gap:.1e} of the largest"


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_derivatives_of_both_orders(shape, layout):
    x, weight = data(*shape, layout)
    expected = derivatives(lambda x, w: F.conv2d(x, w, padding=1), x.double(), weight.double())
    close(derivatives(ops.conv3x3, x, weight), expected)


@needs_library
def test_values_depend_neither_on_threads_nor_on_the_rest_of_the_batch():
    x, weight = data(9, 32, 64, 24, 25)
    whole, gradient = ops.conv3x3(x, weight), torch.ops.eeg_gan.conv3x3_weight(x, x)
    assert ops.conv3x3(x[4:6], weight).equal(whole[4:6])
    threads = torch.get_num_threads()
    torch.set_num_threads(threads % 2 + 1)
    try:
        assert ops.conv3x3(x, weight).equal(whole) and torch.ops.eeg_gan.conv3x3_weight(x, x).equal(gradient)
    finally:
        torch.set_num_threads(threads)


@needs_library
def test_what_it_is_not_for_goes_to_pytorch(monkeypatch):
    x, weight = data(2, 32, 32, 8, 8)
    odd = torch.randn(32, 33, 3, 3), torch.randn(2, 33, 8, 8)
    expected = [F.conv2d(x.double(), weight.double(), padding=1), F.conv2d(odd[1], odd[0], padding=1)]
    monkeypatch.setattr(torch.ops.eeg_gan.conv3x3, "default", None)
    assert ops.conv3x3(x.double(), weight.double()).equal(expected[0])
    assert ops.conv3x3(odd[1], odd[0]).equal(expected[1])
    assert ops.conv3x3(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with library.twins():
        assert ops.conv3x3(x, weight).shape == x.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv3x3(x, weight).dtype == torch.bfloat16
    with pytest.raises(TypeError):
        ops.conv3x3(x, weight)  # the one that the operator is for


@needs_library
def test_registration_is_whole_and_nothing_at_all_is_allowed():
    x, weight = (t.requires_grad_() for t in data(2, 32, 64, 5, 4))
    torch.library.opcheck(torch.ops.eeg_gan.conv3x3.default, (x, weight))
    torch.library.opcheck(torch.ops.eeg_gan.conv3x3_weight.default, (x, torch.randn(2, 64, 5, 4)))
    none = torch.randn(0, 32, 4, 4)
    assert ops.conv3x3(none, weight.detach()).shape == (0, 64, 4, 4)
    assert torch.ops.eeg_gan.conv3x3_weight(none, torch.randn(0, 64, 4, 4)).abs().sum() == 0
    with pytest.raises(ValueError, match=r"weight \[O, C, 3, 3\]"):
        ops.conv3x3(x, weight[:, :16])
    for wrong in ((x.double(), weight.double()), (x[:, :16], weight[:, :16]), (x, weight[:16])):
        with pytest.raises(RuntimeError, match="conv3x3"):
            torch.ops.eeg_gan.conv3x3(*wrong)
    with pytest.raises(RuntimeError, match="same images"):
        torch.ops.eeg_gan.conv3x3_weight(x, torch.randn(2, 64, 4, 4))
