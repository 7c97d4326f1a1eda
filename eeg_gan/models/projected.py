"""The projected discriminator: small networks that judge fixed random mixtures of a pretrained network's features.

Sauer et al. 2021 (arXiv 2111.01007): maps from several depths of a frozen network are mixed across channels by random
1x1 convolutions, and across scales by random 3x3 ones from the coarsest map to the finest; one discriminator per scale
judges places of its mixture. The condition enters each of them by projection (Miyato & Koyama 2018, arXiv 1802.05637).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from eeg_gan.config import UserError
from eeg_gan.models.image_tower import ImageTower, TowerConfig, tower_digest
from eeg_gan.models.stylegan2.layers import Mapping, Precision

SMALLEST = 4  # places on a side of a discriminator's verdict, where its map is that large
WIDEST = 512  # most channels anywhere
CALIBRATION = 8  # random pictures by which the scale of a network's maps is measured

# B picture, C channel, S side of a map


@dataclass(frozen=True)
class ProjectedConfig:
    tower: TowerConfig = field(default_factory=TowerConfig)  # the frozen network; it is not part of checkpoints
    image_size: int | None = None  # side that pictures are brought to; null: the tower's own
    scales: int = 4  # depths of the tower that are judged, the last ones
    channels: int = 64  # of the mixture at the finest scale; twice as many at each coarser one, 512 at most
    loss: Literal["hinge", "logistic"] = "hinge"  # of the discriminators and the generator
    untrained: bool = False  # accept a tower of random weights: a test of the plumbing

    def __post_init__(self):
        if self.scales < 1 or not 1 <= self.channels <= WIDEST or (self.image_size or 8) < 8:
            raise ValueError(f"scales is 1 or more, channels 1 to {WIDEST}, image_size 8 pixels or more")
        if not self.tower.frozen:
            raise ValueError("the tower of a projected discriminator stays as it is; leave tower.frozen out")
        named = self.tower.pretrained is not None or self.tower.model.startswith("hf-hub:")
        if self.untrained == named:
            raise ValueError(
                "a projected discriminator needs a pretrained network; set tower.pretrained to a local file or a tag, "
                "or, for a test of the plumbing, untrained=true instead"
            )


class ProjectedDiscriminator(nn.Module):
    """images [B, 3 or 1, H, W] in [-1, 1], c [B, c_dim] -> a verdict [B, s, s] per scale, large for real.

    Always in evaluation mode: `refresh` alone moves the spectral norms, so that a step may be cut into parts.
    """

    def __init__(
        self,
        tower: ImageTower,
        resolution: int | Sequence[int],
        c_dim: int,
        img_channels: int = 3,
        image_size: int | None = None,
        scales: int = 4,
        channels: int = 64,
        map_layers: int = 2,
        map_lr: float = 0.01,
        two_heads: bool = False,
        whiten: bool = False,
        penalised: bool = False,
    ):
        """`penalised`: gradients will be derived once more, which fast attention kernels cannot do."""
        super().__init__()
        if img_channels not in (1, 3):
            raise UserError(f"an image tower sees grey or RGB pictures, not {img_channels} channels")
        self.outside = (tower.requires_grad_(False).eval(),)  # a tuple: not among parameters, nor in checkpoints
        self.digest = tower_digest(tower)
        self.penalised, self.precision = penalised, Precision()
        size = tower.size if image_size is None else (image_size, image_size)
        given = (resolution, resolution) if isinstance(resolution, int) else resolution
        for name, have, want in zip(("rows", "columns"), given, size, strict=True):
            self.register_buffer(name, resizing(have, want), persistent=False)
        self.depths, shapes = chosen_depths(tower, size, scales)
        widths = [min(channels * 2**i, WIDEST) for i in range(len(shapes))]
        self.across_channels = Fixed(random_weights(n, shape[0], 1) for n, shape in zip(widths, shapes, strict=True))
        pairs = zip(widths, widths[1:], strict=False)
        self.across_scales = Fixed(random_weights(fine, coarse, 3) for fine, coarse in pairs)
        self._calibrate(size)
        w_dim = widths[-1]
        self.mapping = Mapping(0, c_dim, w_dim, map_layers, None, map_lr, whiten=whiten) if c_dim else None
        self.two_heads = two_heads and c_dim > 0
        sides = [min(shape[1:]) for shape in shapes]
        self.judges = nn.ModuleList(
            [Judge(n, side, w_dim if c_dim else 0, self.two_heads) for n, side in zip(widths, sides, strict=True)]
        )
        self.eval()

    @property
    def scales(self) -> int:
        return len(self.judges)

    @property
    def tower(self) -> ImageTower:
        return self.outside[0]

    def forward(self, images: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """[B, s, s] of each scale, the conditional verdict where there is a condition."""
        return [conditional for conditional, _ in self._judged(images, c)]

    def heads(self, images: Tensor, c: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The unconditional and the conditional verdict of each scale, of a network with two heads."""
        assert self.two_heads, "this discriminator was built without two_heads"
        conditional, unconditional = zip(*self._judged(images, c), strict=True)
        return list(unconditional), list(conditional)

    def _judged(self, images: Tensor, c: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        projection = None if self.mapping is None else self.mapping(None, c)
        mixed = self.mixtures(images)
        return [judge(x, projection) for judge, x in zip(self.judges, mixed, strict=True)]

    def mixtures(self, images: Tensor) -> list[Tensor]:
        """The fixed projections that are judged [B, C, S, S], finest first, of unit second moment or near it."""
        x = self._prepared(images)
        half = self.precision.half if self.precision.half is torch.bfloat16 else None  # float16 has no room for them
        with ExitStack() as modes:
            if half is not None:
                modes.enter_context(torch.autocast(x.device.type, half))
            if self.penalised:
                modes.enter_context(sdpa_kernel(SDPBackend.MATH))
            maps = [m.to(x.dtype) for m in self.tower.maps(x, self.depths)]
        return self._mixed(maps)

    def _prepared(self, images: Tensor) -> Tensor:
        """Resized and normalised as the tower wants; nothing is cut off, so that every pixel has a gradient."""
        x = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        x = x if self.rows is None else self.rows @ x
        x = x if self.columns is None else x @ self.columns.T
        return ((x + 1) / 2 - self.tower.mean) / self.tower.std

    def _mixed(self, maps: list[Tensor]) -> list[Tensor]:
        mixed = [F.conv2d(m, self.across_channels[i]) for i, m in enumerate(maps)]
        for i in reversed(range(len(mixed) - 1)):
            coarse = F.interpolate(mixed[i + 1], mixed[i].shape[2:], mode="bilinear", align_corners=False)
            mixed[i] = (mixed[i] + F.conv2d(coarse, self.across_scales[i], padding=1)) * math.sqrt(0.5)
        return mixed

    @torch.no_grad()
    def _calibrate(self, size: tuple[int, int]) -> None:
        """Divides the first mixture by the scale that random pictures have there: towers differ by orders."""
        pictures = F.interpolate(torch.randn(CALIBRATION, 3, 8, 8), size, mode="bicubic", align_corners=False)
        for i, m in enumerate(self.tower.maps(pictures, self.depths)):
            scale = F.conv2d(m, self.across_channels[i]).square().mean().sqrt()
            self.across_channels[i].div_(scale.clamp_min(1e-8))

    @torch.no_grad()
    def refresh(self) -> None:
        """One power iteration of every spectral norm: once in a step, equally on all ranks."""
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                norm = module.parametrizations.weight[0].train()
                _ = module.weight
                norm.eval()

    def train(self, mode: bool = True) -> "ProjectedDiscriminator":
        return super().train(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "ProjectedDiscriminator":
        self.tower._apply(fn)  # moves to a device with the rest
        return super()._apply(fn, recurse)


class Judge(nn.Module):
    """A mixture [B, C, S, S] and the mapped condition [B, w_dim] -> verdicts [B, s, s], s below 2 SMALLEST.

    Every weight has spectral norm 1 (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(self, width: int, side: int, w_dim: int, two_heads: bool):
        super().__init__()
        layers: list[nn.Module] = []
        while side >= 2 * SMALLEST:
            wider, side = min(2 * width, WIDEST), side // 2
            layers += [spectral_norm(nn.Conv2d(width, wider, 4, 2, 1)), nn.LeakyReLU(0.2)]
            width = wider
        layers += [spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.verdict = spectral_norm(nn.Conv2d(width, 1, 1))
        self.unconditional = spectral_norm(nn.Conv2d(width, 1, 1)) if two_heads else None
        self.projection = spectral_norm(nn.Linear(w_dim, width, bias=False)) if w_dim else None

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(conditional, unconditional): v(h) + <P c, h> / sqrt(C) at every place, and u(h) of a network with two."""
        h = self.layers(x)
        verdict = self.verdict(h)[:, 0]
        if self.projection is not None:
            verdict = verdict + torch.einsum("bchw,bc->bhw", h, self.projection(c)) / math.sqrt(h.shape[1])
        return verdict, None if self.unconditional is None else self.unconditional(h)[:, 0]


class Fixed(nn.Module):
    """Random weights that are saved and moved with the network but never trained."""

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        for i, weight in enumerate(weights):
            self.register_buffer(str(i), weight)

    def __getitem__(self, i: int) -> Tensor:
        return self.get_buffer(str(i))


def random_weights(n_out: int, n_in: int, taps: int) -> Tensor:
    """[n_out, n_in, taps, taps] of a convolution that keeps second moments."""
    return torch.randn(n_out, n_in, taps, taps) / math.sqrt(n_in * taps**2)


def resizing(have: int, want: int) -> Tensor | None:
    """[want, have] of antialiased bicubic resizing along one side, None where nothing is to do.

    A product with a matrix is deterministic on a GPU and has derivatives of any order.
    """
    if have == want:
        return None
    unit = torch.eye(have)[None, None]
    return F.interpolate(unit, (want, have), mode="bicubic", align_corners=False, antialias=True)[0, 0]


@torch.no_grad()
def chosen_depths(tower: ImageTower, size: tuple[int, int], scales: int) -> tuple[list[int], list[torch.Size]]:
    """Which of the tower's maps are judged, finest first, and their [C, h, w].

    The last map of each size where sizes fall; depths evenly spread where all are of one size (transformers).
    """
    try:
        shapes = [m.shape[1:] for m in tower.maps(torch.zeros(1, 3, *size))]
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"this tower gives no feature maps of pictures of {size[0]}x{size[1]} ({reason}); leave "
            f"projected.image_size out (its own size is {tower.size[0]}x{tower.size[1]}), or take another tower"
        ) from None
    last = sorted({shape[1:]: i for i, shape in enumerate(shapes)}.values())
    if len(last) == 1:
        n = min(scales, len(shapes))
        last = [(i + 1) * len(shapes) // n - 1 for i in range(n)]
    return last[-scales:], [shapes[i] for i in last[-scales:]]
