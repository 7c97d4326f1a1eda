"""Stage 3: StyleGAN2 with adaptive augmentation, conditioned on the EEG feature.

Singh & Raman, WACV 2024, section 3.2; Karras et al. 2020 (arXiv 1912.04958, 2006.06676). The condition of a fake is
the feature of a training trial drawn at random; no label reaches either network.
"""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from eeg_gan.augment import image as augmentation
from eeg_gan.augment.adaptive import Adaptive, AdaptiveConfig
from eeg_gan.config import UserError, to_dict
from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import average_gradients, barrier, generator_at, mean_over_ranks, own_part, seed_at
from eeg_gan.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from eeg_gan.models.stylegan2.discriminator import Discriminator, DiscriminatorConfig
from eeg_gan.models.stylegan2.generator import Generator, GeneratorConfig
from eeg_gan.stages.loading import about_data, load_features, open_shards, spread, to_uint8
from eeg_gan.training import checkpoint, ema, runtime
from eeg_gan.training.log import grid


@dataclass(frozen=True)
class AdamConfig:
    """Adam at one rate throughout, as StyleGAN2 is trained."""

    lr: float = 2.5e-3  # learning rate
    beta1: float = 0.0  # Adam's first decay
    beta2: float = 0.99  # Adam's second decay

    def __post_init__(self):
        if not self.lr > 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"lr is above 0, beta1 and beta2 lie in [0, 1); got {self.lr}, {self.beta1}, {self.beta2}")


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    features: str  # run_dir of embed: the condition of every trial
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    augment: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    r1_gamma: float = 0.1  # weight of the R1 penalty; grows with the square of the resolution
    r1_every: int = 16  # batches between two R1 steps (lazy regularisation)
    ema_half_life: int = 10_000  # images in which the averaged generator forgets half
    ema_ramp: float | None = 0.05  # the half-life is at most this fraction of the images seen; null has no ramp
    condition_noise: float = 0.0  # Gaussian noise on conditions, as a fraction of their length, drawn anew each time
    batch: int = 64  # real images in the global batch
    total_images: int = 5_000_000  # real images to train on, over all processes (kimg x 1000)
    snapshot_every: int = 40_000  # images between two grids of pictures in TensorBoard
    checkpoint_every: int = 200_000  # images between two checkpoints
    stop_after: int | None = None  # save and leave with exit code 75 after so many images
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if self.batch < 2 or self.total_images < 1 or self.r1_every < 1:
            raise ValueError("batch must be 2 or more, total_images and r1_every 1 or more")
        if min(self.checkpoint_every, self.snapshot_every) < 1 or self.seed < 0:
            raise ValueError("checkpoint_every and snapshot_every count images, 1 or more; seed is 0 or more")
        if self.batch % self.discriminator.mbstd_group:
            raise ValueError(
                f"discriminator.mbstd_group={self.discriminator.mbstd_group} must divide batch={self.batch}"
            )
        if not 0 <= self.condition_noise <= 1:
            raise ValueError(f"condition_noise is a fraction, so it must lie in [0, 1]; got {self.condition_noise}")


@dataclass
class Players:
    """Both networks, the averaged generator, their optimisers and the augmentation's controller."""

    g: Generator
    d: Discriminator
    average: Generator
    g_optimiser: torch.optim.Optimizer
    d_optimiser: torch.optim.Optimizer
    augment: Adaptive


