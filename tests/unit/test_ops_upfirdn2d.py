"""upfirdn2d, compiled and in plain PyTorch, against its definition in NumPy float64, and all its derivatives."""

import contextlib
import os

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from eeg_gan import ops
from eeg_gan.ops import library

SIDES = ["kernel"] if os.environ.get("EEG_GAN_SANITIZE") == "1" else ["kernel", "twin"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 3e-3}
TAPS = ops.setup_filter([1, 3, 3, 1])


@contextlib.contextmanager
def served_by(side):
    if side == "twin":
        with library.twins():
            yield
    elif library.has_kernel("upfirdn2d", "cpu"):
        yield
    else:
        pytest.skip(f"no compiled upfirdn2d: {library.why_not()}")


def definition(x, f, up, down, pads, flip, gain):
    """Every output as a sum over all taps, in NumPy float64; the order is (x, y)."""
    x, f = x.double().numpy(), f.double().numpy()
    f = np.outer(f, f) if f.ndim == 1 else f
    f = f if flip else f[::-1, ::-1]
    (fh, fw), (n, c, height, width), (x0, x1, y0, y1) = f.shape, x.shape, pads
    rows, columns = (height * up[1] + y0 + y1 - fh) // down[1] + 1, (width * up[0] + x0 + x1 - fw) // down[0] + 1
    out = np.zeros((n, c, rows, columns))
    for my in range(rows):
        for mx in range(columns):
            for ky in range(fh):
                for kx in range(fw):
                    zy, zx = my * down[1] + ky - y0, mx * down[0] + kx - x0
                    if zy % up[1] or zx % up[0] or not (0 <= zy < height * up[1] and 0 <= zx < width * up[0]):
                        continue
                    out[:, :, my, mx] += f[ky, kx] * x[:, :, zy // up[1], zx // up[0]]
    return torch.from_numpy(gain * out)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every_other": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "slice_of_channels_last": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@st.composite
def jobs(draw):
    small, pad = st.integers(1, 3), st.integers(-3, 6)
    two_axes, taps = draw(st.booleans()), st.integers(1, 7)
    up, down = (draw(small), draw(small)), (draw(small), draw(small))
    kx = draw(st.sampled_from([1, 2, 4, 5, 12]))
    ky = draw(taps) if two_axes else kx
    width, height = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    pads = [draw(pad) for _ in range(4)]
    pads[1] += max(0, kx - width * up[0] - pads[0] - pads[1])  # at least one output
    pads[3] += max(0, ky - height * up[1] - pads[2] - pads[3])
    shape = (draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 16, 20, 32])), height, width)
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=random)
    f = torch.randn((ky, kx) if two_axes else (kx,), generator=random) / kx**0.5
    x = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x.to(draw(st.sampled_from(DTYPES))))
    return x, f, up, down, tuple(pads), draw(st.booleans()), draw(st.sampled_from([1.0, 4.0, -0.5]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(jobs())
def test_random_jobs(job):
    x, f, *rest = job
    with served_by("kernel"):
        y = ops.upfirdn2d(x, f, *rest)
    assert y.dtype == x.dtype
    if x.is_contiguous() or x.stride(1) != 1:
        assert y.is_contiguous()
    else:
        assert y.is_contiguous(memory_format=torch.channels_last)
    close = TOLERANCE[x.dtype]
    torch.testing.assert_close(y.double(), definition(x, f, *rest), rtol=close, atol=close)
    with library.twins():
        wide = ops.upfirdn2d(x.double(), f, *rest)
    torch.testing.assert_close(y.double(), wide, rtol=close, atol=close)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("taps", ["binomial", "rank one", "rank two"])
def test_4x4_taps(taps, up, down, last, side):
    """The dedicated paths: mirrored and other taps of rank one, several blocks of rows, odd and even paddings."""
    torch.manual_seed(0)
    f = {"binomial": TAPS, "rank one": torch.outer(torch.randn(4), torch.randn(4)), "rank two": torch.randn(4, 4)}[taps]
    for pads in ((2, 1, 2, 1), (1, 2, -1, 3), (-2, 0, 4, -1)):
        x = torch.randn(2, 32, 11, 9)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        with served_by(side):
            y = ops.upfirdn2d(x, f, up, down, pads, gain=2.0)
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(y.double(), definition(x, f, (up, up), (down, down), pads, False, 2.0), **close)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_rows_of_every_width(up, down, last):
    """Rows that end in every place of a vector, and numbers of channels that blocks of vectors divide or not."""
    f = torch.outer(torch.randn(4), torch.randn(4))
    widths = (*range(1, 20), *range(30, 36), 48, 63, 65, 71)
    shapes = [(1, c, 6, 5) for c in (16, 32, 48, 64, 80, 144)] if last else [(1, 2, 5, w) for w in widths]
    for number, shape in enumerate(shapes):
        pads = [(2, 1, 2, 1), (1, 1, 1, 1), (3, 5, 0, 4), (7, -1, -1, 9)][number % 4]
        pads = tuple(p + 3 if shape[3] < 4 else p for p in pads)
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        with served_by("kernel"):
            y = ops.upfirdn2d(x, f, up, down, pads)
        with library.twins():
            expected = ops.upfirdn2d(x.double(), f, up, down, pads)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, msg=lambda m, s=shape: f"{s}: {m}")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_large_results_are_written_past_the_caches(up, down, last):
    x = torch.randn({2: (1, 64, 144, 144), 1: (2, 32, 288, 256)}[up] if down == 1 else (4, 32, 416, 384))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    pads = [2, 1, 2, 1] if up == 2 else [2, 1, 2, 1] if down == 1 else [1, 1, 1, 1]
    with served_by("kernel"):
        y = ops.upfirdn2d(x, TAPS, up, down, pads)
    assert y.nbytes > 16 << 20
    with library.twins():
        torch.testing.assert_close(y, ops.upfirdn2d(x, TAPS, up, down, pads), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("up", "down", "taps"), [(1, 1, 5), (2, 3, 12), (3, 2, 7), (4, 1, 3)])
def test_one_row_is_scipys(up, down, taps, side):
    rng = np.random.default_rng(0)
    x, f = rng.normal(size=17), rng.normal(size=taps).astype(np.float32)
    image, row = torch.from_numpy(x)[None, None, None], torch.from_numpy(f)[None]
    with served_by(side):
        y = ops.upfirdn2d(image, row, (up, 1), (down, 1), (taps - 1, taps - up, 0, 0))
    np.testing.assert_allclose(y[0, 0, 0], scipy.signal.upfirdn(f.astype(float), x, up, down), atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
def test_large_images_agree_with_the_twin(dtype, last):
    """Several tiles along a row, several units along a column."""
    x = torch.randn(1, 20 if last else 2, 40, 900 if last else 9000, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    for f, up, down in ((TAPS, 1, 1), (ops.setup_filter([1.0] * 12), 2, 1), (ops.setup_filter([1.0] * 12), 1, 2)):
        with served_by("kernel"):
            y = ops.upfirdn2d(x, f, up, down, 5)
        with library.twins():
            expected = ops.upfirdn2d(x.double(), f, up, down, 5)
        torch.testing.assert_close(y.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("side", SIDES)
def test_empty_batches_single_pixels_and_the_identity(side):
    with served_by(side):
        assert ops.upsample2d(torch.zeros(0, 3, 4, 5), TAPS).shape == (0, 3, 8, 10)
        assert ops.upsample2d(torch.zeros(2, 0, 4, 5), ops.setup_filter([1.0] * 12)).shape == (2, 0, 8, 10)
        torch.testing.assert_close(ops.filter2d(torch.ones(1, 1, 1, 1), TAPS), torch.full((1, 1, 1, 1), 9 / 64))
        x = torch.randn(1, 2, 3, 3)
        assert ops.upfirdn2d(x, None) is x
        torch.testing.assert_close(ops.upfirdn2d(x, None, padding=1, gain=3), torch.nn.functional.pad(3 * x, [1] * 4))
        assert ops.upfirdn2d(x, None, padding=(4, -3, 0, 0))[..., :4].eq(0).all()


@pytest.mark.parametrize("side", SIDES)
def test_one_number_stands_for_both_axes_and_two_for_their_sides(side):
    x, f = torch.randn(1, 2, 9, 7), torch.randn(3, 4)
    with served_by(side):
        y = ops.upfirdn2d(x, f, [2, 3], (3, 3), (2, 2, -1, -1))
        assert y.equal(ops.upfirdn2d(x, f, (2, 3), 3, (2, -1)))
        assert ops.upfirdn2d(x, f, 2, 1, 4).equal(ops.upfirdn2d(x, f, (2, 2), (1, 1), [4, 4, 4, 4]))


def test_neither_layout_is_copied():
    def called(x):
        x.requires_grad_()
        with torch.profiler.profile() as found:
            y = ops.bias_act(ops.upsample2d(x, TAPS), act="lrelu")
            torch.autograd.grad(y, x, y.detach())
        return {event.key for event in found.key_averages()}

    copies = {"aten::clone", "aten::copy_", "aten::contiguous", "aten::to"}
    with served_by("kernel"):
        assert not copies & called(torch.randn(2, 16, 8, 8))
        assert not copies & called(torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last))
        assert copies & called(torch.randn(2, 16, 8, 16)[..., ::2])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(4, 4), (5,), (2, 3)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), ((1, 3), (2, 2))])
