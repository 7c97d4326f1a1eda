"""Upsample, pad or crop, filter, downsample: one linear operation on images [N, C, H, W]; its derivatives come free.

Per axis, with z the input with up - 1 zeros after each sample: out[m] = gain * sum_k f[taps-1-k] z[m*down + k - pad0],
a convolution; `flip_filter` makes it a correlation. Output width: (W*up + pad0 + pad1 - taps) // down + 1.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.ops import library

MATRIX_MAX = 64  # px up to which a dense matrix per axis beats a depthwise convolution on a CPU
SEPARABLE_FROM = 8  # taps
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def setup_filter(taps, normalize: bool = True, gain: float = 1.0, separable: bool | None = None) -> Tensor:
    """Float32 taps [k] (one per axis, applied along both) or [kh, kw]; long filters stay 1-D unless told otherwise."""
    f = torch.as_tensor(taps, dtype=torch.float32)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"a filter has one or two axes and at least one tap; got the shape {tuple(f.shape)}")
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= SEPARABLE_FROM
    if separable and f.ndim == 2:
        raise ValueError("a 2-D filter cannot be made separable; give the 1-D taps")
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    return f * gain ** (f.ndim / 2)  # a 1-D filter is applied twice


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """[N, C, H, W] -> [N, C, H', W']; `up`, `down` are int or (x, y), `padding` int, (x, y) or (x0, x1, y0, y1).

    A 1-D filter is applied along both axes; f=None stands for one tap of 1. `gain` multiplies the whole. Differentiable
    in x any number of times, not in f.
    """
    up_x, up_y = _pair(up, "up")
    down_x, down_y = _pair(down, "down")
    pad_x0, pad_x1, pad_y0, pad_y1 = _four(padding)
    if f is None:
        if up_x == up_y == down_x == down_y == gain == 1 and pad_x0 == pad_x1 == pad_y0 == pad_y1 == 0:
            return x
        f = torch.ones(1, device=x.device)
    computing = torch.float64 if x.dtype == torch.float64 else torch.float32
    if f.dtype != computing:
        f = _converted(f, computing)
    _check(x, f, up_x, up_y, pad_x0 + pad_x1, pad_y0 + pad_y1)
    arguments = (x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, bool(flip_filter), float(gain))
    if not library.serves("upfirdn2d", x):
        return _twin(*arguments)
    if library.traced():
        return torch.ops.eeg_gan.upfirdn2d.default(*arguments)
    return _eager(*arguments)


def filter2d(x: Tensor, f: Tensor, padding=0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """Filters at the same size; `padding` adds to what keeps the size."""
    pads = [((k - 1 + 1) // 2, (k - 1) // 2) for k in _taps(f)]
    return upfirdn2d(x, f, padding=_added(pads, padding), flip_filter=flip_filter, gain=gain)


def upsample2d(x: Tensor, f: Tensor, up=2, padding=0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """[N, C, H, W] -> [N, C, H * up, W * up] with unit gain at zero frequency for a normalised filter."""
    ups = _pair(up, "up")
    pads = [((k + u - 1) // 2, (k - u) // 2) for k, u in zip(_taps(f), ups, strict=True)]
    return upfirdn2d(x, f, ups, 1, _added(pads, padding), flip_filter, gain * ups[0] * ups[1])


def downsample2d(x: Tensor, f: Tensor, down=2, padding=0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """[N, C, H, W] -> [N, C, H / down, W / down]."""
    downs = _pair(down, "down")
    pads = [((k - d + 1) // 2, (k - d) // 2) for k, d in zip(_taps(f), downs, strict=True)]
    return upfirdn2d(x, f, 1, downs, _added(pads, padding), flip_filter, gain)


def _check(x: Tensor, f: Tensor, up_x: int, up_y: int, pad_x: int, pad_y: int) -> None:
    """Everything that can be wrong with the arguments, before anything runs."""
    if x.ndim != 4 or x.dtype not in DTYPES:
        raise ValueError(
            "upfirdn2d: x is [N, C, H, W] in float32, float64, bfloat16 or float16; "
            f"got {x.dtype} of the shape {tuple(x.shape)}"
        )
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"upfirdn2d: f has one or two axes and at least one tap; got the shape {tuple(f.shape)}")
    if f.device != x.device:
        raise ValueError(f"upfirdn2d: f is on {f.device} but x on {x.device}; move f there once, with .to(x.device)")
    if f.requires_grad:
        raise ValueError("upfirdn2d: f requires grad, but there is no derivative in the filter; pass f.detach()")
    (height, width), kh, kw = x.shape[2:], f.shape[0], f.shape[-1]
    if height < 1 or width < 1 or width * up_x + pad_x < kw or height * up_y + pad_y < kh:
        raise ValueError(
            f"upfirdn2d: {kh}x{kw} taps of f do not fit into x of {height}x{width} px with up (x, y) {up_x, up_y} and "
            f"a padding of {pad_x} along x, {pad_y} along y in all; give more padding or a shorter filter"
        )


def _converted(f: Tensor, dtype: torch.dtype) -> Tensor:
    if not f.is_floating_point():
        raise ValueError(f"upfirdn2d: f is float32; got {f.dtype}")
    return f.to(dtype)


def register() -> None:
    """Derivatives and shapes of the compiled operator; called once it is loaded."""
    torch.library.register_fake("eeg_gan::upfirdn2d", _fake)
    torch.library.register_autograd("eeg_gan::upfirdn2d", _backward, setup_context=_remember)


def _fake(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip, gain) -> Tensor:
    width = (x.shape[3] * up_x + pad_x0 + pad_x1 - f.shape[-1]) // down_x + 1
    height = (x.shape[2] * up_y + pad_y0 + pad_y1 - f.shape[0]) // down_y + 1
    last = not x.is_contiguous() and x.stride(1) == 1
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (x.shape[0], x.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _remember(ctx, inputs, output) -> None:
    x, f, *ctx.numbers = inputs
    if f.requires_grad:
        raise ValueError("upfirdn2d: f requires grad, but there is no derivative in the filter; pass f.detach()")
    ctx.sizes = (x.shape[3], output.shape[3]), (x.shape[2], output.shape[2])
    ctx.save_for_backward(f)


def _backward(ctx, gradient: Tensor):
    """The adjoint is the same operation with up and down exchanged and the filter turned round."""
    (f,) = ctx.saved_tensors
    up_x, up_y, down_x, down_y, pad_x0, _, pad_y0, _, flip, gain = ctx.numbers
    axes = (up_x, down_x, pad_x0, f.shape[-1]), (up_y, down_y, pad_y0, f.shape[0])
    pads = []
    for (size, out), (up, down, pad, taps) in zip(ctx.sizes, axes, strict=True):
        pads += [taps - pad - 1, size * up - out * down + pad - up + 1]
    op = torch.ops.eeg_gan.upfirdn2d.default if library.traced() else _eager
    return op(gradient, f, down_x, down_y, up_x, up_y, *pads, not flip, gain), *[None] * 11


def _eager(x, *others) -> Tensor:
    """What `register` says to the dispatcher, at less cost per call."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Upfirdn2d.apply(x, *others)
    return library.below_autograd("upfirdn2d", x, *others)


