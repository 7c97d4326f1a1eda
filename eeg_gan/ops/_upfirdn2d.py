"""Upsample, pad or crop, filter, downsample: one linear operation on images [N, C, H, W]; its derivatives come free.

Per axis, with z the input with up - 1 zeros after each sample: out[m] = gain * sum_k f[taps-1-k] z[m*down + k - pad0],
a convolution; `flip_filter` makes it a correlation. Output width: (W*up + pad0 + pad1 - taps) // down + 1.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MATRIX_MAX = 64  # px up to which a dense matrix per axis beats a depthwise convolution on a CPU
SEPARABLE_FROM = 8  # taps


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
    """[N, C, H, W] -> [N, C, H', W']; `up`, `down` are int or (x, y), `padding` int, (x, y) or (x0, x1, y0, y1)."""
    (up_x, up_y), (down_x, down_y) = _pair(up), _pair(down)
    pad_x0, pad_x1, pad_y0, pad_y1 = _four(padding)
    if f is None:
        f = x.new_ones(1)
    if f.ndim == 2:
        along_both = (f, (up_y, up_x), (down_y, down_x), (pad_y0, pad_y1, pad_x0, pad_x1))
        return _convolved(x, *along_both, flip_filter, gain)
    axis = _by_matrix if x.device.type == "cpu" and max(x.shape[2:]) <= MATRIX_MAX else _by_convolution
    x = axis(x, f, 3, up_x, down_x, (pad_x0, pad_x1), flip_filter, math.sqrt(gain))
    return axis(x, f, 2, up_y, down_y, (pad_y0, pad_y1), flip_filter, math.sqrt(gain))


def filter2d(x: Tensor, f: Tensor, padding=0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """Filters at the same size; `padding` adds to what keeps the size."""
    pads = [((k - 1 + 1) // 2, (k - 1) // 2) for k in _taps(f)]
    return upfirdn2d(x, f, padding=_added(pads, padding), flip_filter=flip_filter, gain=gain)


def upsample2d(x: Tensor, f: Tensor, up=2, padding=0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """[N, C, H, W] -> [N, C, H * up, W * up] with unit gain at zero frequency for a normalised filter."""
    ups = _pair(up)
    pads = [((k + u - 1) // 2, (k - u) // 2) for k, u in zip(_taps(f), ups, strict=True)]
    return upfirdn2d(x, f, ups, 1, _added(pads, padding), flip_filter, gain * ups[0] * ups[1])


def downsample2d(x: Tensor, f: Tensor, down=2, padding=0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """[N, C, H, W] -> [N, C, H / down, W / down]."""
    downs = _pair(down)
    pads = [((k - d + 1) // 2, (k - d) // 2) for k, d in zip(_taps(f), downs, strict=True)]
    return upfirdn2d(x, f, 1, downs, _added(pads, padding), flip_filter, gain)


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
    if rows < 1 or columns < 1:
        raise ValueError(f"{kh}x{kw} taps do not fit into {height}x{width} px with padding (y, x) {pads} and up {up}")
    if tuple(up) == (1, 1):
        weight = f.flip((0, 1)).expand(channels, 1, kh, kw)  # conv2d correlates
        return F.conv2d(_padded(x, pads), weight, stride=tuple(down), groups=channels)
    full = F.conv_transpose2d(x, f.expand(channels, 1, kh, kw), stride=tuple(up), groups=channels)
    y0, x0 = y0 - (kh - 1), x0 - (kw - 1)  # the full convolution starts at the first tap
    full = _padded(full, (y0, rows - y0 - full.shape[2], x0, columns - x0 - full.shape[3]))
    return full[:, :, :: down[0], :: down[1]]


def _padded(x: Tensor, pads) -> Tensor:
    y0, y1, x0, x1 = pads
    return F.pad(x, (x0, x1, y0, y1)) if any(pads) else x


def _taps(f: Tensor) -> tuple[int, int]:
    return f.shape[-1], f.shape[0]


def _pair(value) -> tuple[int, int]:
    x, y = (value, value) if isinstance(value, int) else value
    if x < 1 or y < 1:
        raise ValueError(f"up and down are at least 1; got {value}")
    return x, y


def _four(padding) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return padding[0], padding[0], padding[1], padding[1]
    x0, x1, y0, y1 = padding
    return x0, x1, y0, y1


def _added(pads, padding) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip((*pads[0], *pads[1]), _four(padding), strict=True))
