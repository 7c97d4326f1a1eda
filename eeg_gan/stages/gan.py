"""Stage 3: StyleGAN2 with adaptive augmentation, conditioned on the EEG feature.

Singh & Raman, WACV 2024, section 3.2; Karras et al. 2020 (arXiv 1912.04958, 2006.06676). The condition of a fake is
the feature of a training trial drawn at random; no label reaches either network.
"""

import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from eeg_gan.augment.condition import Conditions
from eeg_gan.config import UserError, to_dict
from eeg_gan.data.features import Features
from eeg_gan.data.loader import Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import barrier, generator_at, mean_over_ranks, own_part, world_size
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.models.stylegan2.layers import sizes_up_to
from eeg_gan.stages.gan_config import Config, check_groups
from eeg_gan.stages.gan_evaluation import GanEvaluation
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
from eeg_gan.training import checkpoint, kernels, replicas, runtime, zero
from eeg_gan.training.log import grid

log = logging.getLogger("eeg_gan")


def run(config: Config) -> None:
    check_groups(config, int(os.environ.get("WORLD_SIZE", "1")))  # before a run directory is claimed
    zero.check_gan(config)
    with runtime.start("gan", config) as rt, kernels.chosen(rt.device, config.deterministic):
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        resolution = _check_images(config, shards)
        known = load_features(config.features, shards.split_digest, config.loader.index)
        files = [config.loader.index, Path(config.features) / "features.json"]
        rt.reads(("train", "val"))
        train = Reader(shards, "train", config.loader.cache_mb, config.loader.workers)
        distinct, pictures = unique_images(shards, "train")
        conditions = Conditions(known.rows(shards.keys("train")), pictures.tolist(), config.condition)
        players = build(config, resolution, conditions.features, rt.device)
        tower = {} if players.tower is None else {"tower": players.tower}
        rt.inputs(files, shards=shards.digest, features=known.meta["encoder_digest"], **tower)
        networks, optimisers = players.networks(), players.optimisers()
        images, state = checkpoint.resume(rt.run_dir, networks, optimisers, config.keep_checkpoints)
        players.load_state_dict({**players.state_dict(), **state.get("players", {})})
        if images == 0 and config.transfer.run is not None:
            _transfer(players, config, shards.split_digest)
        train_discriminator(players, config)
        if (deepspeed := zero.asked(config)) is not None:
            players.shard(deepspeed, config)
        best = state.get("best")
        rt.start_log(images)
        rt.confounded(shards.confounded)
        judging = None
        if config.evaluate.every is not None:
            val = Reader(shards, "val", config.loader.cache_mb, config.loader.workers)
            judging = GanEvaluation(config, train, val, known, rt.device)
        log.info("%d training trials show %d distinct pictures", train.n, len(distinct))
        fixed, means = Fixed(shards, known, config), Means(state.get("means"), rt.device)

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                indices = shuffled_at(config.seed, train.n, images, config.batch)
                batch = Batch(config, players, conditions, images)
                part, number = own_part(config.batch), images // config.batch
                with rt.meter.waiting():
                    found = train.batch(indices[part])["image"]
                real = to_float(found.to(rt.device))
                c_real = batch.real_conditions(torch.as_tensor(indices))[part].to(rt.device)

                means.add(step_discriminator(batch, real, c_real))
                if config.r1_gamma and number % config.r1_every == 0:
                    means.add(step_r1(batch, real, c_real))
                means.add(step_generator(batch))
                if config.path_length.weight and number % config.path_length.every == 0:
                    means.add(step_path_length(batch))
                update_averages(players, config, images, batch.weight)
                images += config.batch
                if (number + 1) % config.augment.every == 0:
                    players.augment.update(config.batch * config.augment.every)
                if (number + 1) % config.engine.check_every == 0:
                    replicas.check(replicas.of_networks(players.networks()), images)
                if (number + 1) % config.guard.every == 0 and players.guard.must_go_back():
                    images = _go_back(rt, config, players, images)
                    rt.log.back_to(images)
                    continue
                bar.update(images, f"augment p {players.augment.p:.2f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                rows, better = {}, False
                if judging and (last or runtime.crossed(images, config.batch, config.evaluate.every)):
                    figures, rows = judging.figures(players.average)
                    kept = last or stop or players.guard.healthy()  # what is not saved cannot be the best
                    better = kept and judging.better(figures, best)
                    best = {"images": images, **figures} if better else best
                if last or runtime.crossed(images, config.batch, config.snapshot_every):
                    seen = {"images/per distinct picture (count)": images / len(distinct)}
                    left_out = {"gradient/steps left out (count)": players.guard.total}
                    now = {"augment/p (0 to 1)": players.augment.p, "condition/weight (0 to 1)": batch.weight}
                    rt.log.scalars(images, {**means.reset(), **now, **seen, **left_out, **rows, **rt.meter.read()})
                    rt.log.pictures(images, "fakes/validation trials", fixed.pictures(players.average))
                elif rows:
                    rt.log.scalars(images, rows)
                due = better or runtime.crossed(images, config.batch, config.checkpoint_every)
                if last or stop or (due and players.guard.healthy()):
                    save(rt, config, players, images, shards, known, best, means.state_dict())
                if stop and not last:
                    rt.leave(images)
        figures = {name: value for name, value in (best or {}).items() if name != "images"}
        figures |= {"augment_p": players.augment.p}
        rt.finish(f"{images / 1000:.1f} kimg, augmentation p {players.augment.p:.2f}", figures, images)


def _go_back(rt: runtime.Runtime, config: Config, players: Players, images: int) -> int:
    """The newest checkpoint again, or the initial weights if there is none; returns its count of images."""
    guard = players.guard
    networks, optimisers = players.networks(), players.optimisers()
    to, state = checkpoint.resume(rt.run_dir, networks, optimisers, config.keep_checkpoints)
    if not state:
        raise UserError(
            f"training diverged within {images} images, before the first checkpoint: gradients are not finite; lower "
            "g_optim.lr and d_optim.lr, raise r1_gamma, or set precision=float32"
        )
    players.g_steps.reload()
    players.d_steps.reload()
    counts = guard.state_dict()
    players.load_state_dict({**state["players"], "guard": {**counts, "bad": 0}})
    guard.go_back(images, to)
    return to


def _transfer(players: Players, config: Config, split_digest: str) -> None:
    """Takes from another run every tensor of the same name and shape; the averages start from its average."""
    found = checkpoint.chosen(config.transfer.run)
    if "average" not in found.tensors:
        raise UserError(f"transfer.run={config.transfer.run} holds no generator; give the run_dir of gan")
    if found.state["data"]["split_digest"] != split_digest:
        log.warning(
            "%s was trained on another split or other data; where both share pictures, it may have seen held-out ones",
            config.transfer.run,
        )
    same_sight = found.state.get("tower") == players.tower
    given = {"g": found.tensors["g"], "d": found.tensors["d"] if same_sight else {}}
    for name, network in players.networks().items():
        theirs, own = given.get(name, found.tensors["average"]), network.state_dict()
        fits = {key: value for key, value in theirs.items() if key in own and own[key].shape == value.shape}
        ours = ("c_mean", "c_whitening")  # statistics of these data
        taken = {key: value for key, value in fits.items() if not key.endswith(ours)}
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

    def __init__(self, state: dict | None = None, device: torch.device | None = None) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {
            tag: (torch.tensor(total, device=device), count) for tag, (total, count) in (state or {}).items()
        }

    def state_dict(self) -> dict[str, list]:
        """What is not logged yet, so that a row after a restart covers all its steps; every rank calls this."""
        return {tag: [float(mean_over_ranks(total)), count] for tag, (total, count) in self.sums.items()}

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
    means: dict,
) -> None:
    players.gather()
    if rt.main:
        g = players.g
        shape = {"resolution": g.resolution, "c_dim": g.c_dim, "img_channels": g.img_channels}
        state = {
            "generator": {
                **shape,
                **to_dict(config.generator),
                "condition_weight": players.average.condition_weight,
            },
            "players": players.state_dict(),
            "ema": [config.ema_half_life, *config.ema_more],
            "data": about_data(shards),
            "encoder_digest": known.meta["encoder_digest"],
            "tower": players.tower,
            "best": best,
            "means": means,
        }
        select = config.evaluate.select if best is not None else None
        networks, optimisers = players.networks(), players.optimisers()
        checkpoint.save_run(rt.run_dir, images, networks, optimisers, state, select, config.keep_checkpoints)
    barrier()


def to_float(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def _check_images(config: Config, shards: Shards) -> int | list[int]:
    """The size of the images, a side or [height, width], which the networks can draw."""
    if not shards.has_images:
        raise UserError(f"{config.loader.index} has no images; a generator needs data with images")
    height, width, _ = shards.index["shape"]["image"]
    resolution = height if height == width else [height, width]
    sizes_up_to(resolution)
    if config.resolution is not None and max(height, width) != config.resolution:
        raise UserError(
            f"resolution={config.resolution}, but {config.loader.index} holds images of {height}x{width} px; set "
            "resolution to the data's, as the preset is computed from it"
        )
    if config.preset == "auto" and config.gpus != world_size():
        log.warning("preset=auto was computed for gpus=%d, but %d processes run", config.gpus, world_size())
    return resolution
