"""The CUDA kernels of bias_act, run thread by thread on the CPU, against the PyTorch twin and its derivatives."""

import ctypes

import pytest
import simulator
import torch

from eeg_gan import ops
from eeg_gan.ops import _bias_act as module
from eeg_gan.ops import library

if simulator.why_not():
    pytest.skip(simulator.why_not(), allow_module_level=True)

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [  # [outer, channels, inner] in memory
    (2, 3, 16),
    (3, 5, 7),
    (1, 2, 4096 + 24),
    (37, 16, 1),
    (19, 3, 1),
    (2, 264, 1),
    (1, 1, 9),
    (2, 40, 64),
    (1, 2080, 1),
]


class Layout(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("outer", "channels", "inner")]


class Form(ctypes.Structure):
    _fields_ = [("act", ctypes.c_int), ("by_x", ctypes.c_bool)]
    _fields_ += [(name, ctypes.c_double) for name in ("alpha", "gain", "limit")]


class Tensors(ctypes.Structure):
    names = ("in", "ref", "dy", "bias", "ddb", "out", "out2", "partial", "sums")
    _fields_ = [(name, ctypes.c_void_p) for name in names]


def launch(op, order, shape, form, aligned=True, **tensors):
    library = simulator.load("bias_act")
    library.eeg_gan_bias_act_partial_rows.restype = ctypes.c_int64
    dtype, layout = TYPES[tensors["out"].dtype], Layout(*shape)
    if "sums" in tensors:
        rows = library.eeg_gan_bias_act_partial_rows(dtype, ctypes.byref(layout), int(aligned))
        tensors["partial"] = torch.full((rows, shape[1]), float("nan"), dtype=tensors["sums"].dtype)
    given = Tensors(**{name: t.data_ptr() for name, t in tensors.items()})
    parts = ctypes.byref(layout), int(aligned), ctypes.byref(form), ctypes.byref(given), None
    simulator.run(library.eeg_gan_bias_act, op, dtype, *parts, order=order)


def form_of(act, by_x, alpha, gain, clamp):
    """As act_form in csrc/activation.h."""
    act, alpha = {"linear": ("lrelu", 1.0), "selu": ("elu", module.SELU_ALPHA)}.get(act, (act, alpha))
    return Form(module.CODES[act], by_x, alpha, gain, clamp)


def numbers(act, clamp):
    gain, alpha = ops.ACTIVATIONS[act]
    limit = -1.0 if clamp is None else clamp
    return gain * (module.SELU_GAIN if act == "selu" else 1), alpha, limit


def expected(x, b, dy, ddx, ddb, act, clamp):
    """y, dx, db, and the gradients of dy, x and b of <dx, ddx> + <db, ddb>, by the twin in the computing type."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dy = (t.to(wide).requires_grad_() for t in (x, dy))
    b = b.clone().requires_grad_()
    with library.twins():
        y = ops.bias_act(x, b, act=act, clamp=clamp)
    dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
    second = torch.autograd.grad((dx * ddx.to(wide)).sum() + (db * ddb).sum(), (dy, x, b), allow_unused=True)
    return [torch.zeros(()) if t is None else t.detach() for t in (y, dx, db, *second)]


def close(actual, wanted, dtype):
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(actual, wanted.to(actual.dtype).expand_as(actual), rtol=0, atol=TOLERANCE[dtype] * scale)


def check(shape, dtype, act, clamp, by_x, order, aligned=True):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    torch.manual_seed(0)
    x, dy, ddx = (torch.randn(shape).to(dtype) for _ in range(3))
    b, ddb = torch.randn(shape[1], dtype=wide), torch.randn(shape[1], dtype=wide)
    gain, alpha, limit = numbers(act, clamp)
    if clamp is not None:  # half precision rounds |y| just below the clamp to it, which ends the gradient there
        y = ops.bias_act(x.to(wide), b, act=act)
        x = torch.where((y.abs() - clamp).abs() < 0.02, (0.1 - b[:, None]).to(dtype), x)
    limit = torch.tensor(limit, dtype=dtype).item()  # as y holds it
    form = form_of(act, by_x, alpha, gain, limit)
    y_, dx_, db_, gdy_, gx_, gb_ = expected(x, b, dy, ddx, ddb, act, clamp)
    y, dx, gdy, gref = (torch.full_like(x, float("nan")) for _ in range(4))
    db, gb = torch.full_like(b, float("nan")), torch.full_like(b, float("nan"))
    launch(0, order, shape, form, aligned, **{"in": x}, bias=b, out=y)
    close(y, y_, dtype)
    ref = dict(ref=x, bias=b) if by_x else dict(ref=y)
    launch(1, order, shape, form, aligned, **{"in": dy}, **ref, out=dx, sums=db)
    close(dx, dx_, dtype)
    close(db, db_, dtype)
    launch(2, order, shape, form, aligned, **{"in": ddx}, ddb=ddb, dy=dy, **ref, out=gdy, out2=gref, sums=gb)
    close(gdy, gdy_, dtype)
    if by_x:
        close(gref, gx_, dtype)
        close(gb, gb_, dtype)
    else:  # the gradient of y goes on through y
        gx = torch.full_like(x, float("nan"))
        launch(1, order, shape, form, aligned, **{"in": gref}, ref=y, out=gx, sums=gb)
        close(gx, gx_, dtype)
    only = torch.full_like(x, float("nan"))
    launch(2, order, shape, form, aligned, **{"in": ddx}, **ref, out=only)
    launch(1, order, shape, form, aligned, **{"in": ddx}, **ref, out=gdy)
    assert only.equal(gdy)


@pytest.mark.parametrize("order", simulator.ORDERS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts(shape, dtype, order):
    check(shape, dtype, "lrelu", 1.5, False, order)
    check(shape, dtype, "swish", None, True, order)


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_activations(dtype, act):
    for shape in [(2, 3, 16), (5, 8, 1), (2, 3, 5)]:
        if act != "swish":
            check(shape, dtype, act, 0.9, False, 2)
        check(shape, dtype, act, 0.9, True, 2)


def test_unaligned_tensors_are_read_one_by_one():
    check((2, 3, 16), torch.float32, "lrelu", None, False, 0, aligned=False)


def test_sums_do_not_depend_on_the_order_of_threads():
    form = form_of("lrelu", False, 0.2, 1.4, -1.0)
    for shape in [(700, 24, 1), (3, 4, 5000)]:
        dy, y = torch.randn(shape), torch.randn(shape)
        results = []
        for order in simulator.ORDERS:
            dx, db = torch.empty(shape), torch.empty(shape[1])
            launch(1, order, shape, form, **{"in": dy}, ref=y, out=dx, sums=db)
            results.append(db)
        assert all(r.equal(results[0]) for r in results)
