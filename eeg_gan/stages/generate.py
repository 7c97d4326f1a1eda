"""Images of conditions: of trials' EEG or features, of pictures through image2eeg, of classes; walks and mixtures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from eeg_gan.config import UserError, to_dict
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.distributed import barrier
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages import generate_prior
from eeg_gan.stages.generate_draw import check_psi, draw, random_of, rounds
from eeg_gan.stages.generate_prior import PriorConfig
from eeg_gan.stages.generate_sheets import check_video, mixtures, save_video, sheet, to_pil, walk
from eeg_gan.stages.generate_sources import NEEDS, Source, chosen, class_names_of, file_name, open_source
from eeg_gan.stages.loading import load_generator, spread
from eeg_gan.training import checkpoint, runtime
from eeg_gan.training.log import grid


@dataclass(frozen=True)
class InterpolationConfig:
    """A way through points: the trials at one seed, the seeds at one trial, or as many of each in pairs."""

    space: Literal["z", "w"] = "w"  # z: great circles of z and of the condition; w: straight lines of styles
    loop: bool = False  # come back to the first point, so that the moving picture has no jump
    frames: int = 24  # pictures from one point to the next
    strip: int = 8  # of them in strip.png, evenly spread
    video: Literal["gif", "apng", "webp", "mp4", "none"] = "gif"  # mp4 needs imageio
    fps: int = 12  # pictures per second

    def __post_init__(self):
        if min(self.frames, self.strip, self.fps) < 1:
            raise ValueError("frames, strip and fps count pictures, so they are 1 or more")


@dataclass(frozen=True)
class MixingConfig:
    """Rows are the drawn trials and seeds; each column gives them its style in some layers."""

    first: int | None = None  # first layer that is taken from the column; null: the second half of the layers
    last: int | None = None  # the layer after the last one that is taken; null takes all the rest
    keys: tuple[str, ...] | None = None  # trials of the columns, among those of the rows; null takes all of them
    seeds: tuple[int, ...] | None = None  # seeds of the columns; null: those of the rows


@dataclass(frozen=True)
class Config:
    run_dir: str  # where images/, grid.png and manifest.json go
    gan: str  # run_dir of gan
    features: str | None = None  # run_dir of embed, for source=features and class_means
    kind: Literal["trials", "interpolation", "mixing"] = "trials"  # single pictures; a walk; a sheet of mixed styles
    source: Literal["features", "eeg", "images", "class_means", "trial"] = "features"  # where conditions come from
    loader: LoaderConfig | None = None  # the shards, for source=eeg, class_means and images, and for grid=classes
    encoder: str | None = None  # run_dir of encode or align whose features gan was trained on, for source=eeg, trial
    image2eeg: str | None = None  # run_dir of image2eeg, for source=images
    images: str | None = None  # source=images: a folder of pictures; null takes those of the loader's split
    trial: str | None = None  # source=trial: a .npy [electrodes, samples] of one prepared trial
    split: Literal["train", "val", "test"] = "test"  # whose trials are drawn; no label is read
    condition: Literal["own", "shuffled"] = "own"  # shuffled gives each trial another trial's condition, as a control
    prior: PriorConfig = field(default_factory=PriorConfig)
    ema: int | None = None  # half-life of the average that draws, among gan's ema_half_life and ema_more; null: first
    at: int | None = None  # images of the checkpoint that draws; null: the best, or the newest where none was selected
    per_trial: int = 1  # images per trial, each from its own z
    seeds: tuple[int, ...] | None = None  # instead of per_trial: one image per trial and seed, z being the seed's
    psi: float = 1.0  # truncation: 1 is none, less is more typical
    towards: Literal["condition", "global"] = "condition"  # whose mean w truncation pulls to
    cutoff: int | None = None  # truncation of so many first layers; null pulls all
    noise: Literal["const", "random", "none"] = "const"  # of the layers: the network's own, each image's own, or none
    grid: Literal["spread", "trials", "classes"] = "spread"  # grid.png: 64 images, or labelled rows
    keys: tuple[str, ...] | None = None  # the trials (classes, pictures) to draw, by name; null takes all
    limit: int | None = None  # at most so many trials, evenly spread; null takes all
    batch: int = 64  # images at a time
    seed: int = 0  # of z, of noise and of the shuffle
    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)

    @property
    def per(self) -> int:
        """Images per trial."""
        return self.per_trial if self.seeds is None else len(self.seeds)

    def __post_init__(self):
        counts = (self.per_trial, self.batch, self.limit or 1, self.cutoff or 1)
        if min(counts) < 1 or self.limit == 0 or self.cutoff == 0:
            raise ValueError("per_trial, batch, limit and cutoff count things, so they are 1 or more")
        check_psi(self.psi)
        if min(self.seed, *(self.seeds or ()), *(self.mixing.seeds or ()), 0) < 0:
            raise ValueError(f"a seed is 0 or more; got seed={self.seed}, seeds={self.seeds}")
        if self.seeds is not None and (self.per_trial != 1 or not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError("seeds are different numbers, one image of a trial for each, in place of per_trial")
        if self.keys is not None and (self.limit is not None or not self.keys):
            raise ValueError("keys name what is drawn, at least one, in place of limit")
        missing = [name for name in NEEDS[self.source] if getattr(self, name) is None]
        if self.source == "images" and (self.images is None) == (self.loader is None):
            missing = ["images (a folder) or loader (an index), one of them"]
        if missing:
            raise ValueError(f"source={self.source} needs {' and '.join(missing)}")
        if self.prior.features is not None and self.source in ("images", "class_means"):
            raise ValueError(f"source={self.source} has no noise of trials; drop prior.features, which takes it away")
        if self.grid == "classes" and self.source != "class_means":
            if self.loader is None or self.images is not None or self.source == "trial" or self.split == "test":
                raise ValueError(
                    "grid=classes reads labels: it needs loader and a split other than test, whose labels are for "
                    "evaluate alone; set split=val, source=class_means, or grid=trials"
                )


def run(config: Config) -> None:
    check_video(config.interpolation.video if config.kind == "interpolation" else "none")
    with runtime.start("generate", config) as rt:
        if rt.done:
            return
        generator, state = load_generator(config.gan, config.ema, config.at)
        _refuse_layers(config, generator)
        source: Source = open_source(config, generator, state, rt.device)
        digest = checkpoint.tensors_digest(generator.state_dict())
        files = [checkpoint.chosen(config.gan, config.at).path / "state.json", *source.files]
        prior = None
        if config.prior.features is not None:
            prior = generate_prior.known(config, state, generator.c_dim)
            files += config.prior.read
            rt.reads(("train",))
        rt.inputs(files, gan=digest, **source.digests)
        rt.reads(source.splits)
        rt.start_log()
        rt.confounded(state["data"]["confounded"])
        keys, conditions = chosen(config, source)
        if prior is not None:
            conditions = prior.expected(conditions.cpu())
        generator.to(rt.device)
        about = {**described(config, state), "conditions_of": source.of, "gan_digest": digest}
        rt.finish(KINDS[config.kind](rt, config, generator, keys, conditions, about))


def described(config: Config, state: dict) -> dict[str, Any]:
    """What every description of pictures says of how they were made."""
    names = ("gan", "source", "condition", "ema", "psi", "towards", "cutoff", "noise", "seed")
    prior = None if config.prior.features is None else to_dict(config.prior)
    given = {**{name: getattr(config, name) for name in names}, "prior": prior}
    return {**given, "gan_images": state["images"], "confounded": state["data"]["confounded"]}


def draw_trials(rt: runtime.Runtime, config: Config, generator: Generator, keys, conditions, about: dict) -> str:
    """One file per trial and z, a grid of them, and the manifest that later stages read."""
    folder = rt.run_dir / "images"
    folder.mkdir(exist_ok=True)
    total = len(keys) * config.per
    with rt.bar(total) as bar:
        for numbers in rounds(total, config.batch):
            for number, picture in zip(numbers, draw(generator, config, numbers, conditions), strict=True):
                to_pil(picture).save(folder / f"{name(keys, config, number)}.png")
            bar.update(min(total, numbers[-1] + 1) if numbers else total)
            rt.check_stop()
    barrier()
    if rt.main:
        checkpoint.write_json(rt.run_dir / "manifest.json", {**about, "images": _rows(config, keys)})
        _write_grid(rt, config, keys, folder)
    return f"{total} images of {_whose(config)} ({config.condition} {about['conditions_of']})"


def draw_walk(rt: runtime.Runtime, config: Config, generator: Generator, keys, conditions, about: dict) -> str:
    """strip.png, the moving picture, and walk.json."""
    frames: list[Image.Image] = []

    def work() -> None:
        frames.extend(walk(generator, config, keys, conditions))
        shown = [frames[i] for i in _with_ends(len(frames), config.interpolation.strip)]
        _save(rt, sheet([shown], [""], [""] * len(shown)), "strip")
        way, video = config.interpolation, None
        if way.video != "none":
            video = save_video(rt.run_dir, frames, way.video, way.fps)
        what = {"keys": keys, "seeds": config.seeds, "space": way.space, "loop": way.loop, "frames": len(frames)}
        checkpoint.write_json(rt.run_dir / "walk.json", {**about, **what, "video": video, "strip": "strip.png"})

    rt.on_main(work)
    return f"a walk of {len(frames)} pictures between {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''}"


def draw_mixtures(rt: runtime.Runtime, config: Config, generator: Generator, keys, conditions, about: dict) -> str:
    """mixing.png and mixing.json."""

    def work() -> None:
        whole, what = mixtures(generator, config, keys, conditions)
        _save(rt, whole, "mixing")
        checkpoint.write_json(rt.run_dir / "mixing.json", {**about, **what, "sheet": "mixing.png"})

    rt.on_main(work)
    return f"styles of {len(keys)} trials mixed"


KINDS = {"trials": draw_trials, "interpolation": draw_walk, "mixing": draw_mixtures}


def name(keys: list[str], config: Config, number: int) -> str:
    """A picture's file name, without its ending."""
    place = number % config.per
    return f"{file_name(keys[number // config.per])}-{place if config.seeds is None else f'seed{config.seeds[place]}'}"


