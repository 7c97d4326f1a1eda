"""The generator: mapping network, and a synthesis network in one of three architectures.

Karras et al. 2020 (arXiv 1912.04958), section 4.1: skip sums one RGB image per resolution, residual adds a 1x1
convolution beside each pair of layers, orig has neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from eeg_gan.models.stylegan2.layers import (
    HALF_GAIN,
    TAPS,
    Conv2d,
    Mapping,
    Precision,
    StyledConv,
    ToRGB,
    channels_at,
    sizes_up_to,
)
from eeg_gan.ops import setup_filter, upsample2d

Architecture = Literal["skip", "residual", "orig"]


@dataclass(frozen=True)
class GeneratorConfig:
    z_dim: int = 512  # length of the random vector
    w_dim: int = 512  # length of the style vector
    channel_base: int = 16384  # feature maps at a resolution: channel_base / resolution, at most channel_max
    channel_max: int = 512  # most feature maps at any resolution
    map_layers: int = 2  # fully connected layers from (z, condition) to w
    map_lr: float = 0.01  # learning rate of these layers as a fraction of the others'; 1 suits runs of minutes
    architecture: Architecture = "skip"  # skip sums an RGB image per resolution; residual; orig has neither
    conditioning: Literal["concat", "transitional"] = "concat"  # transitional: can start as an unconditional network
    whiten: bool = False  # conditions are whitened by the training trials' before they are embedded
    clamp: float | None = None  # largest activation; float16 needs one, 256 is usual

    def __post_init__(self):
        for name in ("z_dim", "w_dim", "channel_base", "channel_max", "map_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts something and is at least 1; got {getattr(self, name)}")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp is the largest activation, so it is above 0, or null; got {self.clamp}")


class Generator(nn.Module):
    """z [N, z_dim], c [N, c_dim] -> images [N, C, H, W], nominally in [-1, 1]; `resolution` is a side or (H, W)."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        resolution: int | Sequence[int],
        img_channels: int = 3,
        channel_base: int = 16384,
        channel_max: int = 512,
        map_layers: int = 2,
        map_lr: float = 0.01,
        architecture: Architecture = "skip",
        conditioning: str = "concat",
        whiten: bool = False,
        clamp: float | None = None,
        condition_weight: float = 1.0,
    ):
        super().__init__()
        self.condition_weight = condition_weight  # at which it was trained last; 1 but within a transition
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.resolution, self.img_channels, self.architecture = resolution, img_channels, architecture
        sizes = sizes_up_to(resolution)
        self.size = sizes[-1]
        widths = [channels_at(4 * 2**level, channel_base, channel_max) for level in range(len(sizes))]
        transitional = conditioning == "transitional" and c_dim > 0
        whiten = whiten and c_dim > 0
        self.mapping_network = Mapping(z_dim, c_dim, w_dim, map_layers, 0.995, map_lr, transitional, whiten)
        self.constant = nn.Parameter(torch.randn(widths[0], *sizes[0]))
        gain = HALF_GAIN if architecture == "residual" else 1.0
        self.convs = nn.ModuleList([StyledConv(widths[0], widths[0], w_dim, sizes[0], up=False, clamp=clamp)])
        for size, before, width in zip(sizes[1:], widths, widths[1:], strict=False):
            self.convs.append(StyledConv(before, width, w_dim, size, up=True, clamp=clamp))
            self.convs.append(StyledConv(width, width, w_dim, size, up=False, gain=gain, clamp=clamp))
        coloured = widths if architecture == "skip" else widths[-1:]
        self.to_rgb = nn.ModuleList([ToRGB(width, img_channels, w_dim, clamp) for width in coloured])
        pairs = zip(widths, widths[1:], strict=False) if architecture == "residual" else ()
        self.skips = nn.ModuleList([Conv2d(a, b, 1, bias=False, up=2, gain=HALF_GAIN) for a, b in pairs])
        self.num_ws = len(self.convs) + 1
        self.precision = Precision()
        self.register_buffer("taps", setup_filter(TAPS, separable=True), persistent=False)

    def mapping(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        psi: float = 1.0,
        cutoff: int | None = None,
        weight: float | None = None,
    ) -> Tensor:
        """ws [N, num_ws, w_dim]; psi < 1 pulls the first `cutoff` layers (all if None) towards the average w.

        `weight` is that of the condition in a transitional network; None takes the one it was trained at last.
        """
        w = self.mapping_network(z, c, self.condition_weight if weight is None else weight)
        ws = w[:, None].expand(-1, self.num_ws, -1)
        if psi == 1:
            return ws
        pulled = self.mapping_network.w_average.to(ws.dtype).lerp(ws, psi)
        inside = torch.arange(self.num_ws, device=ws.device) < (self.num_ws if cutoff is None else cutoff)
        return torch.where(inside[:, None], pulled, ws)

    def synthesis(self, ws: Tensor, noise: list[Tensor] | str = "const") -> Tensor:
        """ws [N, num_ws, w_dim] -> images [N, C, H, W]; toRGB shares its w with the next resolution's first layer."""
        ws = ws.unbind(dim=1)
        noise = self._noise(noise, ws[0])
        levels = len(self.convs) // 2 + 1
        x = self.constant.expand(ws[0].shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.convs[0](x.to(self.precision.at(0, levels, x)), ws[0], noise[0])
        image = self.to_rgb[0](x, ws[1]) if self.architecture == "skip" else None
        for i in range(1, levels):
            first = 2 * i - 1
            x = x.to(self.precision.at(i, levels, self.constant))
            beside = self.skips[i - 1](x) if self.skips else None
            x = self.convs[first](x, ws[first], noise[first])
            x = self.convs[first + 1](x, ws[first + 1], noise[first + 1])
            x = x if beside is None else x + beside
            if image is not None:
                own = self.to_rgb[i](x, ws[first + 2])
                image = upsample2d(image, self.taps) + own.to(image.dtype)
        image = self.to_rgb[-1](x, ws[-1]) if image is None else image
        return image.float() if image.dtype != torch.float64 else image

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        noise: list[Tensor] | str = "const",
        psi: float = 1.0,
        ws: Tensor | None = None,
        weight: float | None = None,
    ) -> Tensor:
        ws = self.mapping(z, c, psi, weight=weight) if ws is None else ws
        return self.synthesis(ws, noise)

    def draw_noise(self, generator: torch.Generator, n: int) -> list[Tensor]:
        """One [n, 1, h, w] per layer, on the CPU; slice by rank before use."""
        return [torch.randn(n, *conv.noise_const.shape[1:], generator=generator) for conv in self.convs]

    def _noise(self, noise: list[Tensor] | str, like: Tensor) -> list[Tensor | None]:
        if noise == "none":
            return [None] * len(self.convs)
        if noise == "const":
            return [conv.noise_const for conv in self.convs]
        if isinstance(noise, str) or len(noise) != len(self.convs):
            count = len(self.convs)
            raise ValueError(f"noise is 'const', 'none' or the {count} tensors of draw_noise; got {noise!r:.40}")
        return [layer.to(device=like.device, non_blocking=True) for layer in noise]


def draw_crossover(generator: torch.Generator, n: int, num_ws: int, probability: float) -> Tensor:
    """[n] first layer of the second style: 1 .. num_ws - 1 with `probability`, else num_ws (no mixing)."""
    layer = torch.randint(1, num_ws, [n], generator=generator)
    return torch.where(torch.rand(n, generator=generator) < probability, layer, num_ws)


def mix_styles(first: Tensor, second: Tensor, crossover: Tensor) -> Tensor:
    """ws [N, L, w_dim] with the layers from crossover [N] on taken from `second`."""
    layers = torch.arange(first.shape[1], device=first.device)
    return torch.where((layers < crossover.to(first.device)[:, None])[..., None], first, second)
