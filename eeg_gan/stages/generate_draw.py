"""Pictures from (z, condition): where z comes from, truncation, noise; an image depends on its number alone."""

import math
from typing import Any

import torch
from torch import Tensor

from eeg_gan.distributed import generator_at, rank, world_size
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.loading import to_uint8

MEAN_OF = 32  # draws of z behind the mean w of a condition


def check_psi(psi: float) -> None:
    """Refuses what cannot be meant; the far side of the mean, and a little beyond w, are of use to some."""
    if not -2 <= psi <= 2:
        raise ValueError(
            f"psi is how much of w's way from its mean is left, usually 0.5 to 1 (no truncation), at most -2 to 2; got "
            f"{psi:g}"
        )


def rounds(total: int, batch: int) -> list[list[int]]:
    """The numbers of this rank's pictures by batches; as many on every rank, for ranks agree after each (maybe [])."""
    own, count = range(rank(), total, world_size()), -(-total // (world_size() * batch))
    return [list(own[i * batch : (i + 1) * batch]) for i in range(count)]


def random_of(config: Any, number: int) -> tuple[int, int]:
    """(seed, position) of a picture's draws: a given seed is shared by all trials, else each number has its own."""
    return (config.seed, number) if config.seeds is None else (config.seeds[number % len(config.seeds)], 0)


def draw_z(generator: Generator, randoms: list[tuple[int, int]]) -> Tensor:
    """[len, z_dim]."""
    return torch.stack([torch.randn(generator.z_dim, generator=generator_at(seed, "z", n)) for seed, n in randoms])


def draw(generator: Generator, config: Any, numbers: list[int], conditions: Tensor) -> Tensor:
    """uint8 [B, C, H, W]; an image's z depends on its number alone, so any machine layout gives the same picture."""
    if not numbers:
        return torch.empty(0, generator.img_channels, *generator.size, dtype=torch.uint8)
    randoms = [random_of(config, n) for n in numbers]
    c = conditions[[n // config.per for n in numbers]]
    return paint(generator, config, styles(generator, config, draw_z(generator, randoms), c), randoms)


@torch.no_grad()
def styles(generator: Generator, config: Any, z: Tensor, c: Tensor) -> Tensor:
    """ws [B, num_ws, w_dim], truncated as the config says."""
    device = next(generator.parameters()).device
    z, c = z.to(device), c.to(device)
    ws = generator.mapping(z, c)
    if config.psi == 1:
        return ws
    own = config.towards == "condition"
    centre = mean_ws(generator, c, config.seed) if own else generator.mapping_network.w_average.expand_as(ws)
    pulled = centre.lerp(ws, config.psi)
    inside = torch.arange(generator.num_ws, device=device) < (config.cutoff or generator.num_ws)
    return torch.where(inside[:, None], pulled, ws)


@torch.no_grad()
def paint(generator: Generator, config: Any, ws: Tensor, randoms: list[tuple[int, int]]) -> Tensor:
    """uint8 [B, C, H, W] of ws; random noise is each picture's own."""
    noise: str | list[Tensor] = config.noise
    if config.noise == "random":
        own = [generator.draw_noise(generator_at(seed, "noise", n), 1) for seed, n in randoms]
        noise = [torch.cat(layer) for layer in zip(*own, strict=True)]
    return to_uint8(generator.synthesis(ws, noise)).cpu()


def mean_ws(generator: Generator, c: Tensor, seed: int) -> Tensor:
    """The mean over z of each condition's ws [B, num_ws, w_dim].

    Truncation towards the global mean would pull all conditions together; this one keeps them apart.
    """
    z = torch.randn(MEAN_OF, generator.z_dim, generator=generator_at(seed, "truncation", 0)).to(c)
    ws = generator.mapping(z.repeat(len(c), 1), c.repeat_interleave(MEAN_OF, 0))
    return ws.unflatten(0, (len(c), MEAN_OF)).mean(1)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Between vectors [D]: directions along the great circle, lengths linearly; opposite ones have no such circle."""
    length_a, length_b = a.norm(), b.norm()
    angle = math.acos(float((a @ b / (length_a * length_b).clamp_min(1e-12)).clamp(-1, 1)))
    if math.sin(angle) < 1e-4 or not (length_a > 0 and length_b > 0):
        return a.lerp(b, t)
    u, v = a / length_a, b / length_b
    direction = (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)
    return direction * length_a.lerp(length_b, t)
