"""Procedural colour images of textured shapes: what the simulated person looks at.

A class has a typical hue, shape and texture; an exemplar varies around them and has its own place, size and background.
"""

import colorsys
import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# P pixel rows or columns of the enlarged drawing
SUPERSAMPLE = 4
FEATURE_PIXELS = 16  # features are measured on this size, so that the EEG does not depend on the size of the images
HUE_SPREAD = 0.04  # standard deviation within a class, in turns of the colour circle
MAX_CLASSES = 20


class Shape(NamedTuple):
    """An outline with `corners` corners at radius 1 and valleys at radius `valley`, joined by lines or by waves."""

    name: str
    corners: int
    valley: float
    softness: float  # 0 straight edges, 1 round petals
    aspect: float  # width by height


SHAPES = (
    Shape("disc", 4, 0.97, 1.0, 1.0),
    Shape("triangle", 3, 0.50, 0.0, 1.0),
    Shape("flower", 6, 0.52, 1.0, 1.0),
    Shape("square", 4, 0.71, 0.0, 1.0),
    Shape("star", 5, 0.42, 0.0, 1.0),
    Shape("ellipse", 4, 0.97, 1.0, 1.9),
    Shape("clover", 3, 0.40, 1.0, 1.0),
    Shape("kite", 4, 0.62, 0.0, 0.68),
    Shape("sun", 9, 0.66, 0.2, 1.0),
    Shape("cross", 4, 0.34, 0.5, 1.0),
)
TEXTURES = ("plain", "striped", "dotted", "checked", "ringed")


@dataclass(frozen=True)
class ClassLook:
    """What the images of one class have in common."""

    name: str
    hue: float  # in turns
    shape: Shape
    texture: str
    frequency: float  # of the texture, in cycles per radius of the object
    angle: float  # of the texture, in radians


@dataclass(frozen=True)
class Look:
    """All that determines one picture; lengths in half widths of the picture, angles in radians, hues in turns."""

    hue: float
    saturation: float
    value: float
    corners: int
    valley: float
    softness: float
    aspect: float
    rotation: float
    texture: str
    frequency: float
    angle: float
    contrast: float  # of the texture
    x: float
    y: float
    size: float
    ground_hue: float
    ground_saturation: float
    ground_value: float
    ground_slope: float  # change of brightness across the background
    ground_angle: float


