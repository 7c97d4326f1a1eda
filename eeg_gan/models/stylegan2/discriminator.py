"""The discriminator: blocks down to the base size, minibatch deviation, and projection on the mapped condition.

Architectures as in Karras et al. 2020 (arXiv 1912.04958), section 4.1: residual blocks, skip (an RGB input at every
resolution), or orig (neither).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eeg_gan.models.projected import ProjectedConfig
from eeg_gan.models.stylegan2.generator import Architecture
from eeg_gan.models.stylegan2.layers import (
    HALF_GAIN,
    TAPS,
    Conv2d,
    Linear,
    Mapping,
    Precision,
    channels_at,
    full_precision,
    minibatch_deviation,
    sizes_up_to,
)
from eeg_gan.ops import downsample2d, setup_filter


@dataclass(frozen=True)
class DiscriminatorConfig:
    channel_base: int = 16384  # feature maps at a resolution: channel_base / resolution, at most channel_max
    channel_max: int = 512  # most feature maps at any resolution
    mbstd_group: int = 4  # consecutive samples that share a deviation feature; divides the batch of a process
    map_layers: int = 2  # fully connected layers from the condition to its projection
    map_lr: float = 0.01  # learning rate of these layers as a fraction of the others'; 1 suits runs of minutes
    architecture: Architecture = "residual"  # residual; skip has an RGB input per resolution; orig has neither
    two_heads: bool = False  # an unconditional logit beside the conditional one, as a transition needs
    whiten: bool = False  # conditions are whitened by the training trials' before they are embedded
    clamp: float | None = None  # largest activation; float16 needs one, 256 is usual
    projected: ProjectedConfig | None = None  # judge by a pretrained network; of the keys above map_*, two_heads and
    # whiten hold for it too

    def __post_init__(self):
        for name in ("channel_base", "channel_max", "mbstd_group", "map_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts something and is at least 1; got {getattr(self, name)}")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp is the largest activation, so it is above 0, or null; got {self.clamp}")


class Discriminator(nn.Module):
    """images [N, C, H, W], c [N, c_dim] -> logits [N], large for real; c_dim 0 is an unconditional network."""

    def __init__(
        self,
        resolution: int | Sequence[int],
        c_dim: int,
        img_channels: int = 3,
        channel_base: int = 16384,
        channel_max: int = 512,
        mbstd_group: int = 4,
        map_layers: int = 2,
        map_lr: float = 0.01,
        architecture: Architecture = "residual",
        two_heads: bool = False,
        whiten: bool = False,
        clamp: float | None = None,
    ):
        super().__init__()
        self.resolution, self.c_dim, self.img_channels, self.mbstd_group = resolution, c_dim, img_channels, mbstd_group
        sizes = sizes_up_to(resolution)
        widths = [channels_at(4 * 2**level, channel_base, channel_max) for level in range(len(sizes))][::-1]
        last = widths[-1]
        coloured = widths if architecture == "skip" else widths[:1]
        self.from_rgb = nn.ModuleList([Conv2d(img_channels, n, 1, act="lrelu", clamp=clamp) for n in coloured])
        residual = architecture == "residual"
        self.blocks = nn.ModuleList([Down(a, b, residual, clamp) for a, b in zip(widths, widths[1:], strict=False)])
        self.conv = Conv2d(last + 1, last, 3, act="lrelu", clamp=clamp)
        self.dense = Linear(last * sizes[0][0] * sizes[0][1], last, act="lrelu")
        self.out = Linear(last, last if c_dim else 1)
        self.mapping = Mapping(0, c_dim, last, map_layers, None, map_lr, whiten=whiten) if c_dim else None
        self.unconditional = Linear(last, 1) if two_heads and c_dim else None
        self.precision = Precision()
        self.register_buffer("taps", setup_filter(TAPS, separable=True), persistent=False)

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """[N], the conditional logit where there is a condition."""
        return self._logit(self.features(images), c).to(images.dtype)

    def heads(self, images: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """([N] unconditional, [N] conditional) of a network with two heads."""
        assert self.unconditional is not None, "this discriminator was built without two_heads"
        features = self.features(images)
        return self.unconditional(features)[:, 0].to(images.dtype), self._logit(features, c).to(images.dtype)

    def features(self, images: Tensor) -> Tensor:
        """[N, last width] in full precision, before the heads."""
        image, x = images.contiguous(memory_format=torch.channels_last), None
        for i, block in enumerate([*self.blocks, None]):
            level, levels = len(self.blocks) - i, len(self.blocks) + 1
            dtype = self.precision.at(level, levels, images) if block is not None else images.dtype
            x = None if x is None else x.to(dtype)
            if i < len(self.from_rgb):
                own = self.from_rgb[i](image.to(dtype))
                x = own if x is None else x + own
            if block is not None:
                x = block(x)
                image = downsample2d(image, self.taps) if i + 1 < len(self.from_rgb) else image
        x = self.conv(minibatch_deviation(x, self.mbstd_group))
        return self.dense(x.flatten(1))

    def _logit(self, features: Tensor, c: Tensor | None) -> Tensor:
        features = self.out(features)
        if self.mapping is None:
            return features[:, 0]
        projection = self.mapping(None, c)
        with full_precision(features):
            return (features * projection.to(features.dtype)).sum(dim=1) / math.sqrt(features.shape[1])


class Down(nn.Module):
    """[N, C, H, W] -> [N, C', H/2, W/2]: two 3x3 convolutions, and a 1x1 beside them at equal variance if residual."""

    def __init__(self, n_in: int, n_out: int, residual: bool, clamp: float | None = None):
        super().__init__()
        gain = HALF_GAIN if residual else 1.0
        self.first = Conv2d(n_in, n_in, 3, act="lrelu", clamp=clamp)
        self.second = Conv2d(n_in, n_out, 3, act="lrelu", down=2, gain=gain, clamp=clamp)
        self.skip = Conv2d(n_in, n_out, 1, bias=False, down=2, gain=gain) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return y if self.skip is None else y + self.skip(x)