def test_derivatives(up, down, shape, side):
    x, f = torch.randn(1, 2, 4, 5, dtype=torch.double, requires_grad=True), torch.randn(shape)
    with served_by(side):
        assert gradcheck(lambda x: ops.upfirdn2d(x, f, up, down, (2, 3, 3, 1), gain=1.5), x)
        assert gradgradcheck(lambda x: ops.upfirdn2d(x, f, up, down, (2, 3, 3, 1), True), x)


def test_the_registration_is_complete():
    with served_by("kernel"):
        for x in (torch.randn(2, 3, 5, 4), torch.randn(1, 16, 4, 4).to(memory_format=torch.channels_last)):
            for trained in (False, True):
                x = x.detach().requires_grad_(trained)
                arguments = (x, TAPS, 2, 1, 1, 2, 2, 1, 2, 1, False, 4.0)
                torch.library.opcheck(torch.ops.eeg_gan.upfirdn2d.default, arguments)


def test_shapes_without_data():
    with served_by("kernel"), FakeTensorMode():
        x = torch.empty(2, 16, 9, 7, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        y = ops.upfirdn2d(x, torch.empty(4, 4), (1, 2), (3, 1), (2, 1, 0, 5))
        assert y.shape == (2, 16, 20, 3) and y.dtype == x.dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert ops.upsample2d(torch.empty(1, 2, 8, 8, device="meta"), TAPS.to("meta")).shape == (1, 2, 16, 16)


def r1_penalty(x, weight):
    y = ops.downsample2d(torch.nn.functional.conv2d(x, weight, padding=1), TAPS).square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), weight)[0]


