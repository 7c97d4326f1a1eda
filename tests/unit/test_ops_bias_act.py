"""The compiled bias_act against its PyTorch twin: values, three derivatives, every layout, and what compiles it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import _bias_act as module
from eeg_gan.ops import library

ACTS = list(ops.ACTIVATIONS)
compiled = pytest.mark.skipif(not library.has_kernel("bias_act", "cpu"), reason=library.why_not() or "no kernel")


def twin(*arguments, **options):
    with library.twins():
        return ops.bias_act(*arguments, **options)


def both(x, b, order=2, **options):
    """Values and derivatives (to the second where x is one tensor) of the operator and of the twin."""
    for function in (ops.bias_act, twin):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, b)]
        y = function(*leaves, **options)
        torch.manual_seed(3)
        dy = torch.randn_like(y).requires_grad_()
        dx, db = torch.autograd.grad(y, leaves, dy, create_graph=True)
        results = [y, dx, db]
        if order == 2:
            loss = (dx.double() * torch.randn_like(x).double()).sum() + (db * torch.randn_like(b)).double().sum()
            wrt = [dy, *leaves]
            second = torch.autograd.grad(loss, wrt, allow_unused=True)
            results += [torch.zeros_like(w) if g is None else g for g, w in zip(second, wrt, strict=True)]
        yield [t.detach() for t in results]


def agree(x, b, rtol=2e-5, **options):
    for actual, wanted in zip(*both(x, b, **options), strict=True):
        scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
        torch.testing.assert_close(actual, wanted, rtol=rtol, atol=rtol * scale)


@compiled
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gain", [None, 1.7, -0.6, 0.0, 1e-6])
@pytest.mark.parametrize("clamp", [None, 0.4, 0.0])
def test_every_activation_with_every_gain_and_clamp(act, gain, clamp):
    torch.manual_seed(0)
    x, b = torch.randn(3, 5, 4, 6, dtype=torch.double), torch.randn(5, dtype=torch.double)
    for alpha in (None, 0.3, 0.0, -0.7) if act in ("lrelu", "elu") else (None,):
        agree(x, b, rtol=1e-6, act=act, gain=gain, clamp=clamp, alpha=alpha)


LAYOUTS = {
    "contiguous": lambda *shape: torch.randn(shape),
    "channels_last": lambda *shape: torch.randn(shape).contiguous(memory_format=torch.channels_last),
    "sliced": lambda n, c, h, w: torch.randn(n, c, h + 1, 2 * w)[:, :, 1:, ::2],
    "transposed": lambda n, c, h, w: torch.randn(w, n, h, c).permute(1, 3, 2, 0),
    "expanded": lambda n, c, h, w: torch.randn(n, 1, h, w).expand(n, c, h, w),
}
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 1), (2, 130, 3, 3), (3, 2, 50, 60), (2, 70, 17, 9), (5, 16, 1, 1), (1, 2600, 1, 2)]


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_and_dimensions(layout, shape):
    torch.manual_seed(0)
    x = LAYOUTS[layout](*shape)
    for dim in range(4):
        agree(x, torch.randn(shape[dim]), dim=dim, act="lrelu", clamp=1.9)
        agree(x, torch.randn(shape[dim]), dim=dim - 4, act="swish")
    y = ops.bias_act(x, torch.randn(shape[1]), act="relu")
    assert layout not in ("contiguous", "channels_last", "transposed") or y.stride() == x.stride()


FORMULAS = {  # value and slope at v, with the slope alpha of lrelu and the scale alpha of elu
    "linear": (lambda v, a: v, lambda v, a: np.ones_like(v)),
    "relu": (lambda v, a: np.maximum(v, 0), lambda v, a: (v > 0) * 1.0),
    "lrelu": (lambda v, a: np.where(v > 0, v, a * v), lambda v, a: np.where(v > 0, 1, a)),
    "tanh": (lambda v, a: np.tanh(v), lambda v, a: np.cosh(v) ** -2),
    "sigmoid": (lambda v, a: 1 / (1 + np.exp(-v)), lambda v, a: np.exp(-v) / (1 + np.exp(-v)) ** 2),
    "elu": (lambda v, a: np.where(v > 0, v, a * np.expm1(v)), lambda v, a: np.where(v > 0, 1, a * np.exp(v))),
    "selu": (
        lambda v, a: module.SELU_GAIN * np.where(v > 0, v, module.SELU_ALPHA * np.expm1(v)),
        lambda v, a: module.SELU_GAIN * np.where(v > 0, 1, module.SELU_ALPHA * np.exp(v)),
    ),
    "softplus": (lambda v, a: np.log1p(np.exp(v)), lambda v, a: 1 / (1 + np.exp(-v))),
    "swish": (
        lambda v, a: v / (1 + np.exp(-v)),
        lambda v, a: (1 + np.exp(-v) * (1 + v)) / (1 + np.exp(-v)) ** 2,
    ),
}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data())
def test_random_jobs_are_the_definition(data):
    """Value and derivatives by x and b, in NumPy float64."""
    draw = data.draw
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(shape))))
    dim, act = draw(st.integers(-len(shape), len(shape) - 1)), draw(st.sampled_from(ACTS))
    gain = draw(st.sampled_from([None, 0.5, -1.5, 3.0]))
    clamp, alpha = draw(st.sampled_from([None, 0.3, 1.0])), draw(st.sampled_from([0.0, 0.1, 0.7, -0.4]))
    dtype, step = draw(st.sampled_from([torch.float32, torch.float64])), draw(st.sampled_from([1, 2]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn([shape[i] * step for i in order], generator=random, dtype=dtype)
    x = x[(slice(None, None, step),) * len(shape)].permute([order.index(i) for i in range(len(shape))])
    b, dy = (torch.randn(s, generator=random, dtype=dtype) for s in (shape[dim], shape))
    x.requires_grad_(), b.requires_grad_()
    y = ops.bias_act(x, b, dim, act, alpha, gain, clamp)
    dx, db = torch.autograd.grad(y, (x, b), dy)

    gain = ops.ACTIVATIONS[act][0] if gain is None else gain
    along = tuple(-1 if i == dim % len(shape) else 1 for i in range(len(shape)))
    v = x.detach().double().numpy() + b.detach().double().numpy().reshape(along)
    value, slope = (gain * f(v, alpha) for f in FORMULAS[act])
    if clamp is not None:
        if (np.abs(np.abs(value) - clamp) < 1e-5).any():
            return  # rounding decides on which side of the bound a value lies
        value, slope = np.clip(value, -clamp, clamp), slope * (np.abs(value) < clamp)
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-11}
    assert y.shape == x.shape
    torch.testing.assert_close(y.double(), torch.from_numpy(value), **close)
    wanted = dy.double().numpy() * slope
    torch.testing.assert_close(dx.double(), torch.from_numpy(wanted), **close)
    others = tuple(i for i in range(len(shape)) if i != dim % len(shape))
    scale = max(1.0, np.abs(wanted).sum(others).max())
    torch.testing.assert_close(db.double(), torch.from_numpy(wanted.sum(others)), rtol=0, atol=close["atol"] * scale)


@compiled
@pytest.mark.parametrize("shape", [(7,), (4, 512), (3, 40, 33), (0, 4, 3), (2, 0, 3), (2, 3, 4, 5, 6), (1, 9000)])
def test_any_number_of_dimensions(shape):
    x = torch.randn(shape)
    for dim, act in itertools.product(range(len(shape)), ("lrelu", "tanh", "swish")):
        agree(x, torch.randn(shape[dim]), dim=dim, act=act)


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", ACTS)
def test_half_precision_computes_in_float32(dtype, act):
    torch.manual_seed(0)
    x, b = torch.randn(2, 3, 20, 30).to(dtype), torch.randn(3)
    exact = twin(x.float(), b, act=act, gain=0.8)
    y = ops.bias_act(x.requires_grad_(), b.requires_grad_(), act=act, gain=0.8)
    assert y.dtype == dtype and y.equal(exact.to(dtype)) or (y.float() - exact).abs().max() < 0.03
    assert (y != exact.to(dtype)).float().mean() < 0.01  # but for ties
    dx, db = torch.autograd.grad(y.float().sum(), (x, b))
    assert dx.dtype == dtype and db.dtype == b.dtype
    xf = x.detach().float().requires_grad_()
    wanted = torch.autograd.grad(twin(xf, b, act=act, gain=0.8).sum(), (xf, b))
    torch.testing.assert_close(dx.float(), wanted[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(db, wanted[1], rtol=0.01, atol=1.0)


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", ["linear", "swish"])
def test_clamp_that_half_precision_rounds_ends_the_gradient(dtype, act):
    x = torch.tensor([[0.2, 5.0, -5.0, 0.9]], dtype=dtype, requires_grad=True)
    y = ops.bias_act(x, act=act, gain=1.0, clamp=0.9)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert ((dx != 0) == (y.abs() < torch.tensor(0.9, dtype=dtype))).all()
    assert dx[0, 0] != 0 and dx[0, 1] == 0


@compiled
@pytest.mark.parametrize("act", ACTS)
def test_gradients_to_the_third(act):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, dtype=torch.double, requires_grad=True)
    b = torch.randn(3, dtype=torch.double, requires_grad=True)
    for options in ({}, {"gain": -1.3, "clamp": 0.9}, {"gain": 1e-5}):
        assert gradcheck(lambda x, b, o=options: ops.bias_act(x, b, act=act, **o), (x, b))
        assert gradgradcheck(lambda x, b, o=options: ops.bias_act(x, b, act=act, **o), (x, b))
    assert gradgradcheck(lambda x: ops.bias_act(x, act=act, clamp=0.9), (x,))

    def first(x, b):
        y = ops.bias_act(x, b, act=act, gain=1.3)
        return torch.autograd.grad((y**2).sum(), (x, b), create_graph=True)

    assert gradgradcheck(first, (x, b))


@compiled
@pytest.mark.parametrize("act", ACTS)
def test_extreme_numbers(act):
    numbers = [0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 0.5, -0.5, 19.0, -19, 30, -30, 87, -87, 88.5, -88.5, 95, -95]
    numbers += [1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, math.nan]
    x = torch.tensor(numbers).repeat(3)
    y = ops.bias_act(x, dim=0, act=act, gain=1.3)
    wanted = twin(x.double(), dim=0, act=act, gain=1.3)
    overflown = wanted.abs() > torch.finfo(torch.float32).max
    torch.testing.assert_close(y[~overflown], wanted[~overflown].float(), rtol=6e-7, atol=1e-38, equal_nan=True)
    xs = torch.linspace(-25, 25, 200_001)
    torch.testing.assert_close(
        ops.bias_act(xs, dim=0, act=act, gain=1.3), twin(xs.double(), act=act, gain=1.3).float(), rtol=6e-7, atol=0
    )


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_number_of_threads_changes_no_bit(layout):
    threads, results = torch.get_num_threads(), []
    x, b = LAYOUTS[layout](4, 24, 61, 67).requires_grad_(), torch.randn(24, requires_grad=True)
    dy = torch.randn_like(x)
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            y = ops.bias_act(x, b, act="swish")
            results.append((y, *torch.autograd.grad(y, (x, b), dy)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(a.equal(o) for a, o in zip(results[0], other, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(7, 16, 231, 231), (13, 64, 80, 80)])
def test_large_results_are_written_past_the_caches(shape, layout, dtype):
    """As if made image by image, which stay in the caches."""
    shape = (shape[0] * 4 // dtype.itemsize, *shape[1:])
    x, dy, v = (LAYOUTS[layout](*shape).to(dtype) for _ in range(3))
    b = torch.randn(shape[1])
    assert x.nbytes > 16 << 20

    def results(x, dy, v):
        x, dy = (t.detach().requires_grad_() for t in (x, dy))
        y = ops.bias_act(x, b, act="swish", clamp=1.5)
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        return [t.detach() for t in (y, dx, *torch.autograd.grad(dx, (dy, x), v))]

    parts = [results(*(t[i : i + 1] for t in (x, dy, v))) for i in range(len(x))]
    assert 2 * parts[0][0].nbytes < 16 << 20
    for whole, images in zip(results(x, dy, v), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(images), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@compiled
def test_sums_are_exact_over_many_elements():
    dy = torch.rand(64, 3, 200, 211)
    b = torch.zeros(3, requires_grad=True)
    for laid_out in (dy, dy.contiguous(memory_format=torch.channels_last)):
        (db,) = torch.autograd.grad(ops.bias_act(torch.zeros_like(laid_out), b, gain=2.0), b, laid_out)
        torch.testing.assert_close(db.double(), 2 * dy.double().sum((0, 2, 3)), rtol=1e-6, atol=0)


@compiled
def test_saves_only_what_backward_needs():
    x, b = torch.randn(4, 8, 5, 5, requires_grad=True), torch.randn(8, requires_grad=True)
    saved = {}
    for act, clamp in itertools.product(ACTS, (None, 1.0)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: (k.append(t.data_ptr()), t)[1], lambda t: t):
            y = ops.bias_act(x, b, act=act, gain=1.1, clamp=clamp)
        saved[act, clamp] = ["x" if p == x.data_ptr() else "y" if p == y.data_ptr() else "b" for p in kept]
    assert saved["linear", None] == [] and saved["linear", 1.0] == ["y"]
    assert saved["swish", None] == ["x", "b"] and saved["lrelu", None] == saved["softplus", 1.0] == ["y"]


SAMPLES = [("lrelu", 1.4, -1.0), ("swish", 1.4, 0.8), ("tanh", -1.0, 0.5), ("linear", 2.0, -1.0), ("elu", 0.0, -1.0)]


@compiled
@pytest.mark.parametrize(("act", "gain", "clamp"), SAMPLES)
def test_opcheck(act, gain, clamp):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, dy, ddx = (torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format) for _ in range(3))
        b = torch.randn(3, requires_grad=True)
        numbers = (1, module.CODES[act], 0.2, gain, clamp)
        by_x = module._told_from_x(*numbers[1:4])
        bent = numbers[1] in module.BENT
        x.requires_grad_(), dy.requires_grad_(), ddx.requires_grad_()
        torch.library.opcheck(torch.ops.eeg_gan.bias_act.default, (x, b, *numbers))
        ref = (x, b) if by_x else (torch.randn_like(x).requires_grad_(), None)
        torch.library.opcheck(torch.ops.eeg_gan.bias_act_backward.default, (dy, *ref, *numbers, by_x, True))
        arguments = (ddx, torch.randn(3), dy, *ref, *numbers, by_x, bent, bent and by_x)
        torch.library.opcheck(torch.ops.eeg_gan.bias_act_double_backward.default, arguments)


@compiled
@pytest.mark.parametrize("act", ["lrelu", "swish", "tanh"])
def test_compiled_gradient_penalty(act):
    w, b = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)

    def penalty(x, w, b):
        y = ops.bias_act(torch.nn.functional.conv2d(x, w), b, act=act, clamp=2.0)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        loss = g.square().sum()
        return g.detach(), *torch.autograd.grad(loss, (w, b))

    wanted = penalty(x, w, b)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        actual = torch.compile(penalty, backend="aot_eager", fullgraph=True)(x, w, b)
    for a, o in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, o)


def test_errors_name_operator_and_argument():
    x = torch.randn(2, 3, 4)
    for match, arguments in {
        r"bias_act: b is \[3\]": dict(b=torch.zeros(4)),
        "bias_act: b is .*; got": dict(b=torch.zeros(3, 1)),
        "bias_act: b holds": dict(b=torch.zeros(3, dtype=torch.long)),
        "bias_act: b is on meta": dict(b=torch.zeros(3, device="meta")),
        "bias_act: x has 3 dimensions": dict(b=torch.zeros(3), dim=3),
        "bias_act: clamp": dict(clamp=-1.0),
        "bias_act: no activation .*lrelu": dict(act="leaky"),
    }.items():
        with pytest.raises(ValueError, match=match):
            ops.bias_act(x, **arguments)
    with pytest.raises(ValueError, match="bias_act: x holds"):
        ops.bias_act(torch.zeros(2, 3, dtype=torch.long))
