"""Stage 3: StyleGAN2 with adaptive augmentation, conditioned on the EEG feature.

Singh & Raman, WACV 2024, section 3.2; Karras et al. 2020 (arXiv 1912.04958, 2006.06676). The condition of a fake is
the feature of a training trial drawn at random; no label reaches either network.
"""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from eeg_gan.augment.adaptive import AdaptiveConfig
from eeg_gan.augment.condition import ConditionConfig, Conditions
from eeg_gan.config import UserError, to_dict
from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import barrier, generator_at, mean_over_ranks, own_part, world_size
from eeg_gan.models.stylegan2.discriminator import DiscriminatorConfig
from eeg_gan.models.stylegan2.generator import Generator, GeneratorConfig
from eeg_gan.models.stylegan2.layers import sizes_up_to
from eeg_gan.stages import gan_presets
from eeg_gan.stages.gan_evaluation import GanEvaluation, GanEvaluationConfig
from eeg_gan.stages.gan_steps import (
    Batch,
    Players,
    build,
    step_discriminator,
    step_generator,
    step_path_length,
    step_r1,
    train_discriminator,
    update_averages,
)
from eeg_gan.stages.loading import about_data, load_features, open_shards, spread, to_uint8, unique_images
from eeg_gan.training import checkpoint, runtime
from eeg_gan.training.guard import GuardConfig
from eeg_gan.training.log import grid

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class AdamConfig:
    """Adam at one rate throughout, as StyleGAN2 is trained; lazy regularisation is corrected for."""

    lr: float = 2.5e-3  # learning rate
    beta1: float = 0.0  # Adam's first decay
    beta2: float = 0.99  # Adam's second decay

    def __post_init__(self):
        if not self.lr > 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"lr is above 0, beta1 and beta2 lie in [0, 1); got {self.lr}, {self.beta1}, {self.beta2}")


@dataclass(frozen=True)
class PathLengthConfig:
    weight: float = 0.0  # of the path length regulariser; StyleGAN2 has 2, 0 leaves it out
    every: int = 4  # batches between two of its steps (lazy regularisation)
    decay: float = 0.01  # how far the running mean moves to the mean length of a batch
    shrink: int = 2  # its batches are so many times smaller

    def __post_init__(self):
        if self.weight < 0 or self.every < 1 or self.shrink < 1 or not 0 < self.decay <= 1:
            raise ValueError("weight is 0 or more, every and shrink 1 or more, decay in (0, 1]")


