"""Differentiable augmentation of images for adaptive discriminator augmentation.

All parameters of the global batch are drawn first, on the CPU; ranks then apply their part. Each transform fires per
sample with probability p, else its parameter is that of the identity. Every draw takes the same numbers from the
stream whatever p is. Images are [N, C, H, W] in [-1, 1].
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.ops import affine_warp

PIPES = {
    "blit": ("blit",),
    "geom": ("geom",),
    "color": ("color",),
    "filter": ("filter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": ("blit", "geom"),
    "bgc": ("blit", "geom", "color"),
    "bgcf": ("blit", "geom", "color", "filter"),
    "bgcfn": ("blit", "geom", "color", "filter", "noise"),
    "bgcfnc": ("blit", "geom", "color", "filter", "noise", "cutout"),
}
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
SPECTRUM = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # expected power of natural images per band, low to high
CUTOUT = 0.5  # side of the hole, of the image


def draw(
    generator: torch.Generator, n: int, p: float, height: int, width: int, pipe: str, n_channels: int = 3
) -> dict[str, Tensor]:
    """Parameters of n samples: some of warp [n, 2, 3], color [n, C, C + 1], filter [n, taps], noise, cutout [n, 2]."""
    if pipe not in PIPES:
        raise ValueError(f"no augmentation pipe is called {pipe!r}; choose one of {', '.join(PIPES)}")
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability; got {p}")
    groups, draws = PIPES[pipe], {}
    random = _Random(generator, n)
    if "blit" in groups or "geom" in groups:
        matrix = torch.eye(3).expand(n, 3, 3)
        matrix = _blit(random, p, height, width, matrix) if "blit" in groups else matrix
        matrix = _geom(random, p, height, width, matrix) if "geom" in groups else matrix
        draws["warp"] = matrix[:, :2].contiguous()
    if "color" in groups:
        draws["color"] = _color(random, p, n_channels)
    if "filter" in groups:
        draws["filter"] = _filter(random, p)
    if "noise" in groups:
        sigma = random.fired(random.normal(0.1).abs(), p, 0.0)
        image = torch.randn(n, n_channels, height, width, generator=generator)
        draws["noise"] = image * sigma[:, None, None, None]
    if "cutout" in groups:
        centre = torch.rand(n, 2, generator=generator)
        draws["cutout"] = torch.where(random.fires(p)[:, None], centre, -1.0)  # a hole outside of the image
    return draws


def part(draws: dict[str, Tensor], where: slice) -> dict[str, Tensor]:
    """The parameters of some of the samples."""
    return {name: values[where] for name, values in draws.items()}


def apply(images: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Transforms images [N, C, H, W] by drawn parameters; differentiable twice in the images."""
    draws = {name: values.to(images.device, images.dtype, non_blocking=True) for name, values in draws.items()}
    if "warp" in draws:
        images = affine_warp(images, draws["warp"])
    if "color" in draws:
        matrix = draws["color"]
        assert matrix.shape[1] == images.shape[1], f"colour is for {matrix.shape[1]} channels, not {images.shape[1]}"
        flat = torch.baddbmm(matrix[..., -1:], matrix[..., :-1], images.flatten(2))
        images = flat.view(images.shape)
    if "filter" in draws:
        images = _filtered(images, draws["filter"])
    if "noise" in draws:
        images = images + draws["noise"]
    if "cutout" in draws:
        images = images * _outside_hole(draws["cutout"], *images.shape[2:])
    return images


class _Random:
    """Draws of n numbers, and whether a transform fires."""

    def __init__(self, generator: torch.Generator, n: int):
        self.generator, self.n = generator, n

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.n, generator=self.generator) * (high - low) + low

    def normal(self, deviation: float) -> Tensor:
        return torch.randn(self.n, generator=self.generator) * deviation

    def fires(self, p: float) -> Tensor:
        return self.uniform(0, 1) < p

    def fired(self, values: Tensor, p: float, identity: float) -> Tensor:
        return torch.where(self.fires(p), values, identity)


def _blit(random: _Random, p: float, height: int, width: int, matrix: Tensor) -> Tensor:
    """Mirror, quarter turns and whole-pixel shifts, as the inverse map from output to input."""
    coin = random.uniform(0, 2).floor()
    matrix = matrix @ _scaling(1 - 2 * random.fired(coin, p, 0.0), torch.ones(random.n))
    turns = random.uniform(0, 4).floor()
    matrix = matrix @ _rotation(random.fired(turns, p, 0.0) * (math.pi / 2))
    x, y = random.uniform(-0.125, 0.125), random.uniform(-0.125, 0.125)
    fires = random.fires(p)
    return matrix @ _translation(*(torch.where(fires, (v * s).round(), 0.0) for v, s in ((x, width), (y, height))))


