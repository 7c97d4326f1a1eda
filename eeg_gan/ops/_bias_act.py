"""Bias, activation, gain and clamp in one pass over memory, and one more for the derivatives.

What backward needs is told from y where it can be, so that x = conv(...) need not be kept. dx is then a function of dy
and y, and its derivative with respect to y goes back through y: any number of derivatives, at the memory of one.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.ops import library

ACTIVATIONS = {  # name: (the gain that keeps the variance, alpha); in the order of csrc/activation.h
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
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
STRAIGHT = ("linear", "relu", "lrelu")  # gain * act(x) == act(gain * x) for a positive gain; second derivative zero
BENT = frozenset(code for name, code in CODES.items() if name not in STRAIGHT)
LINEAR, LRELU, ELU, SWISH = (CODES[name] for name in ("linear", "lrelu", "elu", "swish"))
SELU_ALPHA, SELU_GAIN = 1.6732632423543772, 1.0507009873554805
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
        raise ValueError(f"bias_act: no activation (act) is called {act!r}; choose one of {', '.join(ACTIVATIONS)}")
    default_gain, default_alpha = ACTIVATIONS[act]
    gain = default_gain if gain is None else gain
    alpha = default_alpha if alpha is None else alpha
    dim = _checked(x, b, dim, clamp)
    plain = act == "linear" and gain == 1 and clamp is None and (b is None or b.dtype == x.dtype)  # one pass as it is
    if plain or x.ndim == 0 or x.dtype not in DTYPES or not library.serves("bias_act", x):
        return _composed(x, b, dim, act, alpha, gain, clamp)
    numbers = dim, CODES[act], alpha, gain, -1.0 if clamp is None else clamp
    if library.traced():
        return torch.ops.eeg_gan.bias_act(x, b, *numbers)
    if torch.is_grad_enabled() and (x.requires_grad or b is not None and b.requires_grad):
        return _BiasAct.apply(x, b, *numbers)
    return library.below_autograd("bias_act", x, b, *numbers)


def _checked(x: Tensor, b: Tensor | None, dim: int, clamp: float | None) -> int:
    if not x.is_floating_point():
        raise ValueError(f"bias_act: x holds floating-point numbers; got {x.dtype}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"bias_act: clamp is a bound of |y|, 0 or more; got {clamp}")
    if b is None:
        return 0
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"bias_act: x has {x.ndim} dimensions, so dim cannot be {dim}")
    dim %= x.ndim
    if b.ndim != 1 or b.shape[0] != x.shape[dim]:
        raise ValueError(f"bias_act: b is [{x.shape[dim]}] as x's dimension {dim} is; got {list(b.shape)}")
    if not b.is_floating_point():
        raise ValueError(f"bias_act: b holds floating-point numbers; got {b.dtype}")
    if b.device != x.device:
        raise ValueError(f"bias_act: b is on {b.device}, x on {x.device}")
    return dim


def _composed(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None):
    """The twin, in as few passes over memory as PyTorch allows."""
    before = gain if act in STRAIGHT and gain > 0 else 1.0  # one pass for bias and gain together
    fresh = b is not None or before != 1
    if b is not None:
        shape = [-1 if i == dim else 1 for i in range(x.ndim)]
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


# --- Derivatives of the compiled operator. `numbers` are dim, act's code, alpha, gain and clamp, negative for none.


def _told_from_x(act: int, alpha: float, gain: float) -> bool:
    """Whether backward needs x, as y does not tell the derivative (exactly)."""
    if act == LINEAR:
        return False
    return act == SWISH or act in (LRELU, ELU) and alpha < 0 or not 2**-10 <= abs(gain) <= 2**10


def _setup_forward(ctx, inputs, output) -> None:
    x, b, *numbers = inputs
    _, act, alpha, gain, clamp = numbers
    by_x = _told_from_x(act, alpha, gain)
    ctx.numbers, ctx.by_x, ctx.b_dtype = numbers, by_x, None if b is None else b.dtype
    if by_x:
        ctx.save_for_backward(x, b)
    elif act == LINEAR and clamp < 0:
        ctx.save_for_backward(None, None)
    else:
        ctx.save_for_backward(output, None)


def _backward(ctx, dy: Tensor):
    ref, b = ctx.saved_tensors
    call = torch.ops.eeg_gan.bias_act_backward
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        call = functools.partial(library.below_autograd, "bias_act_backward")
    want_db = ctx.b_dtype is not None and ctx.needs_input_grad[1]
    dx, db = call(dy, ref, b, *ctx.numbers, ctx.by_x, want_db)
    if want_db and db.dtype != ctx.b_dtype:
        db = db.to(ctx.b_dtype)
    return dx, db if want_db else None, None, None, None, None, None


class _BiasAct(torch.autograd.Function):
    """What `register` says to the dispatcher, at less cost per call."""

    @staticmethod
    def forward(ctx, x, b, *numbers):
        y = library.below_autograd("bias_act", x, b, *numbers)
        _setup_forward(ctx, (x, b, *numbers), y)
        return y

    backward = staticmethod(_backward)


def _setup_backward(ctx, inputs, output) -> None:
    dy, ref, b, *numbers, by_x, want_db = inputs
    ctx.numbers, ctx.by_x, ctx.want_db = numbers, by_x, want_db
    ctx.set_materialize_grads(False)
    needs_dy = numbers[1] in BENT or ref is None
    ctx.save_for_backward(dy if needs_dy else None, ref, b)


def _double_backward(ctx, ddx: Tensor | None, ddb: Tensor | None):
    dy, ref, b = ctx.saved_tensors
    ddb = ddb if ctx.want_db else None
    nothing = [None] * 7
    if ddx is None and ddb is None:
        return None, None, None, *nothing
    bent = ctx.numbers[1] in BENT
    want_b = bent and b is not None and ctx.needs_input_grad[2]
    want_ref = bent and (ctx.needs_input_grad[1] or want_b)
    gdy, gref, gb = torch.ops.eeg_gan.bias_act_double_backward(
        ddx, ddb, ref if dy is None else dy, ref, b, *ctx.numbers, ctx.by_x, want_ref, want_b
    )
    return gdy, gref if want_ref else None, gb.to(b.dtype) if want_b else None, *nothing


def _setup_double_backward(ctx, inputs, output) -> None:
    *tensors, dim, act, alpha, gain, clamp, by_x, want_ref, want_b = inputs
    ctx.rest = dim, act, alpha, gain, clamp, by_x
    ctx.wanted = True, want_ref, want_b
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _third_derivative(ctx, *gradients):
    """By plain PyTorch, which goes on to any order."""
    with torch.enable_grad():
        # views, so that a derivative by one of them does not go on through another that was computed from it
        tensors = [t if t is None else t.view_as(t) for t in ctx.saved_tensors]
        results = _second_composed(*tensors, *ctx.rest)
        chosen = [i for i, g in enumerate(gradients) if ctx.wanted[i] and g is not None and results[i].requires_grad]
        wrt = [i for i, t in enumerate(tensors) if t is not None and t.requires_grad]
        found = [None] * (len(tensors) + 8)
        if chosen and wrt:
            given = [gradients[i].to(results[i].dtype) for i in chosen]
            outputs, inputs = [results[i] for i in chosen], [tensors[i] for i in wrt]
            gradients = torch.autograd.grad(outputs, inputs, given, create_graph=True, allow_unused=True)
            for i, g in zip(wrt, gradients, strict=True):
                found[i] = g
    return tuple(found)


def _second_composed(ddx, ddb, dy, ref, b, dim, act, alpha, gain, clamp, by_x):
    """The double backward's formulas: gradients of dy, of ref and of b."""
    like = dy if ref is None else ref
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    shape = [-1 if i == dim else 1 for i in range(like.ndim)]
    others = [i for i in range(like.ndim) if i != dim]
    if act == CODES["selu"]:
        act, alpha, gain = ELU, SELU_ALPHA, gain * SELU_GAIN
    v = 0.0 if ddx is None else ddx.to(wide)
    v = v if ddb is None else v + ddb.to(wide).reshape(shape)
    point = like.to(wide)
    if by_x:
        u = point if b is None else point + b.to(wide).reshape(shape)
    else:
        u = point if act == LINEAR else point / gain
    name = list(ACTIVATIONS)[act]
    a = _activated(u, name, alpha, inplace=False) if by_x else u
    y = (gain * a if by_x else point).detach().to(like.dtype)
    slope, bend = _slope_and_bend(name, u, a, alpha)
    if by_x:
        bend = bend * gain if act == SWISH else bend * slope * gain
    inside = torch.ones_like(y, dtype=torch.bool) if clamp < 0 else y.abs() < clamp
    gdy = torch.where(inside, v * gain * slope, 0.0)
    gref = torch.where(inside, v * dy.to(wide) * bend, 0.0)
    return gdy.to(like.dtype), gref.to(like.dtype), gref.sum(others)


