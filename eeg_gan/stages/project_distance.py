"""How far an image is from a target: layers of a judge network or of an image tower, and the regulariser of noise."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.metrics.detectors import DetectorConfig, build_detector
from eeg_gan.models.image_tower import TowerConfig, build_tower

# Layers whose outputs are compared; a judge that is not named here is asked for its features alone.
DETECTOR_LAYERS = {
    "classifier": ("blocks.2", "blocks.5", "blocks.8", "blocks.11"),
    "resnet56": ("layer1", "layer2", "layer3"),
}
TOWER_BLOCKS = ("visual.transformer.resblocks", "visual.trunk.blocks", "visual.trunk.stages")
TOWER_LAYERS = 4  # of these blocks, evenly spread, the last among them
SMALLEST = 8  # px: down to which correlations of noise are looked for


class Distance(nn.Module):
    """Float images [B, 3, H, W] in 0 .. 255 -> their distance from a target image, a scalar.

    As in Zhang et al. 2018 (arXiv 1801.03924) without learned weights: at every place of every layer the squared
    distance of the channels, scaled to unit length; the mean over places, summed over layers.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], target: Tensor):
        super().__init__()
        self.network, self.seen = network.eval().requires_grad_(False), []
        for name in layers:
            network.get_submodule(name).register_forward_hook(lambda module, given, out: self.seen.append(out))
        with torch.no_grad():
            self.target = self.looks(target)

    def looks(self, images: Tensor) -> list[Tensor]:
        """Unit vectors of every layer and of the final features."""
        self.seen.clear()
        out = self.network(images)
        features = out[0] if isinstance(out, tuple) else out
        return [F.normalize(x, dim=1 if x.ndim == 4 else -1) for x in (*self.seen, features)]

    def forward(self, images: Tensor) -> Tensor:
        pairs = zip(self.looks(images), self.target, strict=True)
        return sum((a - b).square().sum(1 if a.ndim == 4 else -1).mean() for a, b in pairs)


def build_distance(detector: DetectorConfig | None, tower: TowerConfig | None, target: Tensor) -> Callable:
    """The distance from `target` [1, 3, H, W] in 0 .. 255; 0 where neither network is given."""
    if tower is not None:
        network = build_tower(TowerConfig(tower.model, tower.pretrained, frozen=False))  # frozen passes no gradient
        return Distance(network, tower_layers(network), target).to(target.device)
    if detector is None:
        return lambda images: images.new_zeros([])
    if detector.name == "inception":
        raise UserError(
            "detector.name=inception reads whole grey levels and passes no gradient; take classifier or resnet56, or "
            "a tower"
        )
    with torch.random.fork_rng(devices=[]):  # random weights, where they are accepted, are the same after a restart
        torch.manual_seed(0)
        network = build_detector(detector).to(target.device)
    return Distance(network, DETECTOR_LAYERS.get(detector.name, ()), target)


def tower_layers(network: nn.Module) -> list[str]:
    """Some blocks of a transformer, evenly spread, or the last stages of a timm network; none where none is known."""
    for name in TOWER_BLOCKS:
        try:
            count = len(network.get_submodule(name))
        except AttributeError:
            continue
        return [f"{name}.{(i + 1) * count // TOWER_LAYERS - 1}" for i in range(TOWER_LAYERS) if count >= TOWER_LAYERS]
    stages = getattr(getattr(network.visual, "trunk", None), "feature_info", [])
    return [f"visual.trunk.{stage['module']}" for stage in stages[-TOWER_LAYERS:]]


def noise_correlation(maps: Sequence[Tensor]) -> Tensor:
    """The squared correlations of each noise map [1, 1, H, W] with itself moved by a pixel, at all scales down to 8 px.

    Karras et al. 2020 (arXiv 1912.04958), appendix D: a picture hidden in the noise would be seen here.
    """
    total = maps[0].new_zeros([])
    for noise in maps:
        while True:
            for dim in (2, 3):
                total = total + (noise * noise.roll(1, dim)).mean().square()
            if min(noise.shape[2:]) <= SMALLEST:
                break
            noise = F.avg_pool2d(noise, 2) * 2  # the mean of four, at unit variance again
    return total


@torch.no_grad()
def normalise_noise(maps: Sequence[Tensor]) -> None:
    """Zero mean and unit variance, in place."""
    for noise in maps:
        noise -= noise.mean()
        noise *= noise.square().mean().clamp_min(1e-12).rsqrt()
