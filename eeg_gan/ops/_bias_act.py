"""Bias, activation, gain and clamp in as few passes over memory as PyTorch allows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {  # name: (the gain that keeps the variance, alpha)
    "linear": (1.0, 0.0),
    "relu": (math.sqrt(2), 0.0),
    "lrelu": (math.sqrt(2), 0.2),
    "tanh": (1.0, 0.0),
    "sigmoid": (1.0, 0.0),
    "elu": (1.0, 1.0),
    "selu": (1.0, 0.0),
    "softplus": (1.0, 0.0),
    "swish": (math.sqrt(2), 0.0),
}
HOMOGENEOUS = ("linear", "relu", "lrelu")  # gain * act(x) == act(gain * x) for a positive gain


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * act(x + b), +-clamp), with b [x.shape[dim]]; where the clamp holds, the gradient is zero."""
    if act not in ACTIVATIONS:
        raise ValueError(f"no activation is called {act!r}; choose one of {', '.join(ACTIVATIONS)}")
    default_gain, default_alpha = ACTIVATIONS[act]
    gain = default_gain if gain is None else gain
    alpha = default_alpha if alpha is None else alpha
    before = gain if act in HOMOGENEOUS and gain > 0 else 1.0  # one pass for bias and gain together
    fresh = b is not None or before != 1
    if b is not None:
        shape = [-1 if i == dim % x.ndim else 1 for i in range(x.ndim)]
        x = torch.add(b.to(x.dtype).reshape(shape) * before, x, alpha=before)
    elif before != 1:
        x = x * before
    x = _activated(x, act, alpha, inplace=fresh)
    if gain != before:
        x = x * gain
    return x if clamp is None else _clamped(x, clamp)


def _activated(x: Tensor, act: str, alpha: float, inplace: bool) -> Tensor:
    """Overwrites x where it is a value of our own and the derivative can be told from the result."""
    match act:
        case "linear":
            return x
        case "relu":
            return F.relu(x, inplace=inplace)
        case "lrelu":
            return F.leaky_relu(x, alpha, inplace=inplace and alpha > 0)
        case "elu":
            return F.elu(x, alpha)
        case "swish":
            return F.silu(x)
        case _:
            return {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "selu": F.selu, "softplus": F.softplus}[act](x)


def _clamped(x: Tensor, limit: float) -> Tensor:
    """`Tensor.clamp` passes the gradient at |x| == limit; here it ends there."""
    inside = x.detach().abs() < limit
    return torch.where(inside, x, x.detach().clamp(-limit, limit))
