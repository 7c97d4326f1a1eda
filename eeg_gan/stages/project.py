"""Projection of an image into the generator's space: the style and the noise that give it back.

Karras et al. 2020 (arXiv 1912.04958), section 5 and appendix D. The start is the mean style over z and over the
conditions of training trials, for a conditional network has no style without one; the perceptual distance is that of
a judge network or of an image tower, with the pixels beside it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.distributed import barrier, generator_at
from eeg_gan.metrics.detectors import DetectorConfig
from eeg_gan.models.image_tower import TowerConfig
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.generate_sheets import sheet, to_pil
from eeg_gan.stages.generate_sources import features_of, read_image
from eeg_gan.stages.loading import keys_of, load_generator, open_shards, to_uint8
from eeg_gan.stages.project_distance import build_distance, noise_correlation, normalise_noise
from eeg_gan.training import checkpoint, runtime


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: projected.png, comparison.png, w.safetensors, checkpoints, log and config
    gan: str  # run_dir of gan
    features: str  # run_dir of embed: the training trials' features are the conditions behind the mean style
    image: str | None = None  # a picture file, cut to the generator's proportions and size
    loader: LoaderConfig | None = None  # or the shards that hold the image of a trial
    split: Literal["train", "val"] = "val"  # of that trial
    key: str | None = None  # of that trial; null is the first of the split
    ema: int | None = None  # half-life of the average, among gan's ema_half_life and ema_more; null: the first
    space: Literal["w", "w+"] = "w"  # one style for all layers, or one for each (closer, less editable)
    detector: DetectorConfig | None = None  # perceptual distance by a judge's layers
    tower: TowerConfig | None = None  # or by an image tower's; with neither, the pixels alone
    pixel_weight: float = 1.0  # of the mean squared difference of images in [-1, 1]
    noise_weight: float = 1e5  # of the noise maps' correlation with themselves
    steps: int = 1000  # of Adam
    lr: float = 0.1  # highest learning rate
    lr_rise: float = 0.05  # fraction of the steps over which it rises from 0
    lr_fall: float = 0.25  # fraction of the steps over which it falls to 0 as a cosine
    perturb: float = 0.05  # deviation of the noise on w at the start, in deviations of w
    perturb_until: float = 0.75  # fraction of the steps after which w is not perturbed
    w_samples: int = 10_000  # styles behind the mean and deviation of w
    log_every: int = 10  # steps between two rows of the log
    checkpoint_every: int = 250  # steps between two checkpoints
    stop_after: int | None = None  # save and leave with exit code 75 after so many steps
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if (self.image is None) == (self.loader is None):
            raise ValueError("give either image, a picture file, or loader, the shards of a trial's image")
        if self.detector is not None and self.tower is not None:
            raise ValueError("give detector or tower: one perceptual distance")
        if min(self.steps, self.w_samples, self.log_every, self.checkpoint_every) < 1 or self.seed < 0:
            raise ValueError("steps, w_samples, log_every and checkpoint_every are 1 or more, seed 0 or more")
        if min(self.pixel_weight, self.noise_weight, self.perturb) < 0 or not self.lr > 0:
            raise ValueError("pixel_weight, noise_weight and perturb are 0 or more, lr above 0")
        if self.pixel_weight == 0 and self.detector is None and self.tower is None:
            raise ValueError("nothing compares the images: raise pixel_weight, or give detector or tower")
        if min(self.lr_rise, self.lr_fall) < 0 or not 0 < self.perturb_until <= 1:
            raise ValueError("lr_rise and lr_fall are fractions of the steps, perturb_until lies in (0, 1]")


class Latent(nn.Module):
    """What is optimised: styles [1 or num_ws, w_dim] and one noise map per layer."""

    def __init__(self, generator: Generator, mean: Tensor, space: str, seed: int):
        super().__init__()
        self.num_ws = generator.num_ws
        self.w = nn.Parameter(mean.repeat(self.num_ws if space == "w+" else 1, 1))
        noise = generator.draw_noise(generator_at(seed, "noise", 0), 1)
        self.noise = nn.ParameterList([nn.Parameter(layer.to(mean.device)) for layer in noise])

    def styles(self, perturbation: Tensor | float = 0.0) -> Tensor:
        """ws [1, num_ws, w_dim]."""
        return (self.w + perturbation).expand(self.num_ws, -1)[None]


def run(config: Config) -> None:
    with runtime.start("project", config) as rt:
        if rt.done:
            return
        generator, state = load_generator(config.gan, config.ema)
        conditions, encoder = _conditions(config, generator, state)
        target = _target(config, generator)
        files = [checkpoint.chosen(config.gan).path / "state.json", Path(config.features) / "features.json"]
        files.append(config.image or config.loader.index)
        digest = checkpoint.tensors_digest(generator.state_dict())
        rt.inputs(files, gan=digest, features=encoder, image=checkpoint.tensors_digest({"image": target}))
        rt.reads(("train",) if config.loader is None else tuple(sorted({"train", config.split})))
        generator.to(rt.device)
        mean, deviation = w_statistics(generator, conditions, config)
        latent = Latent(generator, mean, config.space, config.seed)
        optimiser = torch.optim.Adam(latent.parameters(), lr=config.lr)
        done, _ = checkpoint.resume(rt.run_dir, {"latent": latent}, {"optimiser": optimiser})
        rt.start_log(done)
        losses = Losses(config, generator, target.to(rt.device))

        with rt.bar(config.steps, done) as bar:
            while done < config.steps:
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(done, config)
                values = losses(latent, latent.styles(perturbation(done, latent, deviation, config)))
                optimiser.zero_grad()
                values["loss/total (1)"].backward()
                optimiser.step()
                normalise_noise(list(latent.noise))
                done += 1
                last, stop = done == config.steps, rt.must_stop(done)
                bar.update(done)
                if last or done % config.log_every == 0:
                    rt.log.scalars(done, {tag: float(value.detach()) for tag, value in values.items()})
                if last or stop or done % config.checkpoint_every == 0:
                    rt.log.pictures(done, "projection", to_uint8(losses.image(latent)[0])[:3].cpu())
                    if rt.main:
                        checkpoint.save_run(rt.run_dir, done, {"latent": latent}, {"optimiser": optimiser}, {})
                    barrier()
                if stop and not last:
                    rt.leave(done)
        found = {name: float(value) for name, value in losses.final(latent).items()}
        if rt.main:
            about = {"gan": config.gan, "gan_digest": digest, "ema": config.ema, "space": config.space}
            about |= {"image": config.image or _key(config), "confounded": state["data"]["confounded"]}
            _write(rt.run_dir, latent, losses, {**about, **found})
        rt.finish(f"PSNR {found['psnr_db']:.1f} dB, perceptual distance {found['perceptual']:.3f}", found, done)


@torch.no_grad()
def w_statistics(generator: Generator, conditions: Tensor, config: Config) -> tuple[Tensor, float]:
    """The mean style [w_dim] over z and conditions, and the root mean square distance from it."""
    n, random = config.w_samples, generator_at(config.seed, "w", 0)
    z = torch.randn(n, generator.z_dim, generator=random)
    c = conditions[torch.randint(len(conditions), [n], generator=random)]
    device = next(generator.parameters()).device
    parts = zip(z.split(1024), c.split(1024), strict=True)
    w = torch.cat([generator.mapping(a.to(device), b.to(device))[:, 0] for a, b in parts])
    mean = w.mean(0)
    return mean, float((w - mean).square().sum(1).mean().sqrt())


def learning_rate(step: int, config: Config) -> float:
    """A linear rise from zero, a plateau, half a cosine to zero."""
    t = step / config.steps
    rise = min(1.0, t / config.lr_rise) if config.lr_rise else 1.0
    fall = min(1.0, (1 - t) / config.lr_fall) if config.lr_fall else 1.0
    return config.lr * rise * (0.5 - 0.5 * math.cos(math.pi * fall))


def perturbation(step: int, latent: Latent, deviation: float, config: Config) -> Tensor:
    """Gaussian noise on w, of the deviation perturb * deviation * t^2, where t falls from 1 to 0."""
    t = max(0.0, 1 - step / (config.steps * config.perturb_until))
    noise = torch.randn(latent.w.shape, generator=generator_at(config.seed, "perturb", step))
    return (noise * (config.perturb * deviation * t**2)).to(latent.w)


class Losses:
    """The terms of the loss, and the figures and pictures of the result."""

    def __init__(self, config: Config, generator: Generator, target: Tensor):
        self.config, self.generator, self.target = config, generator, target  # uint8 [3, H, W]
        self.wanted = target[None].float() / 127.5 - 1
        self.distance = build_distance(config.detector, config.tower, target[None].float())

    def __call__(self, latent: Latent, ws: Tensor) -> dict[str, Tensor]:
        image = self._colours(self.generator.synthesis(ws, list(latent.noise)))
        perceptual, pixels = self.distance((image + 1) * 127.5), F.mse_loss(image, self.wanted)
        noise = noise_correlation(list(latent.noise))
        total = perceptual + self.config.pixel_weight * pixels + self.config.noise_weight * noise
        names = ("loss/total (1)", "loss/perceptual (1)", "loss/pixels (1)", "loss/noise (1)")
        return dict(zip(names, (total, perceptual, pixels, noise), strict=True))

    @torch.no_grad()
    def image(self, latent: Latent) -> Tensor:
        return self.generator.synthesis(latent.styles(), list(latent.noise))

    @torch.no_grad()
    def final(self, latent: Latent) -> dict[str, Tensor]:
        """Of the picture as it is written, in whole grey levels."""
        shown = self._colours(to_uint8(self.image(latent)).float())
        mse = F.mse_loss(shown, self.target[None].float()).clamp_min(1e-6)
        return {"perceptual": self.distance(shown), "psnr_db": 10 * torch.log10(255**2 / mse)}

    def _colours(self, image: Tensor) -> Tensor:
        """Three channels: grey thrice, and the first three where there are more."""
        return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image[:, :3]


def _conditions(config: Config, generator: Generator, state: dict) -> tuple[Tensor, str]:
    known = features_of(config, generator, state)
    return known.rows(keys_of(known, "train")), known.meta["encoder_digest"]


def _key(config: Config) -> str:
    return config.key or open_shards(config.loader, (config.split,)).keys(config.split)[0]


def _target(config: Config, generator: Generator) -> Tensor:
    """uint8 [3, H, W]."""
    if config.image is not None:
        return read_image(config.image, generator.size)
    shards, key = open_shards(config.loader, (config.split,)), _key(config)
    if key not in shards.keys(config.split):
        raise UserError(f"{config.loader.index} has no trial {key} in split {config.split}; set key to one of it")
    reader = Reader(shards, config.split, config.loader.cache_mb, config.loader.workers)
    if not shards.has_images:
        raise UserError(f"{config.loader.index} has no images; set image to a picture file")
    image = reader.batch([shards.keys(config.split).index(key)])["image"][0]
    if tuple(image.shape[1:]) != tuple(generator.size):
        raise UserError(f"{config.loader.index} has images of another size than {config.gan} draws; give its shards")
    return image


def _write(run_dir: Path, latent: Latent, losses: Losses, about: dict) -> None:
    picture = to_pil(to_uint8(losses.image(latent))[0].cpu())
    picture.save(run_dir / "projected.png")
    pair = [to_pil(losses.target.cpu()), picture]
    sheet([pair], [""], ["target", "projected"]).save(run_dir / "comparison.png")
    noise = {f"noise.{i}": layer for i, layer in enumerate(latent.noise)}
    checkpoint.save_tensors(run_dir / "w.safetensors", {"ws": latent.styles()[0], **noise})
    checkpoint.write_json(run_dir / "projection.json", about)
