"""upfirdn2d on a GPU against the PyTorch twin in float64 on the CPU."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import library

if not torch.cuda.is_available():
    pytest.skip("no GPU is visible to torch", allow_module_level=True)
if not library.has_kernel("upfirdn2d", "cuda"):
    pytest.skip(f"no CUDA kernel of upfirdn2d was built: {library.why_not()}", allow_module_level=True)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
TAPS = ops.setup_filter([1, 3, 3, 1])
FILTERS = {"4x4": TAPS, "12": torch.randn(12) / 3, "3x5": torch.randn(3, 5), "70": torch.ones(70) / 9}
FACTORS = [(1, 1), (2, 1), (1, 2), ((3, 1), (1, 2))]


def reference(x, f, *rest):
    with library.twins():
        return ops.upfirdn2d(x.detach().cpu().double(), f, *rest)


def image(*shape, dtype=torch.float32, last=False):
    x = torch.randn(shape, device="cuda", dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("up", "down"), FACTORS)
@pytest.mark.parametrize("name", FILTERS)
def test_values_and_gradients(name, up, down, dtype, last):
    f, close = FILTERS[name], TOLERANCE[dtype]
    for shape, pads in (((2, 64, 65, 33), (40, 38, 37, 40)), ((3, 5, 7, 130), (38, 41, 39, 40))):
        x = image(*shape, dtype=dtype, last=last).requires_grad_()
        y = ops.upfirdn2d(x, f.cuda(), up, down, pads, False, 1.5)
        layout = torch.channels_last if last else torch.contiguous_format
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        expected = reference(x, f, up, down, pads, False, 1.5)
        torch.testing.assert_close(y.cpu().double(), expected, rtol=close, atol=close)
        other = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, x, other)
        wide = x.detach().cpu().double().requires_grad_()
        with library.twins():
            expected = torch.autograd.grad(
                ops.upfirdn2d(wide, f, up, down, pads, False, 1.5), wide, other.cpu().double()
            )[0]
        torch.testing.assert_close(gradient.cpu().double(), expected, rtol=2 * close, atol=2 * close)


@pytest.mark.parametrize("pads", [(2, 1, 2, 1), (1, 2, 3, 0), (-1, 3, 4, -2)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), FACTORS[:3])
def test_views_at_any_alignment(up, down, last, pads):
    whole = image(4, 24, 31, 18, last=last)
    for x in (whole[1:], whole[:, :, :, 1:], whole[:, 3:19], whole.transpose(2, 3), whole[:0], whole[:, :, :1, :1]):
        if min(x.shape[2:]) == 1:
            y, expected = (g(x, f, up, down, 3) for g, f in ((ops.upfirdn2d, TAPS.cuda()), (reference, TAPS)))
        else:
            y, expected = ops.upfirdn2d(x, TAPS.cuda(), up, down, pads), None
            expected = reference(x, TAPS, up, down, pads) if len(x) else y.cpu().double()
        torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    flat = torch.randn(1 + 2 * 3 * 10 * 12, device="cuda")[1:].view(2, 3, 10, 12)
    y = ops.upfirdn2d(flat, TAPS.cuda(), up, down, pads)
    torch.testing.assert_close(y.cpu().double(), reference(flat, TAPS, up, down, pads), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_derivatives_and_registration(last):
    x = image(1, 2, 4, 5, dtype=torch.double, last=last).requires_grad_()
    for f in (TAPS.cuda(), torch.rand(5, device="cuda")):
        assert gradcheck(lambda x, f=f: ops.upfirdn2d(x, f, 2, 1, (2, 3, 3, 1)), x)
        assert gradgradcheck(lambda x, f=f: ops.upfirdn2d(x, f, 1, 2, (2, 3, 3, 1)), x)
    x = image(2, 16, 5, 4, last=last).requires_grad_()
    torch.library.opcheck(torch.ops.eeg_gan.upfirdn2d.default, (x, TAPS.cuda(), 2, 1, 1, 2, 2, 1, 2, 1, False, 4.0))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", FILTERS)
def test_every_run_gives_the_same_bits(name, last):
    x, f = image(4, 32, 61, 67, last=last), FILTERS[name].cuda()
    first = ops.upfirdn2d(x, f, 2, 1, 40)
    assert all(ops.upfirdn2d(x, f, 2, 1, 40).equal(first) for _ in range(5))


@pytest.mark.parametrize("last", [False, True])
def test_in_a_graph_and_on_another_stream(last):
    x, f = image(2, 16, 32, 32, last=last), TAPS.cuda()
    expected = ops.upsample2d(x, f)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        elsewhere = ops.upsample2d(x, f)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.upsample2d(x, f)
    graph.replay()
    assert captured.equal(expected) and elsewhere.equal(expected)


@pytest.mark.parametrize("last", [False, True])
def test_more_than_2_to_the_31_elements(last):
    """The last image of a batch of bfloat16 that no 32-bit offset reaches."""
    channels, side = 64, 1024
    n = 2**31 // (channels * side * side) + 2
    if torch.cuda.mem_get_info()[0] < 5 * n * channels * side * side:
        pytest.skip("too little free memory on the GPU")
    x = torch.zeros(n, channels, side, side, dtype=torch.bfloat16, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    x[-1] = torch.randn_like(x[-1])
    y = ops.upfirdn2d(x, TAPS.cuda(), 1, 2, 1)
    tail = ops.upfirdn2d(x[-1:], TAPS.cuda(), 1, 2, 1)
    assert y[-1:].equal(tail) and not y[:-1].any()
    del y
    assert ops.upfirdn2d(x, TAPS.cuda(), 1, 1, (2, 1, 2, 1))[-1:].equal(
        ops.upfirdn2d(x[-1:], TAPS.cuda(), 1, 1, (2, 1, 2, 1))
    )
