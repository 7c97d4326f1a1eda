"""Sheets of several pictures: labelled grids, strips, moving pictures; and the walks and mixtures that fill them."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.generate_draw import draw_z, paint, slerp, styles
from eeg_gan.stages.generate_sources import places

MOST_POINTS = 16  # of a walk that nobody asked for by number
CELL = 64  # px: smaller pictures are enlarged to about this, so that labels fit
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def to_pil(picture: Tensor) -> Image.Image:
    """uint8 [C, H, W] with 1, 3 or 4 channels; other counts show their first three."""
    c = picture.shape[0]
    if c == 1:
        return Image.fromarray(picture[0].numpy())
    return Image.fromarray(picture[: c if c in (3, 4) else 3].permute(1, 2, 0).contiguous().numpy())


def enlarged(picture: Image.Image) -> Image.Image:
    """A whole number of times as large, so that its shorter side has CELL pixels or more."""
    times = max(1, math.ceil(CELL / min(picture.size)))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def sheet(cells: Sequence[Sequence[Image.Image | None]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A grid of pictures of one size with the names of its rows at the left and of its columns above."""
    shown = [[None if cell is None else enlarged(cell.convert("RGB")) for cell in row] for row in cells]
    width, height = next(cell.size for row in shown for cell in row if cell is not None)
    font = ImageFont.load_default(size=11)
    margin = max([round(font.getlength(name)) + 8 for name in rows if name] or [0])
    lines = max(name.count("\n") + 1 for name in columns)
    top = 4 + 14 * lines if any(columns) else 0
    whole = Image.new("RGB", (margin + width * len(columns), top + height * len(cells)), WHITE)
    pen = ImageDraw.Draw(whole)
    for j, name in enumerate(columns):
        shortened = "\n".join(_fitting(line, font, width - 4) for line in name.split("\n"))
        pen.text((margin + j * width + 3, 2), shortened, fill=BLACK, font=font)
    for i, (name, row) in enumerate(zip(rows, shown, strict=True)):
        pen.text((4, top + i * height + height // 2 - 7), name, fill=BLACK, font=font)
        for j, cell in enumerate(row):
            if cell is not None:
                whole.paste(cell, (margin + j * width, top + i * height))
    return whole


def _fitting(text: str, font: ImageFont.ImageFont, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def check_video(kind: str) -> None:
    """Refuses a kind of moving picture that nothing here can write."""
    if kind == "mp4" and not all(importlib.util.find_spec(name) for name in ("imageio", "imageio_ffmpeg")):
        raise UserError(
            "interpolation.video=mp4 is written by imageio, which is not installed; "
            "pip install imageio imageio-ffmpeg, or set interpolation.video to gif, apng or webp"
        )


def save_video(folder: Path, frames: list[Image.Image], kind: str, fps: int) -> str:
    """Writes walk.gif, .png (apng), .webp or .mp4, which repeats for ever; returns its name."""
    frames = [enlarged(frame.convert("RGB")) for frame in frames]
    name = f"walk.{'png' if kind == 'apng' else kind}"
    if kind == "mp4":
        import imageio.v2
        import numpy as np

        imageio.v2.mimwrite(folder / name, [np.asarray(frame) for frame in frames], fps=fps)
        return name
    more = {"lossless": True} if kind == "webp" else {}
    timing = {"save_all": True, "append_images": frames[1:], "duration": round(1000 / fps), "loop": 0}
    frames[0].save(folder / name, format="PNG" if kind == "apng" else kind.upper(), **timing, **more)
    return name


def points_of(config: Any, keys: list[str]) -> list[tuple[int, int]]:
    """(trial, seed) of each point of a walk: trials at one seed, seeds at one trial, or as many of each in pairs."""
    seeds = config.seeds or (config.seed,)
    count = max(len(keys), len(seeds))
    if count < 2 or {len(keys), len(seeds)} - {1, count}:
        raise UserError(
            f"interpolation runs through trials at one seed, through seeds at one trial, or through as many of each; "
            f"got {len(keys)} trials and {len(seeds)} seeds: set keys or limit, and seeds, to that"
        )
    if count > MOST_POINTS and config.keys is None and config.limit is None:
        raise UserError(f"a walk through {len(keys)} trials is a long one: set limit or keys to those of interest")
    return [(i % len(keys), seeds[i % len(seeds)]) for i in range(count)]


def steps_of(n_points: int, frames: int, loop: bool) -> list[tuple[int, int, float]]:
    """(from, to, share of the way) of each frame; a loop comes back to the first point, which is not shown twice."""
    legs = n_points if loop else n_points - 1
    steps = [(leg, (leg + 1) % n_points, k / frames) for leg in range(legs) for k in range(frames)]
    return steps if loop else [*steps, (n_points - 2, n_points - 1, 1.0)]


def walk(generator: Generator, config: Any, keys: list[str], conditions: Tensor) -> list[Image.Image]:
    """Frames between points: on great circles of z and of the condition, or on straight lines of w."""
    points, way = points_of(config, keys), config.interpolation
    z, c = draw_z(generator, [(seed, 0) for _, seed in points]), conditions[[trial for trial, _ in points]]
    steps = steps_of(len(points), way.frames, way.loop)
    ends = styles(generator, config, z, c) if way.space == "w" else None
    frames: list[Image.Image] = []
    for start in range(0, len(steps), config.batch):
        part = steps[start : start + config.batch]
        if ends is not None:
            ws = torch.stack([ends[a].lerp(ends[b], t) for a, b, t in part])
        else:
            moved = (torch.stack([slerp(x[a], x[b], t) for a, b, t in part]) for x in (z, c))
            ws = styles(generator, config, *moved)
        # one and the same noise throughout, for a picture that jumps is no walk
        frames += map(to_pil, paint(generator, config, ws, [(config.seed, 0)] * len(part)))
    return frames


def mixtures(generator: Generator, config: Any, keys: list[str], conditions: Tensor) -> tuple[Image.Image, dict]:
    """The sheet of rows whose given layers are taken from the styles of columns, and what it shows."""
    mixing, last = config.mixing, config.mixing.last or generator.num_ws
    first = generator.num_ws // 2 if mixing.first is None else mixing.first
    if not 0 <= first < last <= generator.num_ws:
        raise UserError(f"mixing takes layers first .. last - 1 of 0 .. {generator.num_ws - 1}; got {first}, {last}")
    seeds = config.seeds or (config.seed,)
    rows = [(trial, seed) for trial in range(len(keys)) for seed in seeds]
    styled = places(keys, mixing.keys) if mixing.keys is not None else range(len(keys))
    columns = [(trial, seed) for trial in styled for seed in mixing.seeds or seeds]

    def look(pairs: list[tuple[int, int]]) -> Tensor:
        z = draw_z(generator, [(seed, 0) for _, seed in pairs])
        return styles(generator, config, z, conditions[[trial for trial, _ in pairs]])

    ws_rows, ws_columns = look(rows), look(columns)
    noise = [(config.seed, 0)]
    heads = [None, *map(to_pil, paint(generator, config, ws_columns, noise * len(columns)))]
    cells = [heads]
    for ws in ws_rows:
        mixed = ws.expand(len(columns), -1, -1).clone()
        mixed[:, first:last] = ws_columns[:, first:last]
        line = paint(generator, config, torch.cat([ws[None], mixed]), noise * (len(columns) + 1))
        cells.append([to_pil(picture) for picture in line])
    named = [[f"{keys[trial]}{gap}seed {seed}" for trial, seed in own] for own, gap in ((rows, " "), (columns, "\n"))]
    about = {name: [[keys[trial], seed] for trial, seed in own] for name, own in (("rows", rows), ("columns", columns))}
    return sheet(cells, ["", *named[0]], ["", *named[1]]), {"layers": [first, last], **about}