def stream(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """The random stream of one purpose and position; the same in any order and in any process."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *position]))


def class_looks(seed: int, n_classes: int) -> list[ClassLook]:
    """Classes with evenly spread hues; every pair of shape and texture occurs once."""
    rng = stream(seed, "class-looks")
    hues = (rng.uniform() + rng.permutation(n_classes) / n_classes) % 1
    shape_order = rng.permutation(len(SHAPES))
    texture_order = rng.permutation(len(TEXTURES))
    looks = []
    for k in range(n_classes):
        shape = SHAPES[shape_order[k % len(SHAPES)]]
        texture = TEXTURES[texture_order[(k + k // len(SHAPES)) % len(TEXTURES)]]
        frequency, angle = rng.uniform(1.1, 1.7), rng.uniform(0, np.pi)
        looks.append(ClassLook(f"{texture}-{shape.name}", float(hues[k]), shape, texture, frequency, angle))
    return looks


def exemplar(look: ClassLook, rng: np.random.Generator) -> Look:
    """One picture of a class: hue, shape and texture vary around the class, all else is free of it."""
    size = rng.uniform(0.48, 0.78)
    x, y = rng.uniform(-1, 1, 2) * (1.0 - size)
    drawn = dict(
        hue=(look.hue + HUE_SPREAD * rng.standard_normal()) % 1,
        saturation=rng.uniform(0.65, 0.95),
        value=rng.uniform(0.75, 1.0),
        valley=np.clip(look.shape.valley + 0.04 * rng.standard_normal(), 0.25, 1),
        softness=np.clip(look.shape.softness + 0.10 * rng.standard_normal(), 0, 1),
        aspect=look.shape.aspect * np.exp(0.08 * rng.standard_normal()),
        rotation=0.2 * rng.standard_normal(),
        frequency=look.frequency * np.exp(0.12 * rng.standard_normal()),
        angle=look.angle + 0.2 * rng.standard_normal(),
        contrast=rng.uniform(0.45, 0.75),
        x=x,
        y=y,
        size=size,
        ground_hue=rng.uniform(),
        ground_saturation=rng.uniform(0.05, 0.35),
        ground_value=rng.uniform(0.25, 0.95),
        ground_slope=rng.uniform(0.05, 0.2),
        ground_angle=rng.uniform(0, 2 * np.pi),
    )
    numbers = {name: float(value) for name, value in drawn.items()}
    return Look(**numbers, corners=look.shape.corners, texture=look.texture)  # plain floats keep the drawing in float32


def render(look: Look, pixels: int) -> np.ndarray:
    """The picture as uint8 [pixels, pixels, 3], drawn four times larger and averaged down."""
    return np.round(255 * _paint(look, pixels)).astype(np.uint8)


def features(look: Look) -> dict[str, float]:
    """What a visual system could measure in one picture: of the drawing's parameters and of its pixels."""
    paint = _paint(look, FEATURE_PIXELS)
    plain = look.texture == "plain"
    return {
        "hue_cos": look.saturation * np.cos(2 * np.pi * look.hue),
        "hue_sin": look.saturation * np.sin(2 * np.pi * look.hue),
        "hue_cos_2": np.cos(4 * np.pi * look.hue),
        "hue_sin_2": np.sin(4 * np.pi * look.hue),
        "saturation": look.saturation,
        "place_x": look.x,
        "place_y": look.y,
        "size": look.size,
        "corners": np.log(look.corners),
        "valley": look.valley,
        "softness": look.softness,
        "aspect": np.log(look.aspect),
        "roundness": _roundness(look),
        "rotation": look.rotation,
        "texture_frequency": 0.0 if plain else look.frequency,
        "texture_cos": 0.0 if plain else look.contrast * np.cos(2 * look.angle),
        "texture_sin": 0.0 if plain else look.contrast * np.sin(2 * look.angle),
        "ground_value": look.ground_value,
        "ground_hue_cos": look.ground_saturation * np.cos(2 * np.pi * look.ground_hue),
        "ground_hue_sin": look.ground_saturation * np.sin(2 * np.pi * look.ground_hue),
        "ground_slope_x": look.ground_slope * np.cos(look.ground_angle),
        **_pixel_features(paint),
    }


def _pixel_features(paint: np.ndarray) -> dict[str, float]:
    """Brightness, contrast, opponent colours and oriented energy of [P, P, 3] in 0..1."""
    luminance = paint @ np.array([0.299, 0.587, 0.114])
    dy, dx = np.gradient(luminance)
    energy = (dx**2 + dy**2).mean() + 1e-6
    fine = luminance[1:, 1:] - luminance[:-1, 1:] - luminance[1:, :-1] + luminance[:-1, :-1]
    return {
        "luminance": luminance.mean(),
        "contrast": luminance.std(),
        "red_green": (paint[..., 0] - paint[..., 1]).mean(),
        "blue_yellow": (paint[..., 2] - paint[..., :2].mean(axis=2)).mean(),
        "edge_energy": np.log(energy),
        "edge_upright": (dx**2 - dy**2).mean() / energy,
        "edge_oblique": 2 * (dx * dy).mean() / energy,
        "fineness": np.log((fine**2).mean() + 1e-6),
    }


def _roundness(look: Look) -> float:
    """Area of the outline relative to the circle around its corners, shrunk by its elongation."""
    radius = _radius(look, np.linspace(0, 2 * np.pi, 180, endpoint=False))
    return float((radius**2).mean() * np.exp(-abs(np.log(look.aspect))))


def _radius(look: Look, theta: np.ndarray) -> np.ndarray:
    """Distance of the outline from the centre at each angle; corners at 1, valleys at `valley`."""
    step = math.pi / look.corners
    phase = np.abs((theta + step) % (2 * step) - step)  # 0 at a corner, `step` in a valley
    edge_x, edge_y = look.valley * math.cos(step) - 1, look.valley * math.sin(step)
    line = edge_y / (edge_y * np.cos(phase) - edge_x * np.sin(phase))
    wave = look.valley + (1 - look.valley) * (0.5 + 0.5 * np.cos(look.corners * phase))
    return (1 - look.softness) * line + look.softness * wave


def _pattern(look: Look, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The texture between 0 and 1 at object coordinates `u`, `v`."""
    cos, sin = math.cos(look.angle), math.sin(look.angle)
    u, v = cos * u + sin * v, cos * v - sin * u
    wave_u, wave_v = (np.sin(2 * math.pi * look.frequency * w) for w in (u, v))
    if look.texture == "plain":
        return np.zeros_like(u)
    if look.texture == "striped":
        raw = wave_u
    elif look.texture == "checked":
        raw = 2 * wave_u * wave_v
    elif look.texture == "dotted":
        raw = 1.5 * (wave_u + wave_v - 0.6)
    else:
        assert look.texture == "ringed", look.texture
        raw = np.cos(2 * np.pi * look.frequency * np.hypot(u, v))
    return 0.5 + 0.5 * np.tanh(4 * raw)


def _paint(look: Look, pixels: int) -> np.ndarray:
    """The picture as float [pixels, pixels, 3] in 0..1: background, soft shadow, shaded and textured object."""
    n = pixels * SUPERSAMPLE
    axis = (np.arange(n, dtype=np.float32) + 0.5) * 2 / n - 1
    px, py = axis[None, :], -axis[:, None]
    shadow = 1 / (1 + np.exp(np.clip((_reach(look, px - 0.06, py + 0.08)[0] - 1) / 0.08, -30, 30)))
    slope = look.ground_slope * (math.cos(look.ground_angle) * px + math.sin(look.ground_angle) * py)
    ground = (_rgb(look.ground_hue, look.ground_saturation, look.ground_value) * (1 + slope[..., None])).clip(0, 1)
    ground = ground * (1 - 0.3 * shadow[..., None])
    reach, u, v = _reach(look, px, py)
    light = 1 + 0.14 * np.clip((v - u) / look.aspect**0.5, -1.5, 1.5) - 0.12 * np.clip(reach, 0, 1) ** 4
    dark = 1 - look.contrast * _pattern(look, u, v)
    colour = _rgb(look.hue, look.saturation, look.value) * (light * dark)[..., None]
    drawn = np.where((reach < 1)[..., None], colour.clip(0, 1), ground)
    return drawn.reshape(pixels, SUPERSAMPLE, pixels, SUPERSAMPLE, 3).mean(axis=(1, 3))


def _reach(look: Look, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distance from the centre relative to the outline: inside below 1; object coordinates u, v in radii)."""
    x, y = (px - look.x) / look.size, (py - look.y) / look.size
    cos, sin = math.cos(look.rotation), math.sin(look.rotation)
    u, v = cos * x + sin * y, cos * y - sin * x
    wide, high = (1.0, 1 / look.aspect) if look.aspect > 1 else (look.aspect, 1.0)
    radius = np.hypot(u / wide, v / high)
    theta = np.arctan2(u / wide, v / high)  # a corner points up
    return radius / _radius(look, theta), u, v


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)