def test_r1_in_a_compiled_function():
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch cannot compile autograd.grad")
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with served_by("kernel"), torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(r1_penalty, backend="aot_eager", fullgraph=True)(x, weight)
        torch.testing.assert_close(compiled, r1_penalty(x, weight))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_threads_do_not_change_a_bit(up, down, last):
    x = torch.randn(3, 32, 65, 67)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    before = torch.get_num_threads()
    try:
        with served_by("kernel"):
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(ops.upfirdn2d(x, TAPS, up, down, 2))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1]) and results[0].equal(results[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_rounded_to_the_nearest(dtype):
    values = torch.cat([torch.randn(5000), torch.randn(5000) * 1e-6, torch.randn(5000) * 1e4, torch.rand(5000) * 7e4])
    values = torch.cat([values, torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 65504.0, 6e-8])]).to(dtype)
    with served_by("kernel"):
        y = ops.upfirdn2d(values[None, None, None], torch.ones(1), gain=0.7)
    expected = (values.float() * torch.tensor(0.7)).to(dtype)
    torch.testing.assert_close(y[0, 0, 0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("side", SIDES)
def test_errors_name_the_operator_and_the_argument(side):
    x = torch.randn(1, 2, 8, 8)
    with served_by(side):
        for message, arguments in {
            "upfirdn2d: x is": [(x[0], TAPS), (x.int(), TAPS)],
            "upfirdn2d: f has": [(x, torch.ones(1, 1, 1)), (x, torch.ones(0))],
            "upfirdn2d: f is float32": [(x, torch.ones(4, dtype=torch.long))],
            "upfirdn2d: f is on meta": [(x, TAPS.to("meta"))],
            "upfirdn2d: f requires grad": [(x, TAPS.clone().requires_grad_())],
            "upfirdn2d: up is at least 1": [(x, TAPS, 0), (x, TAPS, (1, -1))],
            "upfirdn2d: up is one number or": [(x, TAPS, (1, 2, 3)), (x, TAPS, 2.0)],
            "upfirdn2d: down is at least 1": [(x, TAPS, 1, 0)],
            "upfirdn2d: padding": [(x, TAPS, 1, 1, (1, 2, 3)), (x, TAPS, 1, 1, 1.5)],
            "taps of f do not fit": [(x, TAPS, 1, 1, -3), (x[:, :, :0], TAPS, 1, 1, 9)],
        }.items():
            for case in arguments:
                with pytest.raises(ValueError, match=message):
                    ops.upfirdn2d(*case)


def test_the_operator_itself_refuses_nonsense():
    with served_by("kernel"):
        op, numbers = torch.ops.eeg_gan.upfirdn2d, (1, 1, 1, 1, 0, 0, 0, 0, False, 1.0)
        for x, f, message in [
            (torch.zeros(2, 8, 8), TAPS, "x is"),
            (torch.zeros(1, 2, 8, 8), TAPS.double(), "f is float32"),
            (torch.zeros(1, 2, 3, 8), TAPS, "do not fit along y"),
            (torch.zeros(1, 2, 8, 8, dtype=torch.int32), TAPS, "x is float32"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                op(x, f, *numbers)
