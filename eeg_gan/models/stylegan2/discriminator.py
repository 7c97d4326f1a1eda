"""The discriminator: residual blocks down to 4 x 4, minibatch deviation, and projection on the mapped condition."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eeg_gan.models.stylegan2.layers import (
    Conv2d,
    Linear,
    Mapping,
    channels_at,
    full_precision,
    minibatch_deviation,
    resolutions_up_to,
)


@dataclass(frozen=True)
class DiscriminatorConfig:
    channel_base: int = 16384  # feature maps at a resolution: channel_base / resolution, at most channel_max
    channel_max: int = 512  # most feature maps at any resolution
    mbstd_group: int = 4  # consecutive samples that share a deviation feature; divides the batch of a process
    map_layers: int = 2  # fully connected layers from the condition to its projection
    map_lr: float = 0.01  # learning rate of these layers as a fraction of the others'; 1 suits runs of minutes

    def __post_init__(self):
        for name in ("channel_base", "channel_max", "mbstd_group", "map_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts something and is at least 1; got {getattr(self, name)}")


class Discriminator(nn.Module):
    """images [N, 3, R, R], c [N, c_dim] -> logits [N], large for real; c_dim 0 is an unconditional network."""

    def __init__(
        self,
        resolution: int,
        c_dim: int,
        img_channels: int = 3,
        channel_base: int = 16384,
        channel_max: int = 512,
        mbstd_group: int = 4,
        map_layers: int = 2,
        map_lr: float = 0.01,
    ):
        super().__init__()
        self.resolution, self.c_dim, self.img_channels, self.mbstd_group = resolution, c_dim, img_channels, mbstd_group
        sizes = resolutions_up_to(resolution)[::-1]
        widths = [channels_at(size, channel_base, channel_max) for size in sizes]
        last = widths[-1]
        self.from_rgb = Conv2d(img_channels, widths[0], 1, act="lrelu")
        self.blocks = nn.ModuleList([ResidualDown(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        self.conv = Conv2d(last + 1, last, 3, act="lrelu")
        self.dense = Linear(last * 16, last, act="lrelu")
        self.out = Linear(last, last if c_dim else 1)
        self.mapping = Mapping(0, c_dim, last, map_layers, None, map_lr) if c_dim else None

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.from_rgb(images.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        x = self.conv(minibatch_deviation(x, self.mbstd_group))
        features = self.out(self.dense(x.flatten(1)))
        if self.mapping is None:
            return features[:, 0].to(images.dtype)
        projection = self.mapping(None, c)
        with full_precision(features):
            features, projection = features.to(images.dtype), projection.to(images.dtype)
            return (features * projection).sum(dim=1) / math.sqrt(features.shape[1])


class ResidualDown(nn.Module):
    """[N, C, H, W] -> [N, C', H/2, W/2], two 3x3 convolutions beside one 1x1, at equal variance."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.first = Conv2d(n_in, n_in, 3, act="lrelu")
        self.second = Conv2d(n_in, n_out, 3, act="lrelu", down=2, gain=math.sqrt(0.5))
        self.skip = Conv2d(n_in, n_out, 1, bias=False, down=2, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.skip(x)