@dataclass(frozen=True)
class TransferConfig:
    run: str | None = None  # run_dir of another gan whose weights this one starts from, where their shapes agree
    freeze_d: int = 0  # highest resolutions of the discriminator that stay as they are


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    features: str  # run_dir of embed: the condition of every trial
    preset: Literal["auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar", "wacv2024"] | None = (
        None  # published settings for all keys that are not given
    )
    resolution: int | None = None  # side of the images in pixels that preset=auto computes for; the data must have it
    gpus: int = 1  # processes that preset=auto computes for
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    augment: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    r1_gamma: float = 0.1  # weight of the R1 penalty; grows with the square of the resolution; 0 leaves it out
    r1_every: int = 16  # batches between two R1 steps (lazy regularisation)
    path_length: PathLengthConfig = field(default_factory=PathLengthConfig)
    style_mixing: float = 0.0  # probability that a fake takes its style from a second z from some layer on
    ema_half_life: int = 10_000  # images in which the averaged generator forgets half
    ema_more: tuple[int, ...] = ()  # further half-lives whose averages are kept beside it
    ema_ramp: float | None = 0.05  # the half-life is at most this fraction of the images seen; null has no ramp
    transfer: TransferConfig = field(default_factory=TransferConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluate: GanEvaluationConfig = field(default_factory=GanEvaluationConfig)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # of the highest resolutions; auto: bfloat16 on a GPU, float32 elsewhere
    )
    half_levels: int = 4  # highest resolutions that compute in a half type
    batch: int = 64  # real images in the global batch
    micro_batch: int | None = None  # images that a process holds at a time; null: its whole part of the batch
    total_images: int = 5_000_000  # real images to train on, over all processes (kimg x 1000)
    snapshot_every: int = 40_000  # images between two grids of pictures in TensorBoard
    checkpoint_every: int = 200_000  # images between two checkpoints
    stop_after: int | None = None  # save and leave with exit code 75 after so many images
    seed: int = 0  # of every random draw

    @staticmethod
    def underlay(values: dict) -> dict:
        """The keys of the preset, over which the given ones are laid."""
        name = values.get("preset")
        if name not in gan_presets.NAMES:
            return {}
        return gan_presets.preset(name, values.get("resolution"), values.get("gpus", 1))

    def __post_init__(self):
        if self.batch < 2 or self.total_images < 1 or self.r1_every < 1 or self.gpus < 1:
            raise ValueError("batch must be 2 or more; total_images, r1_every and gpus 1 or more")
        if min(self.checkpoint_every, self.snapshot_every) < 1 or self.seed < 0:
            raise ValueError("checkpoint_every and snapshot_every count images, 1 or more; seed is 0 or more")
        if self.r1_gamma < 0 or not 0 <= self.style_mixing <= 1 or self.half_levels < 0:
            raise ValueError("r1_gamma and half_levels are 0 or more, style_mixing is a probability")
        lives = (self.ema_half_life, *self.ema_more)
        if min(lives) < 0 or len(set(lives)) < len(lives):
            raise ValueError(f"ema_half_life and ema_more are different counts of images; got {list(lives)}")
        fading = self.condition.transition is not None
        if fading != (self.generator.conditioning == "transitional") or fading != self.discriminator.two_heads:
            raise ValueError(
                "condition.transition, generator.conditioning=transitional and discriminator.two_heads=true belong "
                "together; set all three or none"
            )
        if self.precision == "float16" and None in (self.generator.clamp, self.discriminator.clamp):
            raise ValueError("float16 overflows without a clamp; set generator.clamp=256 and discriminator.clamp=256")
        if self.batch % self.path_length.shrink:
            raise ValueError(f"path_length.shrink={self.path_length.shrink} must divide batch={self.batch}")
        _check_groups(self, 1)