class _Upfirdn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        y = library.below_autograd("upfirdn2d", *arguments)
        _remember(ctx, arguments, y)
        return y

    backward = staticmethod(_backward)


def _twin(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip, gain) -> Tensor:
    """The same in plain PyTorch."""
    if f.ndim == 2:
        along_both = (f, (up_y, up_x), (down_y, down_x), (pad_y0, pad_y1, pad_x0, pad_x1))
        return _convolved(x, *along_both, flip, gain)
    axis = _by_matrix if x.device.type == "cpu" and max(x.shape[2:]) <= MATRIX_MAX else _by_convolution
    x = axis(x, f, 3, up_x, down_x, (pad_x0, pad_x1), flip, 1.0)
    return axis(x, f, 2, up_y, down_y, (pad_y0, pad_y1), flip, gain)


def _by_matrix(x: Tensor, f: Tensor, dim: int, up: int, down: int, pads, flip: bool, gain: float) -> Tensor:
    taps = tuple(f.tolist())
    if taps == (1.0,) and up == down == 1 and pads == (0, 0):
        return x * gain if gain != 1 else x
    matrix = _axis_matrix(x.shape[dim], taps, up, down, pads, flip, gain, x.dtype)
    return x @ matrix.mT if dim == 3 else matrix @ x


