"""Layers of StyleGAN2: equalised learning rate, modulated convolution, mapping network, minibatch deviation.

Feature maps are kept in channels_last. N batch, C channel, H W pixel, L synthesis layer.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.distributed import mean_over_ranks
from eeg_gan.ops import bias_act, conv3x3, setup_filter, upfirdn2d, upsample2d

TAPS = (1, 3, 3, 1)
EPS = 1e-8
HALF_GAIN = math.sqrt(0.5)  # of each branch where two of equal variance are added


class Precision:
    """In which type the levels of a network compute: the highest few may use a half type, the others do not.

    The base never does, so that the sum of RGB images and the minibatch deviation are in full precision at any size.
    """

    def __init__(self, half: torch.dtype | None = None, n_highest: int = 0):
        self.half, self.n_highest = half, n_highest

    def at(self, level: int, levels: int, like: Tensor) -> torch.dtype:
        """The type of a level, 0 being the base size; `like` has the type of the others."""
        return self.half if self.half is not None and level >= max(1, levels - self.n_highest) else like.dtype


@contextlib.contextmanager
def without_half(network: nn.Module) -> Iterator[None]:
    """Within it the network computes in full precision: second derivatives are too coarse in a half type."""
    before, network.precision = network.precision, Precision()
    try:
        yield
    finally:
        network.precision = before


def full_precision(x: Tensor) -> torch.autocast:
    """Switches autocast off for the few lines that need float32."""
    return torch.autocast(x.device.type, enabled=False)


def unit_second_moment(x: Tensor) -> Tensor:
    """[N, D] scaled so that the mean square of each row is one."""
    with full_precision(x):
        x = x.float() if x.dtype != torch.float64 else x
        return x * (x.square().mean(dim=1, keepdim=True) + EPS).rsqrt()


class Linear(nn.Module):
    """A linear layer whose weights are drawn with unit variance and scaled at run time."""

    def __init__(self, n_in: int, n_out: int, bias_init: float = 0.0, lr_multiplier: float = 1.0, act: str = "linear"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([n_out], bias_init / lr_multiplier))
        self.scale = lr_multiplier / math.sqrt(n_in)
        self.lr_multiplier = lr_multiplier
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias * self.lr_multiplier if self.lr_multiplier != 1 else self.bias
        if self.act == "linear":
            return F.linear(x, self.weight * self.scale, bias)
        return bias_act(F.linear(x, self.weight * self.scale), bias, act=self.act)


class Conv2d(nn.Module):
    """A convolution: at equal size, at half size after a low-pass, at double size before one; `gain` multiplies it."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        bias: bool = True,
        act: str = "linear",
        up: int = 1,
        down: int = 1,
        gain: float = 1.0,
        clamp: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.scale = 1 / math.sqrt(n_in * kernel**2)
        self.up, self.down, self.act, self.gain = up, down, act, gain
        self.clamp = None if clamp is None else clamp * gain
        self.register_buffer("taps", setup_filter(TAPS) if up * down > 1 else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        linear = self.act == "linear"
        weight = (self.weight * (self.scale * self.gain if linear else self.scale)).to(x.dtype)
        if self.up > 1:
            x = conv_up2d(x, weight, self.taps)
        elif self.down > 1:
            x = conv_down2d(x, weight, self.taps)
        else:
            x = conv_same2d(x, weight)
        if not linear:
            return bias_act(x, self.bias, act=self.act, gain=math.sqrt(2) * self.gain, clamp=self.clamp)
        if self.bias is None and self.clamp is None:
            return x
        return bias_act(x, None if self.bias is None else self.bias * self.gain, clamp=self.clamp)


def conv_same2d(x: Tensor, weight: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C', H, W]."""
    return conv3x3(x, weight) if weight.shape[2] == 3 else F.conv2d(x, weight, padding=weight.shape[2] // 2)


def conv_down2d(x: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C', H/2, W/2]: low-pass, then a strided convolution; a 1x1 kernel needs only kept pixels."""
    kernel = weight.shape[2]
    if kernel == 1:
        return F.conv2d(upfirdn2d(x, taps, down=2, padding=1), weight)
    return F.conv2d(upfirdn2d(x, taps, padding=kernel // 2 + 1), weight, stride=2)


def conv_up2d(x: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C', 2H, 2W]: a transposed convolution with stride 2, then a low-pass; 1x1 goes first."""
    if weight.shape[2] == 1:
        return upsample2d(F.conv2d(x, weight), taps)
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return upfirdn2d(x, taps, padding=1, gain=4)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool = True,
    taps: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """A convolution with the weights weight * style of each sample, unfused; `taps` given means up by two.

    x [N, C, H, W], weight [C', C, k, k], style [N, C]; noise [N or 1, 1, H', W'] joins demodulation. Demodulation does
    not depend on the scale of weights and styles, so in float16 both are brought below 1, where nothing overflows.
    """
    if demodulate and x.dtype == torch.float16:
        weight, style = below_one(weight, style)
    x = x * style.to(x.dtype)[:, :, None, None]
    own = weight.to(x.dtype)
    y = conv_same2d(x, own) if taps is None else conv_up2d(x, own, taps)
    if not demodulate:
        return y if noise is None else y + noise
    factor = demodulation(weight, style).to(y.dtype)[:, :, None, None]
    return y * factor if noise is None else torch.addcmul(noise.to(y.dtype), y, factor)


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """[N, C']: 1 / ||weight * style|| per sample and output channel, as one matrix product."""
    with full_precision(style):
        style = style.to(weight.dtype)
        return (style.square() @ weight.square().sum(dim=(2, 3)).T + EPS).rsqrt()


def below_one(weight: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Weights with the largest of each output channel at 1 / sqrt(fan-in), styles with the largest of a sample at 1."""
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(EPS) * math.sqrt(fan_in))
    return weight, style / style.abs().amax(dim=1, keepdim=True).clamp_min(EPS)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise with a learned strength, bias and leaky ReLU; `gain` multiplies the result."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        w_dim: int,
        size: tuple[int, int],
        up: bool,
        gain: float = 1.0,
        clamp: float | None = None,
    ):
        super().__init__()
        self.affine = Linear(w_dim, n_in, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(1, 1, *size))
        self.register_buffer("taps", setup_filter(TAPS) if up else None, persistent=False)
        self.scale = 1 / math.sqrt(n_in * 9)
        self.gain = math.sqrt(2) * gain
        self.clamp = None if clamp is None else clamp * gain

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        noise = None if noise is None else noise * self.noise_strength
        x = modulated_conv2d(x, self.weight * self.scale, self.affine(w), taps=self.taps, noise=noise)
        return bias_act(x, self.bias, act="lrelu", gain=self.gain, clamp=self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation."""

    def __init__(self, n_in: int, img_channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.clamp = clamp
        self.affine = Linear(w_dim, n_in, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(img_channels, n_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))
        self.scale = 1 / math.sqrt(n_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = modulated_conv2d(x, self.weight * self.scale, self.affine(w), demodulate=False)
        return bias_act(x, self.bias, clamp=self.clamp)


class Mapping(nn.Module):
    """z [N, z_dim] and c [N, c_dim] -> w [N, w_dim]; either dimension may be 0.

    The embedded condition stands beside z (concat), or is added, with a weight, to what the first layer makes of z
    (transitional; Shahbazi et al. 2022, arXiv 2201.06578): with weight 0 the network is an unconditional one.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        layers: int,
        w_average_decay: float | None = 0.995,
        lr_multiplier: float = 0.01,
        transitional: bool = False,
        whiten: bool = False,
    ):
        super().__init__()
        if z_dim + c_dim == 0:
            raise ValueError("a mapping network needs an input: z_dim and c_dim are both 0; raise one of them")
        if transitional and not (z_dim and c_dim):
            raise ValueError(f"a transition needs z and a condition; z_dim is {z_dim}, c_dim is {c_dim}")
        self.z_dim, self.c_dim, self.transitional = z_dim, c_dim, transitional
        self.embed = Linear(c_dim, w_dim) if c_dim else None
        widths = [z_dim + (w_dim if c_dim and not transitional else 0)] + [w_dim] * layers
        pairs = zip(widths, widths[1:], strict=False)
        self.layers = nn.ModuleList([Linear(a, b, lr_multiplier=lr_multiplier, act="lrelu") for a, b in pairs])
        self.decay = w_average_decay
        self.register_buffer("w_average", torch.zeros(w_dim) if w_average_decay is not None else None)
        self.register_buffer("c_mean", torch.zeros(c_dim) if whiten else None)
        self.register_buffer("c_whitening", torch.eye(c_dim) if whiten else None)

    def forward(self, z: Tensor | None, c: Tensor | None = None, weight: float = 1.0) -> Tensor:
        x = unit_second_moment(z) if self.z_dim else None
        condition = self.embed_condition(c) if self.embed is not None else None
        if self.transitional:
            x = self.layers[0](x) + weight * condition
        else:
            x = self.layers[0](torch.cat([part for part in (x, condition) if part is not None], dim=1))
        for layer in self.layers[1:]:
            x = layer(x)
        return x

    def embed_condition(self, c: Tensor | None) -> Tensor:
        """[N, w_dim] with unit second moment; a condition of zeros stands for none and stays zero."""
        assert c is not None, f"this network is conditioned on c [N, {self.c_dim}]"
        known = (c != 0).any(dim=1, keepdim=True)
        if self.c_whitening is not None:
            c = (c - self.c_mean) @ self.c_whitening
        return torch.where(known, unit_second_moment(self.embed(c)), 0.0)

    @torch.no_grad()
    def fit_whitening(self, c: Tensor, floor: float = 0.01) -> None:
        """Principal axes of training conditions [N, c_dim] at equal variance, none above 1 / floor of the largest."""
        centred = c.double() - c.double().mean(dim=0)
        values, axes = torch.linalg.eigh(centred.T @ centred / len(c))
        self.c_mean.copy_(c.mean(dim=0))
        self.c_whitening.copy_(axes * values.clamp_min(values[-1] * floor).rsqrt())

    @torch.no_grad()
    def follow(self, w: Tensor) -> None:
        """Moves the average w towards the mean over this rank's batch w [N, w_dim] and over ranks."""
        self.w_average.lerp_(mean_over_ranks(w.to(self.w_average.dtype).mean(dim=0)), 1 - self.decay)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """[N, C, H, W] with one more channel: the mean deviation within each `group` of consecutive samples."""
    n = len(x)
    if n % group:
        fit = ", ".join(str(g) for g in range(1, n + 1) if n % g == 0)
        raise UserError(
            f"minibatch groups of {group} do not divide a batch of {n} on one process; "
            f"set mbstd_group to one of {fit}, or the batch per process to a multiple of {group}"
        )
    with full_precision(x):
        grouped = x.unflatten(0, (n // group, group))
        grouped = grouped.float() if x.dtype != torch.float64 else grouped
        centred = grouped - grouped.mean(dim=1, keepdim=True)  # `var` is ten times slower on a CPU
        deviation = (centred.square().mean(dim=1) + EPS).sqrt().mean(dim=(1, 2, 3))
    feature = deviation.repeat_interleave(group, output_size=n).to(x.dtype)[:, None, None, None]
    return torch.cat([x, feature.expand(n, 1, *x.shape[2:])], dim=1)


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution: base / resolution, at most `channel_max`."""
    return max(min(channel_base // resolution, channel_max), 1)


def sizes_up_to(resolution: int | Sequence[int]) -> list[tuple[int, int]]:
    """[(4, 4), (8, 8), .., (H, W)]: images of one side or of [height, width], halved while both sides stay 4 or more.

    The smallest size is the base; its shorter side is 4 to 7, so that any H x W is base times a power of two.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    sizes = [(height, width)]
    while min(sizes[0]) >= 8 and sizes[0][0] % 2 == sizes[0][1] % 2 == 0:
        sizes.insert(0, (sizes[0][0] // 2, sizes[0][1] // 2))
    if not (16 <= min(height, width) and max(height, width) <= 1024 and min(sizes[0]) < 8 and len(sizes) > 1):
        near = ", ".join(f"{h}x{w}" for h, w in sorted({(_fitting(height, k), _fitting(width, k)) for k in (3, 4, 5)}))
        raise UserError(
            f"images are {height}x{width} px, but a generator draws 16 to 1024 px with the shorter side 4, 5, 6 or 7 "
            f"times a power of two and the other a multiple of that power, such as {near}; run prepare again with "
            "such an image_size"
        )
    return sizes


def _fitting(side: int, doublings: int) -> int:
    step = 2**doublings
    return min(max(16, round(side / step) * step), 1024)