def _rows(config: Config, keys: list[str]) -> list[dict[str, Any]]:
    rows = []
    for n in range(len(keys) * config.per):
        seed = {} if config.seeds is None else {"seed": random_of(config, n)[0]}
        rows.append({"key": keys[n // config.per], "number": n, "file": f"images/{name(keys, config, n)}.png", **seed})
    return rows


def _whose(config: Config) -> str:
    return {
        "class_means": "classes",
        "trial": "one trial",
        "images": f"pictures of {config.images or config.split}",
    }.get(config.source, f"{config.split} trials")


def _write_grid(rt: runtime.Runtime, config: Config, keys: list[str], folder: Path) -> None:
    """Read back from disk, for other ranks have drawn some of them."""

    def read(number: int) -> Image.Image:
        return Image.open(folder / f"{name(keys, config, number)}.png").convert("RGB")

    if config.grid == "spread":
        pictures = np.stack([np.asarray(read(n)) for n in spread(len(keys) * config.per, 64)])
        whole = grid(torch.from_numpy(pictures).permute(0, 3, 1, 2), 8)
        _save(rt, to_pil(whole), "grid")
    elif config.grid == "trials":
        rows = spread(len(keys), 64)
        cells = [[read(i * config.per + k) for k in range(config.per)] for i in rows]
        heads = [f"seed {s}" for s in config.seeds] if config.seeds else [f"z {k}" for k in range(config.per)]
        _save(rt, sheet(cells, [keys[i] for i in rows], heads), "grid")
    else:
        _save(rt, _by_class(read, config, keys), "grid")


def _by_class(read, config: Config, keys: list[str], columns: int = 8) -> Image.Image:
    """Up to eight pictures of each class, a class a row."""
    members: dict[str, list[int]] = {}
    for i, own in enumerate(class_names_of(config, keys)):
        members.setdefault(own, []).extend(range(i * config.per, (i + 1) * config.per))
    width = min(columns, max(map(len, members.values())))
    cells = [[read(n) for n in own[:width]] + [None] * (width - len(own)) for own in members.values()]
    return sheet(cells, list(members), [str(k + 1) for k in range(width)])


def _with_ends(n: int, count: int) -> list[int]:
    """`count` of 0 .. n - 1, evenly spread, the first and the last among them."""
    return sorted({round(i * (n - 1) / max(count - 1, 1)) for i in range(count)})


def _save(rt: runtime.Runtime, whole: Image.Image, what: str) -> None:
    whole.save(rt.run_dir / f"{what}.png")
    rt.log.pictures(0, f"generated/{what}", torch.from_numpy(np.array(whole.convert("RGB"))).permute(2, 0, 1))


def _refuse_layers(config: Config, generator: Generator) -> None:
    if config.cutoff is not None and config.cutoff > generator.num_ws:
        raise UserError(f"cutoff={config.cutoff}, but {config.gan} has {generator.num_ws} layers; lower it")