def run(config: Config) -> None:
    _check_batch(config, int(os.environ.get("WORLD_SIZE", "1")))  # before a run directory is claimed
    with runtime.start("gan", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        _check_images(config, shards)
        known = load_features(config.features, shards.split_digest, config.loader.index)
        files = [config.loader.index, Path(config.features) / "features.json"]
        rt.inputs(files, shards=shards.digest, features=known.meta["encoder_digest"])
        rt.reads(("train", "val"))
        train = Reader(shards, "train", config.loader.cache_mb, config.loader.workers)
        conditions = known.rows(shards.keys("train"))
        players = build(config, shards.image_size, conditions.shape[1], rt.device)
        images, state = checkpoint.resume(rt.run_dir, networks(players), optimisers(players))
        players.augment.load_state_dict(state.get("augment", players.augment.state_dict()))
        rt.start_log(images)
        rt.confounded(shards.confounded)
        fixed = Fixed(shards, known, config)
        part, means = own_part(config.batch), Means()

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                indices = shuffled_at(config.seed, train.n, images, config.batch)[part]
                real = to_float(train.batch(indices)["image"].to(rt.device))
                c_real = noisy(conditions[torch.as_tensor(indices)], config, "real", images).to(rt.device)

                means.add(
                    step_discriminator(players, real, c_real, Fakes(config, players, conditions, "d", images), images)
                )
                if (images // config.batch) % config.r1_every == 0:
                    means.add(step_r1(players, real, c_real, config, images))
                means.add(step_generator(players, Fakes(config, players, conditions, "g", images)))
                ema.update(
                    players.average, players.g, ema.beta_at(images, config.batch, config.ema_half_life, config.ema_ramp)
                )
                images += config.batch
                if (images // config.batch) % config.augment.every == 0:
                    players.augment.update(config.batch * config.augment.every)
                bar.update(images, f"augment p {players.augment.p:.2f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                if last or runtime.crossed(images, config.batch, config.snapshot_every):
                    rt.log.scalars(images, {**means.reset(), "augment/p (0 to 1)": players.augment.p})
                    rt.log.pictures(images, "fakes/validation trials", fixed.pictures(players.average))
                if last or stop or runtime.crossed(images, config.batch, config.checkpoint_every):
                    save(rt, config, players, images, shards, known)
                if stop and not last:
                    rt.leave(images)
        rt.finish(f"{images / 1000:.1f} kimg, augmentation p {players.augment.p:.2f}")


class Fakes:
    """What one batch of fakes is made from: drawn for the global batch, of which this rank takes its part."""

    def __init__(self, config: Config, players: Players, conditions: Tensor, who: str, images: int):
        self.config, self.who, self.images, self.part = config, who, images, own_part(config.batch)
        self.device = next(players.g.parameters()).device
        generator = self.stream("z")
        self.z = torch.randn(config.batch, config.generator.z_dim, generator=generator)[self.part].to(self.device)
        picked = torch.randint(len(conditions), (config.batch,), generator=self.stream("condition"))[self.part]
        self.c = noisy(conditions[picked], config, f"fake-{who}", images).to(self.device)
        self.noise = [
            n[self.part].to(self.device) for n in players.g.draw_noise(self.stream("layer-noise"), config.batch)
        ]

    def stream(self, purpose: str) -> torch.Generator:
        return generator_at(self.config.seed, f"{purpose}-{self.who}", self.images)

    def augmented(self, players: Players, pictures: Tensor) -> Tensor:
        return augmented(players, pictures, self.config, f"fake-{self.who}", self.images)


def step_discriminator(players: Players, real: Tensor, c_real: Tensor, fakes: Fakes, images: int) -> dict[str, Tensor]:
    """Reals up, fakes down; reals and fakes pass as one batch, whose groups for minibatch std do not mix."""
    with torch.no_grad():
        fake = players.g(fakes.z, fakes.c, noise=fakes.noise, update_average=True)
    real = augmented(players, real, fakes.config, "real-d", images)
    logits = players.d(torch.cat([real, fakes.augmented(players, fake)]), torch.cat([c_real, fakes.c]))
    real_logits, fake_logits = logits.chunk(2)
    loss = discriminator_loss(real_logits, fake_logits)
    _step(players.d, players.d_optimiser, loss)
    players.augment.observe(real_logits.detach())
    return {
        "loss/D (nats)": loss,
        "logit/real (nats)": real_logits.mean(),
        "logit/fake (nats)": fake_logits.mean(),
        "sign/real (-1 to 1)": real_logits.sign().mean(),
    }


def step_r1(players: Players, real: Tensor, c_real: Tensor, config: Config, images: int) -> dict[str, Tensor]:
    """gamma/2 E|grad_x D(aug(x))|^2, in a step of its own, weighted by the interval (lazy regularisation)."""
    real = real.detach().requires_grad_(True)
    logits = players.d(augmented(players, real, config, "real-r1", images), c_real)
    penalty = r1_penalty(real, logits)
    _step(players.d, players.d_optimiser, penalty * (config.r1_gamma / 2 * config.r1_every))
    return {"loss/R1 penalty (1)": penalty}


def step_generator(players: Players, fakes: Fakes) -> dict[str, Tensor]:
    """Non-saturating: the generator raises the logits of its fakes."""
    players.d.requires_grad_(False)
    fake = players.g(fakes.z, fakes.c, noise=fakes.noise)
    loss = generator_loss(players.d(fakes.augmented(players, fake), fakes.c))
    _step(players.g, players.g_optimiser, loss)
    players.d.requires_grad_(True)
    return {"loss/G (nats)": loss}


def _step(network: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(network.parameters())
    optimiser.step()


def augmented(players: Players, pictures: Tensor, config: Config, purpose: str, images: int) -> Tensor:
    """The same stochastic pipe for reals and fakes, with different draws, through which gradients pass."""
    if config.augment.mode == "none" or players.augment.p == 0:  # p = 0 is the identity, at a fifth of the step's time
        return pictures
    height, width = pictures.shape[2:]
    generator = generator_at(config.seed, f"augment-{purpose}", images)
    draws = augmentation.draw(generator, config.batch, players.augment.p, height, width, config.augment.pipe)
    return augmentation.apply(pictures, augmentation.part(draws, own_part(config.batch)))


def noisy(c: Tensor, config: Config, purpose: str, images: int) -> Tensor:
    """Unit conditions [b, D] of this rank's part, each moved by noise and made a unit vector again."""
    if config.condition_noise == 0:
        return c
    generator = generator_at(config.seed, f"condition-noise-{purpose}", images)
    noise = torch.randn(config.batch, c.shape[1], generator=generator)[own_part(config.batch)] / c.shape[1] ** 0.5
    return nn.functional.normalize(c + config.condition_noise * noise, dim=1)


def build(config: Config, resolution: int, c_dim: int, device: torch.device) -> Players:
    torch.manual_seed(seed_at(config.seed, "weights", 0))
    g = Generator(resolution=resolution, c_dim=c_dim, **to_dict(config.generator)).to(device)
    d = Discriminator(resolution=resolution, c_dim=c_dim, **to_dict(config.discriminator)).to(device)
    average = copy.deepcopy(g).eval().requires_grad_(False)
    lazy = config.r1_every / (config.r1_every + 1)  # R1 has steps of its own: D moves (r + 1) times in r batches
    return Players(
        g,
        d,
        average,
        _adam(g, config.g_optim),
        _adam(d, config.d_optim, lazy),
        Adaptive(config.augment),
    )


def _adam(network: nn.Module, config: AdamConfig, lazy: float = 1.0) -> torch.optim.Adam:
    betas = (float(config.beta1) ** lazy, float(config.beta2) ** lazy)
    return torch.optim.Adam(network.parameters(), lr=config.lr * lazy, betas=betas, fused=True)


def networks(players: Players) -> dict[str, nn.Module]:
    return {"g": players.g, "d": players.d, "average": players.average}


def optimisers(players: Players) -> dict[str, torch.optim.Optimizer]:
    return {"g_optimiser": players.g_optimiser, "d_optimiser": players.d_optimiser}


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


def save(rt: runtime.Runtime, config: Config, players: Players, images: int, shards: Shards, known: Features):
    if rt.main:
        state = {
            "generator": {"resolution": players.g.resolution, "c_dim": players.g.c_dim, **to_dict(config.generator)},
            "augment": players.augment.state_dict(),
            "data": about_data(shards),
            "encoder_digest": known.meta["encoder_digest"],
        }
        checkpoint.save_run(rt.run_dir, images, networks(players), optimisers(players), state)
    barrier()


def to_float(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def _check_batch(config: Config, processes: int) -> None:
    step = processes * config.discriminator.mbstd_group
    if config.batch % step:
        fit = sorted({max(config.batch // step, 1) * step, (config.batch // step + 1) * step})
        raise UserError(
            f"batch={config.batch} does not give each of {processes} processes whole groups of discriminator."
            f"mbstd_group={config.discriminator.mbstd_group}; set batch to "
            f"{' or '.join(map(str, fit))}, or another group"
        )


def _check_images(config: Config, shards: Shards) -> None:
    if not shards.has_images:
        raise UserError(f"{config.loader.index} has no images; a generator needs data with images")
    height, width, _ = shards.index["shape"]["image"]
    if height != width or height < 16 or height & (height - 1):
        raise UserError(
            f"{config.loader.index} holds images of {height} x {width} px, but a generator draws squares whose side is "
            "a power of two from 16 on; run prepare again with image_size=32"
        )
