"""SqueezeNet 1.1 without its classifier: an ImageNet feature space of 3 MB, with maps at four depths."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BGR_MEAN = (104.0, 117.0, 123.0)
FIRES = (
    (3, 64, 16),
    (4, 128, 16),
    (6, 128, 32),
    (7, 256, 32),
    (9, 256, 48),
    (10, 384, 48),
    (11, 384, 64),
    (12, 512, 64),
)


class Fire(nn.Module):
    """Squeeze to few maps, expand to 4 + 4 times as many (Iandola et al. 2016, arXiv 1602.07360)."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, width, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


class SqueezeNet(nn.Module):
    """Images [B, 3, H, W], 0 to 255 -> features [B, 512], no logits; weights as ported from Keras (BGR less means)."""

    name = "squeezenet"

    def __init__(self, image_size: int = 96):
        super().__init__()
        self.image_size = image_size
        fires = {str(place): Fire(width_in, width) for place, width_in, width in FIRES}
        self.features = nn.ModuleDict({"0": nn.Conv2d(3, 64, 3, stride=2), **fires})
        self.register_buffer("mean", torch.tensor(BGR_MEAN).view(1, 3, 1, 1), persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps before each pooling [B, C, h, w]."""
        size = (self.image_size, self.image_size)
        x = images.float()
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
        x = F.relu(self.features["0"](x.flip(1) - self.mean))
        found = [x]
        for places in (("3", "4"), ("6", "7"), ("9", "10", "11", "12")):
            x = F.max_pool2d(x, 3, stride=2)
            for place in places:
                x = self.features[place](x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.maps(images)[-1].mean((2, 3))
        return features, features.new_zeros(len(features), 0)