@functools.lru_cache(maxsize=256)
def _axis_matrix(size: int, taps: tuple, up: int, down: int, pads, flip: bool, gain: float, dtype) -> Tensor:
    """The whole operation along one axis as a matrix [out, size]."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        eye = torch.eye(size, dtype=torch.float64)[None, None]
        f = torch.tensor(taps, dtype=torch.float64)
        return _by_convolution(eye, f, 2, up, down, pads, flip, gain)[0, 0].to(dtype)


def _by_convolution(x: Tensor, f: Tensor, dim: int, up: int, down: int, pads, flip: bool, gain: float) -> Tensor:
    if dim == 3:
        return _convolved(x, f[None, :], (1, up), (1, down), (0, 0, *pads), flip, gain)
    return _convolved(x, f[:, None], (up, 1), (down, 1), (*pads, 0, 0), flip, gain)


def _convolved(x: Tensor, f: Tensor, up, down, pads, flip: bool, gain: float) -> Tensor:
    """Everything here in the order (y, x): a 2-D filter by depthwise convolution, without inserted zeros."""
    channels = x.shape[1]
    y0, y1, x0, x1 = pads
    f = f.to(x) * gain
    f = f.flip((0, 1)) if flip else f
    (kh, kw), (height, width) = f.shape, x.shape[2:]
    rows, columns = height * up[0] + y0 + y1 - kh + 1, width * up[1] + x0 + x1 - kw + 1
    if tuple(up) == (1, 1):
        weight = f.flip((0, 1)).expand(channels, 1, kh, kw)  # conv2d correlates
        return F.conv2d(_padded(x, pads), weight, stride=tuple(down), groups=channels)
    full = F.conv_transpose2d(x, f.expand(channels, 1, kh, kw), stride=tuple(up), groups=channels)
    y0, x0 = y0 - (kh - 1), x0 - (kw - 1)  # the full convolution starts at the first tap
    full = _padded(full, (y0, rows - y0 - full.shape[2], x0, columns - x0 - full.shape[3]))
    return full[:, :, :: down[0], :: down[1]]


def _padded(x: Tensor, pads) -> Tensor:
    """Zeros first, then crops: a crop may be larger than the image."""
    y0, y1, x0, x1 = pads
    height, width = x.shape[2] + y0 + y1, x.shape[3] + x0 + x1
    if max(pads) > 0:
        x = F.pad(x, [max(p, 0) for p in (x0, x1, y0, y1)])
    y0, x0 = max(-y0, 0), max(-x0, 0)
    return x[:, :, y0 : y0 + height, x0 : x0 + width] if min(pads) < 0 else x


def _taps(f: Tensor) -> tuple[int, int]:
    return f.shape[-1], f.shape[0]


def _pair(value, name: str) -> tuple[int, int]:
    if isinstance(value, int):
        x = y = value
    elif isinstance(value, Sequence) and len(value) == 2:
        x, y = value
    else:
        raise ValueError(f"upfirdn2d: {name} is one number or (x, y); got {value}")
    if x < 1 or y < 1:
        raise ValueError(f"upfirdn2d: {name} is at least 1; got {value}")
    return x, y


def _four(padding) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return (padding,) * 4
    if not isinstance(padding, Sequence) or len(padding) not in (2, 4):
        raise ValueError(f"upfirdn2d: padding is one number, (x, y) or (x0, x1, y0, y1); got {padding}")
    x0, *_, y1 = padding
    return (x0, x0, y1, y1) if len(padding) == 2 else tuple(padding)


def _added(pads, padding) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip((*pads[0], *pads[1]), _four(padding), strict=True))