def _slope_and_bend(name: str, u: Tensor, a: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """act' and how it changes with a = act(u), or with u for swish; as csrc/activation.h has them."""
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    match name:
        case "linear":
            return one, zero
        case "relu" | "lrelu":
            return torch.where(u > 0, one, alpha), zero
        case "tanh":
            return 1 - a * a, -2 * a
        case "sigmoid":
            return a * (1 - a), 1 - 2 * a
        case "elu":
            return torch.where(u > 0, one, a + alpha), torch.where(u > 0, zero, one)
        case "softplus":
            return -torch.expm1(-a), torch.exp(-a)
        case _:
            s = torch.sigmoid(u)
            return s * (1 + u * (1 - s)), s * (1 - s) * (2 + u * (1 - 2 * s))


def register() -> None:
    """Fake kernels and derivatives, for everything that goes through the dispatcher: torch.compile, opcheck."""
    fake, autograd = torch.library.register_fake, torch.library.register_autograd
    fake("eeg_gan::bias_act")(_fake_forward)
    fake("eeg_gan::bias_act_backward")(_fake_backward)
    fake("eeg_gan::bias_act_double_backward")(_fake_double_backward)
    autograd("eeg_gan::bias_act", _backward, setup_context=_setup_forward)
    autograd("eeg_gan::bias_act_backward", _double_backward, setup_context=_setup_backward)
    autograd("eeg_gan::bias_act_double_backward", _third_derivative, setup_context=_setup_double_backward)


def _fake_forward(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


def _fake_backward(dy, ref, b, dim, act, alpha, gain, clamp, by_x, want_db):
    like = dy if ref is None else ref
    return torch.empty_like(like), _fake_sums(like, dim, want_db)


def _fake_double_backward(ddx, ddb, dy, ref, b, dim, act, alpha, gain, clamp, by_x, want_ref, want_b):
    like = dy if ref is None else ref
    gref = torch.empty_like(like) if want_ref else _fake_sums(like, dim, False)
    return torch.empty_like(like), gref, _fake_sums(like, dim, want_b)


def _fake_sums(like: Tensor, dim: int, wanted: bool) -> Tensor:
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(like.shape[dim] if wanted else 0, dtype=wide)