def run(config: Config) -> None:
    _check_groups(config, int(os.environ.get("WORLD_SIZE", "1")))  # before a run directory is claimed
    with runtime.start("gan", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        resolution = _check_images(config, shards)
        known = load_features(config.features, shards.split_digest, config.loader.index)
        files = [config.loader.index, Path(config.features) / "features.json"]
        rt.inputs(files, shards=shards.digest, features=known.meta["encoder_digest"])
        rt.reads(("train", "val"))
        train = Reader(shards, "train", config.loader.cache_mb, config.loader.workers)
        distinct, pictures = unique_images(shards, "train")
        conditions = Conditions(known.rows(shards.keys("train")), pictures.tolist(), config.condition)
        players = build(config, resolution, conditions.features, rt.device)
        images, state = checkpoint.resume(rt.run_dir, players.networks(), players.optimisers())
        players.load_state_dict({**players.state_dict(), **state.get("players", {})})
        if images == 0 and config.transfer.run is not None:
            _transfer(players, config)
        train_discriminator(players, config)
        best = state.get("best")
        rt.start_log(images)
        judging = None
        if config.evaluate.every is not None:
            val = Reader(shards, "val", config.loader.cache_mb, config.loader.workers)
            judging = GanEvaluation(config, train, val, known, rt.device)
        log.info("%d training trials show %d distinct pictures", train.n, len(distinct))
        fixed, means = Fixed(shards, known, config), Means()

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                indices = shuffled_at(config.seed, train.n, images, config.batch)
                batch = Batch(config, players, conditions, images)
                part, number = own_part(config.batch), images // config.batch
                real = to_float(train.batch(indices[part])["image"].to(rt.device))
                c_real = batch.real_conditions(torch.as_tensor(indices))[part].to(rt.device)

                means.add(step_discriminator(batch, real, c_real))
                if config.r1_gamma and number % config.r1_every == 0:
                    means.add(step_r1(batch, real, c_real))
                means.add(step_generator(batch))
                if config.path_length.weight and number % config.path_length.every == 0:
                    means.add(step_path_length(batch))
                update_averages(players, config, images)
                images += config.batch
                if (number + 1) % config.augment.every == 0:
                    players.augment.update(config.batch * config.augment.every)
                if (number + 1) % config.guard.every == 0 and players.guard.must_go_back():
                    images = _go_back(rt, players, images)
                    continue
                bar.update(images, f"augment p {players.augment.p:.2f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                rows, better = {}, False
                if judging and (last or runtime.crossed(images, config.batch, config.evaluate.every)):
                    figures, rows = judging.figures(players.average)
                    better = judging.better(figures, best)
                    best = {"images": images, **figures} if better else best
                if last or runtime.crossed(images, config.batch, config.snapshot_every):
                    seen = {"images/per distinct picture (count)": images / len(distinct)}
                    left_out = {"gradient/steps left out (count)": players.guard.total}
                    now = {"augment/p (0 to 1)": players.augment.p, "condition/weight (0 to 1)": batch.weight}
                    rt.log.scalars(images, {**means.reset(), **now, **seen, **left_out, **rows})
                    rt.log.pictures(images, "fakes/validation trials", fixed.pictures(players.average))
                elif rows:
                    rt.log.scalars(images, rows)
                if last or stop or better or runtime.crossed(images, config.batch, config.checkpoint_every):
                    save(rt, config, players, images, shards, known, best)
                if stop and not last:
                    rt.leave(images)
        rt.finish(f"{images / 1000:.1f} kimg, augmentation p {players.augment.p:.2f}")


def _go_back(rt: runtime.Runtime, players: Players, images: int) -> int:
    """The newest checkpoint again, or the initial weights if there is none; returns its count of images."""
    guard = players.guard
    to, state = checkpoint.resume(rt.run_dir, players.networks(), players.optimisers())
    if not state:
        raise UserError(
            f"training diverged within {images} images, before the first checkpoint: gradients are not finite; lower "
            "g_optim.lr and d_optim.lr, raise r1_gamma, or set precision=float32"
        )
    counts = guard.state_dict()
    players.load_state_dict({**state["players"], "guard": {**counts, "bad": 0}})
    guard.go_back(images, to)
    return to


def _transfer(players: Players, config: Config) -> None:
    """Takes from another run every tensor of the same name and shape; the averages start from its average."""
    found = checkpoint.chosen(config.transfer.run)
    if "average" not in found.tensors:
        raise UserError(f"transfer.run={config.transfer.run} holds no generator; give the run_dir of gan")
    given = {"g": found.tensors["g"], "d": found.tensors["d"]}
    for name, network in players.networks().items():
        theirs, own = given.get(name, found.tensors["average"]), network.state_dict()
        taken = {key: value for key, value in theirs.items() if key in own and own[key].shape == value.shape}
        network.load_state_dict({**own, **taken})
        left = sorted(own.keys() - taken.keys())
        log.info("%s: %d of %d tensors from %s", name, len(taken), len(own), found.path)
        if left:
            log.warning("%s starts anew in %s", name, ", ".join(left[:4]) + (" ..." if len(left) > 4 else ""))


class Fixed:
    """Validation pictures and what the generator makes of their trials; never part of the training stream."""

    def __init__(self, shards: Shards, known: Features, config: Config, count: int = 16):
        reader = Reader(shards, "val", config.loader.cache_mb, config.loader.workers)
        trials = spread(reader.n, count)
        self.real = reader.batch(trials)["image"]
        self.c = known.rows([shards.keys("val")[i] for i in trials])
        self.z = torch.randn(len(trials), config.generator.z_dim, generator=generator_at(config.seed, "snapshot", 0))

    @torch.no_grad()
    def pictures(self, g: Generator) -> Tensor:
        device = next(g.parameters()).device
        fakes = to_uint8(g(self.z.to(device), self.c.to(device), noise="const")).cpu()
        return grid(torch.cat([self.real, fakes]), len(self.real))


class Means:
    """Means of scalars since the last reset; tensors are read only then."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for tag, value in values.items():
            total, count = self.sums.get(tag, (0.0, 0))
            self.sums[tag] = (total + value.detach(), count + 1)

    def reset(self) -> dict[str, float]:
        means = {tag: float(mean_over_ranks(total / count)) for tag, (total, count) in self.sums.items()}
        self.sums = {}
        return means


def save(
    rt: runtime.Runtime,
    config: Config,
    players: Players,
    images: int,
    shards: Shards,
    known: Features,
    best: dict | None,
) -> None:
    if rt.main:
        g = players.g
        shape = {"resolution": g.resolution, "c_dim": g.c_dim, "img_channels": g.img_channels}
        state = {
            "generator": {**shape, **to_dict(config.generator)},
            "players": players.state_dict(),
            "ema": [config.ema_half_life, *config.ema_more],
            "data": about_data(shards),
            "encoder_digest": known.meta["encoder_digest"],
            "best": best,
        }
        select = config.evaluate.select if best is not None else None
        checkpoint.save_run(rt.run_dir, images, players.networks(), players.optimisers(), state, select)
    barrier()


def to_float(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def _check_groups(config: Config, processes: int) -> None:
    """Each process, and each micro-batch of it, holds whole groups for minibatch deviation."""
    group, batch, micro = config.discriminator.mbstd_group, config.batch, config.micro_batch
    if batch % (processes * group):
        step = processes * group
        fit = sorted({max(batch // step, 1) * step, (batch // step + 1) * step})
        each = f"each of {processes} processes" if processes > 1 else "the process"
        groups = [str(g) for g in range(1, batch + 1) if batch % (processes * g) == 0]
        raise UserError(
            f"batch={batch} does not give {each} whole groups of discriminator.mbstd_group={group}; set batch to "
            f"{' or '.join(map(str, fit))}" + (f", or mbstd_group to {', '.join(groups)}" if groups else "")
        )
    own = batch // processes
    if micro is not None and (micro < 1 or own % micro or micro % group):
        fit = [str(m) for m in range(group, own + 1, group) if own % m == 0]
        raise UserError(
            f"micro_batch={micro} must divide the {own} images of a process and hold whole groups of "
            f"discriminator.mbstd_group={group}; choose {', '.join(fit)}"
        )
    if (batch // config.path_length.shrink) % processes:
        raise UserError(
            f"path_length.shrink={config.path_length.shrink} leaves {batch // config.path_length.shrink} images, which "
            f"do not divide by {processes} processes; set path_length.shrink=1"
        )


def _check_images(config: Config, shards: Shards) -> int | list[int]:
    """The size of the images, a side or [height, width], which the networks can draw."""
    if not shards.has_images:
        raise UserError(f"{config.loader.index} has no images; a generator needs data with images")
    height, width, _ = shards.index["shape"]["image"]
    resolution = height if height == width else [height, width]
    sizes_up_to(resolution)
    if config.resolution is not None and resolution != config.resolution:
        raise UserError(
            f"resolution={config.resolution}, but {config.loader.index} holds images of {height}x{width} px; set "
            "resolution to the data's, as the preset is computed from it"
        )
    if config.preset == "auto" and config.gpus != world_size():
        log.warning("preset=auto was computed for gpus=%d, but %d processes run", config.gpus, world_size())
    return resolution
