"""bias_act on a GPU: the same kernels as the simulator's, with real memory, streams and sizes."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import _bias_act as module
from eeg_gan.ops import library

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
if not library.has_kernel("bias_act", "cuda"):
    pytest.skip(library.why_not() or "the library was built without CUDA", allow_module_level=True)

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(4, 3, 64, 64), (2, 64, 33, 17), (3, 512, 4, 4), (8, 48, 128, 128), (1, 1, 1, 1), (2, 5, 1, 1), (0, 3, 4, 4)]


def run(x, b, dy, v, act, clamp, function=ops.bias_act):
    x, b, dy = (t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, b, dy))
    y = function(x, b, act=act, clamp=clamp)
    dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
    second = torch.autograd.grad((dx * v).sum() + db.sum(), (dy, x, b), allow_unused=True)
    second = [torch.zeros_like(t) if g is None else g for g, t in zip(second, (dy, x, b), strict=True)]
    return [t.detach() for t in (y, dx, db, *second)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("act", ops.ACTIVATIONS)
def test_values_and_derivatives(act, dtype, layout):
    torch.manual_seed(0)
    for shape in SHAPES:
        x, dy, v = (torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout) for _ in range(3))
        b = torch.randn(shape[1], device="cuda")
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def twin(*arguments, **options):
            with library.twins():
                return ops.bias_act(*arguments, **options)

        actual = run(x, b, dy, v, act, None)
        assert actual[0].stride() == x.stride() and actual[1].dtype == dtype
        wanted = run(x.to(wide), b.to(wide), dy.to(wide), v.to(wide), act, None, twin)
        for a, w in zip(actual, wanted, strict=True):
            scale = max(1.0, w.abs().max().item()) if w.numel() else 1.0
            torch.testing.assert_close(a.to(wide), w, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
def test_gradcheck(act):
    x = torch.randn(2, 3, 2, 2, dtype=torch.double, device="cuda", requires_grad=True)
    b = torch.randn(3, dtype=torch.double, device="cuda", requires_grad=True)
    assert gradcheck(lambda x, b: ops.bias_act(x, b, act=act, clamp=0.9), (x, b))
    assert gradgradcheck(lambda x, b: ops.bias_act(x, b, act=act, gain=-1.3), (x, b))


def test_other_strides():
    base = torch.randn(3, 8, 40, 50, device="cuda")
    b = torch.randn(8, device="cuda")
    for x in (base[:, :, 1:, ::2], base[..., 1:], base.permute(0, 1, 3, 2), base[:, :, :, :1].expand(3, 8, 40, 7)):
        torch.testing.assert_close(ops.bias_act(x, b, act="tanh"), torch.tanh(x + b[:, None, None]))
    shifted = base.flatten()[1:961].view(3, 8, 40)  # not aligned to 16 bytes
    torch.testing.assert_close(ops.bias_act(shifted, b, act="sigmoid"), torch.sigmoid(shifted + b[:, None]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_deterministic(layout):
    x = torch.randn(16, 96, 65, 64, device="cuda").contiguous(memory_format=layout).requires_grad_()
    b = torch.randn(96, device="cuda", requires_grad=True)
    results = [torch.autograd.grad(ops.bias_act(x, b, act="lrelu"), (x, b), x.detach().sin()) for _ in range(5)]
    assert all(r[0].equal(results[0][0]) and r[1].equal(results[0][1]) for r in results)


def test_captured_in_a_graph():
    x, b = torch.randn(4, 64, 32, 32, device="cuda", requires_grad=True), torch.randn(64, device="cuda")
    b.requires_grad_()

    def step():
        y = ops.bias_act(x, b, act="lrelu")
        dx, db = torch.autograd.grad(y, (x, b), y.detach().cos(), create_graph=True)
        return [y.detach(), dx.detach(), *torch.autograd.grad(dx.square().sum() + db.sum(), (x, b), allow_unused=True)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, w in zip(captured, step(), strict=True):
        assert (a is None and w is None) or a.equal(w)


def test_on_another_stream():
    stream = torch.cuda.Stream()
    x = torch.randn(1 << 24, device="cuda").view(16, 16, 1 << 16)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = ops.bias_act(x.mul(2).add_(1), act="relu", gain=1.0)
    stream.synchronize()
    assert y.equal((x * 2 + 1).relu())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(layout):
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    shape = (3, 8, 9000, 10000) if layout == "contiguous" else (3, 9000, 10000, 8)
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    x = x if layout == "contiguous" else x.permute(0, 3, 1, 2)
    b = torch.arange(8, dtype=torch.float32, device="cuda", requires_grad=True)
    y = ops.bias_act(x, b, act="relu", gain=1.0)
    wanted = torch.arange(8, device="cuda", dtype=torch.bfloat16)
    for n in range(3):
        for row in (0, 4500, 8999):
            assert y[n, :, row].equal(wanted[:, None].expand(8, 10000))
    (db,) = torch.autograd.grad(y, b, torch.ones_like(y))
    torch.testing.assert_close(db[1:], torch.full((7,), 3 * 9e7, device="cuda"), rtol=1e-5, atol=0)
    assert module.CODES["relu"] == 1 and db[0] == 0