def _geom(random: _Random, p: float, height: int, width: int, matrix: Tensor) -> Tensor:
    """Scaling, rotation before and after anisotropic scaling, and shifts, as the inverse map from output to input."""
    scale = random.fired(random.normal(0.2), p, 0.0).exp2()
    matrix = matrix @ _scaling(1 / scale, 1 / scale)
    p_turn = 1 - math.sqrt(1 - p)  # so that one of the two rotations fires with probability p
    matrix = matrix @ _rotation(random.fired(random.uniform(-math.pi, math.pi), p_turn, 0.0))
    scale = random.fired(random.normal(0.2), p, 0.0).exp2()
    matrix = matrix @ _scaling(1 / scale, scale)
    matrix = matrix @ _rotation(random.fired(random.uniform(-math.pi, math.pi), p_turn, 0.0))
    x, y = random.normal(0.125), random.normal(0.125)
    fires = random.fires(p)
    return matrix @ _translation(*(torch.where(fires, v * s, 0.0) for v, s in ((x, width), (y, height))))


def _stacked(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _stacked([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _rotation(angle: Tensor) -> Tensor:
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    return _stacked([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def _translation(x: Tensor, y: Tensor) -> Tensor:
    """The inverse of a shift of the image by (x, y)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _stacked([[one, zero, -x], [zero, one, -y], [zero, zero, one]])


def _color(random: _Random, p: float, channels: int) -> Tensor:
    """Brightness, contrast, luma flip, hue, saturation in this order, as one affine map of colours."""
    if channels not in (1, 3):
        raise ValueError(f"colour transforms know grey (1) and RGB (3) images, not {channels} channels; use pipe=bg")
    eye, axis = torch.eye(channels), torch.full([channels], channels**-0.5)
    luma = torch.outer(axis, axis)
    offset = random.fired(random.normal(0.2), p, 0.0)[:, None].expand(-1, channels)
    linear = random.fired(random.normal(0.5), p, 0.0).exp2()[:, None, None] * eye
    flip = random.fired(random.uniform(0, 2).floor(), p, 0.0)[:, None, None]
    linear = (eye - 2 * luma * flip) @ linear
    hue = random.fired(random.uniform(-math.pi, math.pi), p, 0.0)[:, None, None]
    saturation = random.fired(random.normal(1.0), p, 0.0).exp2()[:, None, None]
    if channels == 3:
        a = axis[0].item()
        cross = torch.tensor([[0.0, -a, a], [a, 0.0, -a], [-a, a, 0.0]])
        linear = (hue.cos() * eye + hue.sin() * cross + (1 - hue.cos()) * luma) @ linear  # Rodrigues' formula
        linear = (luma + (eye - luma) * saturation) @ linear
    return torch.cat([linear, linear @ offset[:, :, None]], dim=2)


def _filter(random: _Random, p: float) -> Tensor:
    """[n, taps] zero-phase kernels that amplify each of four octaves, at constant expected power."""
    gains, spectrum = torch.ones(random.n, 4), torch.tensor(SPECTRUM)
    for band in range(4):
        one = torch.ones(random.n, 4)
        one[:, band] = random.fired(random.normal(1.0), p, 0.0).exp2()
        gains = gains * one / (one.square() @ spectrum).sqrt()[:, None]
    return gains @ _octaves().to(gains.dtype)


@functools.cache
def _octaves() -> Tensor:
    """[4, 43] zero-phase filters, low to high, that sum to the identity: the sym2 bank squared, dilated per octave."""
    taps = torch.tensor(SYM2, dtype=torch.float64)
    low = _convolved(taps, taps.flip(0)) / 2  # |H|^2 / 2, and the high-pass is what it leaves
    high = -low
    high[3] += 1
    bands, rest = [], torch.ones(1, dtype=torch.float64)
    for octave in range(3):
        dilated = [torch.zeros(6 * 2**octave + 1, dtype=torch.float64) for _ in range(2)]
        dilated[0][:: 2**octave], dilated[1][:: 2**octave] = low, high
        bands.append(_convolved(rest, dilated[1]))
        rest = _convolved(rest, dilated[0])
    bands = [rest, *reversed(bands)]
    return torch.stack([F.pad(band, [(len(rest) - len(band)) // 2] * 2) for band in bands]).float()


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]


def _filtered(images: Tensor, kernels: Tensor) -> Tensor:
    """Each sample filtered along both axes by its own kernel, reflected about edge pixels without limit."""
    n, channels, height, width = images.shape
    margin = kernels.shape[1] // 2
    x = images[:, :, :, _reflected(width, margin, images.device)][:, :, _reflected(height, margin, images.device)]
    weight = kernels.repeat_interleave(channels, dim=0)[:, None]
    x = F.conv2d(x.flatten(0, 1)[None], weight[:, :, None, :], groups=n * channels)
    return F.conv2d(x, weight[:, :, :, None], groups=n * channels).view(images.shape)


def _reflected(size: int, margin: int, device: torch.device) -> Tensor:
    period = 2 * (size - 1)
    place = torch.arange(-margin, size + margin, device=device).remainder(period)
    return torch.minimum(place, period - place)


def _outside_hole(centre: Tensor, height: int, width: int) -> Tensor:
    """[N, 1, H, W] of 0 inside the square around centre [N, 2] (x, y of the image) and 1 outside."""
    x = (torch.arange(width, device=centre.device) + 0.5) / width
    y = (torch.arange(height, device=centre.device) + 0.5) / height
    far_x = (x - centre[:, :1]).abs() >= CUTOUT / 2
    far_y = (y - centre[:, 1:]).abs() >= CUTOUT / 2
    return (far_x[:, None, None, :] | far_y[:, None, :, None]).to(centre.dtype)
