"""Convolution with 3x3 taps at equal size; on a CPU by Winograd's minimal filtering, in a quarter of the products.

Lavin & Gray 2016 (arXiv 1509.09308). PyTorch's convolutions run at the limit of a CPU's arithmetic, and most of the
work of the generator's training is in this one shape, so that only fewer products make it faster. Results are rounded
about twice as coarsely as direct sums. GPUs, other types and other widths keep PyTorch's convolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.ops import library

CHANNELS = 32  # numbers of channels of the compiled operator are multiples of it


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """[N, C, H, W] correlated with [O, C, 3, 3] on zeros outside: [N, O, H, W], differentiable any number of times.

    The compiled operator gives channels_last, in which the networks keep their feature maps.
    """
    if x.ndim != 4 or weight.ndim != 4 or tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise ValueError(
            f"conv3x3: x is [N, C, H, W], weight [O, C, 3, 3]; got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if _fits(x, weight) and library.serves("conv3x3", x):
        return torch.ops.eeg_gan.conv3x3.default(x, weight)
    return _twin(x, weight)


def _fits(x: Tensor, weight: Tensor) -> bool:
    channels = weight.shape[0] % CHANNELS == x.shape[1] % CHANNELS == 0 and x.shape[1] > 0
    return channels and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


def _twin(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def register() -> None:
    """Derivatives and shapes: the operator and its weight's gradient are each linear in both arguments."""
    torch.library.register_fake("eeg_gan::conv3x3", _fake)
    torch.library.register_fake("eeg_gan::conv3x3_weight", _fake_weight)
    torch.library.register_autograd("eeg_gan::conv3x3", _backward, setup_context=_remember)
    torch.library.register_autograd("eeg_gan::conv3x3_weight", _backward_weight, setup_context=_remember)


def _fake(x: Tensor, weight: Tensor) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_weight(x: Tensor, dy: Tensor) -> Tensor:
    return x.new_empty(dy.shape[1], x.shape[1], 3, 3)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy: Tensor):
    x, weight = ctx.saved_tensors
    want_x, want_weight = ctx.needs_input_grad
    ops = torch.ops.eeg_gan
    return ops.conv3x3(dy, turned(weight)) if want_x else None, ops.conv3x3_weight(x, dy) if want_weight else None


def _backward_weight(ctx, dweight: Tensor):
    x, dy = ctx.saved_tensors
    want_x, want_dy = ctx.needs_input_grad
    ops = torch.ops.eeg_gan
    return ops.conv3x3(dy, turned(dweight)) if want_x else None, ops.conv3x3(x, dweight) if want_dy else None


def turned(weight: Tensor) -> Tensor:
    """The weight of the adjoint: taps turned by half a turn, inputs for outputs."""
    return weight.flip(2, 3).transpose(0, 1)
