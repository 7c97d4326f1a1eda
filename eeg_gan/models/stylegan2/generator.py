"""The generator: mapping network, and a synthesis network that sums one RGB image per resolution."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eeg_gan.models.stylegan2.layers import TAPS, Mapping, StyledConv, ToRGB, channels_at, resolutions_up_to
from eeg_gan.ops import setup_filter, upsample2d


@dataclass(frozen=True)
class GeneratorConfig:
    z_dim: int = 512  # length of the random vector
    w_dim: int = 512  # length of the style vector
    channel_base: int = 16384  # feature maps at a resolution: channel_base / resolution, at most channel_max
    channel_max: int = 512  # most feature maps at any resolution
    map_layers: int = 2  # fully connected layers from (z, condition) to w
    map_lr: float = 0.01  # learning rate of these layers as a fraction of the others'; 1 suits runs of minutes

    def __post_init__(self):
        for name in ("z_dim", "w_dim", "channel_base", "channel_max", "map_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts something and is at least 1; got {getattr(self, name)}")


class Generator(nn.Module):
    """z [N, z_dim], c [N, c_dim] -> images [N, 3, R, R], nominally in [-1, 1]."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        resolution: int,
        img_channels: int = 3,
        channel_base: int = 16384,
        channel_max: int = 512,
        map_layers: int = 2,
        map_lr: float = 0.01,
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.resolution, self.img_channels = resolution, img_channels
        sizes = resolutions_up_to(resolution)
        widths = [channels_at(size, channel_base, channel_max) for size in sizes]
        self.mapping_network = Mapping(z_dim, c_dim, w_dim, map_layers, lr_multiplier=map_lr)
        self.constant = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.convs = nn.ModuleList([StyledConv(widths[0], widths[0], w_dim, 4, up=False)])
        for size, before, width in zip(sizes[1:], widths, widths[1:], strict=False):
            self.convs.append(StyledConv(before, width, w_dim, size, up=True))
            self.convs.append(StyledConv(width, width, w_dim, size, up=False))
        self.to_rgb = nn.ModuleList([ToRGB(width, img_channels, w_dim) for width in widths])
        self.num_ws = len(self.convs) + 1
        self.register_buffer("taps", setup_filter(TAPS, separable=True), persistent=False)

    def mapping(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        psi: float = 1.0,
        cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """ws [N, num_ws, w_dim]; psi < 1 pulls the first `cutoff` layers (all if None) towards the average w."""
        w = self.mapping_network(z, c, update_average)
        ws = w[:, None].expand(-1, self.num_ws, -1)
        if psi == 1:
            return ws
        pulled = self.mapping_network.w_average.to(ws.dtype).lerp(ws, psi)
        inside = torch.arange(self.num_ws, device=ws.device) < (self.num_ws if cutoff is None else cutoff)
        return torch.where(inside[:, None], pulled, ws)

    def synthesis(self, ws: Tensor, noise: list[Tensor] | str = "const") -> Tensor:
        """ws [N, num_ws, w_dim] -> images [N, C, R, R]; toRGB shares its w with the next resolution's first layer."""
        ws = ws.unbind(dim=1)
        noise = self._noise(noise, ws[0])
        x = self.constant.expand(len(ws[0]), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.convs[0](x, ws[0], noise[0])
        image = self.to_rgb[0](x, ws[1])
        for i, to_rgb in enumerate(self.to_rgb[1:], start=1):
            first = 2 * i - 1
            x = self.convs[first](x, ws[first], noise[first])
            x = self.convs[first + 1](x, ws[first + 1], noise[first + 1])
            image = upsample2d(image, self.taps) + to_rgb(x, ws[first + 2])
        return image.float() if image.dtype != torch.float64 else image

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        noise: list[Tensor] | str = "const",
        psi: float = 1.0,
        ws: Tensor | None = None,
        update_average: bool = False,
    ) -> Tensor:
        ws = self.mapping(z, c, psi, update_average=update_average) if ws is None else ws
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
