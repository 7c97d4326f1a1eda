"""One batch of the adversarial game: what is drawn for it, and the four steps of the two networks.

All is drawn for the global batch from streams computed of (seed, purpose, images), then cut for this process and again
into micro-batches. Gradients are means over the global batch, so that neither cut changes them.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from eeg_gan.augment import image as augmentation
from eeg_gan.augment.adaptive import Adaptive
from eeg_gan.augment.condition import Conditions, weight_at
from eeg_gan.config import UserError, to_dict
from eeg_gan.distributed import generator_at, mean_over_ranks, own_part, seed_at
from eeg_gan.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    path_length,
    r1_penalty,
)
from eeg_gan.models.image_tower import build_tower
from eeg_gan.models.projected import ProjectedDiscriminator
from eeg_gan.models.stylegan2.discriminator import Discriminator
from eeg_gan.models.stylegan2.generator import Generator, draw_crossover, mix_styles
from eeg_gan.models.stylegan2.layers import Precision, without_half
from eeg_gan.stages.gan_config import AdamConfig, Config
from eeg_gan.training import ema, zero
from eeg_gan.training.averaging import Averaged
from eeg_gan.training.guard import Guard

Values = dict[str, Tensor]


@dataclass
class Players:
    """Both networks, the averaged generators by half-life, optimisers, and what controls them."""

    g: Generator
    d: Discriminator | ProjectedDiscriminator
    averages: dict[int, Generator]  # the first is the one that other stages read
    g_optimiser: torch.optim.Optimizer
    d_optimiser: torch.optim.Optimizer
    augment: Adaptive
    guard: Guard
    path_mean: Tensor
    g_steps: Averaged | zero.Sharded
    d_steps: Averaged | zero.Sharded

    @property
    def average(self) -> Generator:
        return next(iter(self.averages.values()))

    @property
    def device(self) -> torch.device:
        return self.path_mean.device

    @property
    def tower(self) -> str | None:
        """The digest of what a projected discriminator looks through."""
        return self.d.digest if isinstance(self.d, ProjectedDiscriminator) else None

    def networks(self) -> dict[str, nn.Module]:
        first, *more = self.averages
        return {"g": self.g, "d": self.d, "average": self.average} | {f"average-{n}": self.averages[n] for n in more}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"g_optimiser": self.g_optimiser, "d_optimiser": self.d_optimiser}

    def shard(self, path: str, config: Config) -> None:
        """Puts both optimisers' states in parts on the ranks, as a DeepSpeed config says."""
        self.g_steps = zero.Sharded(self.g, self.g_optimiser, path, config.g_optim.clip_norm)
        self.d_steps = zero.Sharded(self.d, self.d_optimiser, path, config.d_optim.clip_norm)
        self.g_optimiser, self.d_optimiser = self.g_steps.twin.optimiser, self.d_steps.twin.optimiser

    def gather(self) -> None:
        """Before a checkpoint is written or loaded: optimisers hold the state of all parameters, on each rank."""
        self.g_optimiser, self.d_optimiser = self.g_steps.whole(), self.d_steps.whole()

    def state_dict(self) -> dict:
        return {
            "augment": self.augment.state_dict(),
            "guard": self.guard.state_dict(),
            "path_mean": float(self.path_mean.double()),
        }

    def load_state_dict(self, state: dict) -> None:
        self.augment.load_state_dict(state["augment"])
        self.guard.load_state_dict(state["guard"])
        self.path_mean.fill_(state["path_mean"])


def build(
    config: Config, resolution: int | list[int], conditions: Tensor, device: torch.device, n_colours: int = 3
) -> Players:
    """Networks at their initial weights; `conditions` [N, D] of the training trials."""
    torch.manual_seed(seed_at(config.seed, "weights", 0))
    shape = {"resolution": resolution, "c_dim": conditions.shape[1], "img_channels": n_colours}
    g = Generator(**shape, **to_dict(config.generator))
    d = _discriminator(config, shape)
    if config.transfer.freeze_d and config.transfer.freeze_d > len(d.blocks):
        raise UserError(
            f"transfer.freeze_d={config.transfer.freeze_d} resolutions cannot stay as they are: the discriminator has "
            f"{len(d.blocks)} above its base; lower it"
        )
    for mapping in (g.mapping_network, d.mapping):
        if mapping is not None and mapping.c_whitening is not None:
            mapping.fit_whitening(conditions)
    g, d = g.to(device), d.to(device)
    averages = {n: copy.deepcopy(g).eval().requires_grad_(False) for n in (config.ema_half_life, *config.ema_more)}
    g.precision = d.precision = Precision(half_type(config.precision, device), config.half_levels)
    lazy_g = config.path_length.every if config.path_length.weight else None
    g_optimiser = _adam(g, config.g_optim, lazy_g)
    d_optimiser = _adam(d, config.d_optim, config.r1_every if config.r1_gamma else None)
    together = (config.engine.bucket_mb, config.engine.overlap)
    return Players(
        g,
        d,
        averages,
        g_optimiser,
        d_optimiser,
        Adaptive(config.augment),
        Guard(config.guard),
        torch.zeros((), device=device),
        Averaged(g, g_optimiser, config.g_optim.clip_norm, *together),
        Averaged(d, d_optimiser, config.d_optim.clip_norm, *together),
    )


def _discriminator(config: Config, shape: dict) -> Discriminator | ProjectedDiscriminator:
    own, projected = config.discriminator, config.discriminator.projected
    if projected is None:
        keys = to_dict(own)
        del keys["projected"]
        return Discriminator(**shape, **keys)
    shared = {name: getattr(own, name) for name in ("map_layers", "map_lr", "two_heads", "whiten")}
    seen = {name: getattr(projected, name) for name in ("image_size", "scales", "channels")}
    tower = build_tower(projected.tower)
    return ProjectedDiscriminator(tower, **shape, **shared, **seen, penalised=config.r1_gamma > 0)


def half_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of the highest resolutions; `auto` takes bfloat16 where a GPU computes in it."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _adam(network: nn.Module, config: AdamConfig, every: int | None) -> torch.optim.Optimizer:
    """A regulariser with steps of its own moves the network (every + 1) times in `every` batches: each moves less."""
    lazy = every / (every + 1) if every else 1.0
    if config.name == "sgd":
        return torch.optim.SGD(network.parameters(), lr=config.lr * lazy, fused=True)
    betas = (float(config.beta1) ** lazy, float(config.beta2) ** lazy)
    return torch.optim.Adam(network.parameters(), lr=config.lr * lazy, betas=betas, eps=1e-8, fused=True)


def micro_batches(total: int, size: int | None) -> list[slice]:
    """The parts of a global batch of `total` that this process works on one after the other."""
    own = own_part(total)
    step = size or own.stop - own.start
    return [slice(i, min(i + step, own.stop)) for i in range(own.start, own.stop, step)]


class Batch:
    """What is drawn for one global batch; parts are cut on use."""

    def __init__(self, config: Config, players: Players, conditions: Conditions, images: int):
        self.config, self.players, self.conditions, self.images = config, players, conditions, images
        self.weight = weight_at(images, config.condition)

    def stream(self, purpose: str) -> torch.Generator:
        again = f"-again-{self.players.guard.rollbacks}" if self.players.guard.rollbacks else ""
        return generator_at(self.config.seed, purpose + again, self.images)

    def fakes(self, who: str, size: int | None = None) -> "Fakes":
        return Fakes(self, who, size or self.config.batch)

    def real_conditions(self, trials: Tensor) -> Tensor:
        return self.conditions.of(trials, self.stream("condition-noise-real"))

    def augmented(self, purpose: str) -> Callable[[Tensor, slice], Tensor]:
        """The same stochastic pipe for reals and fakes, with different draws, through which gradients pass."""
        draws = self.draws(purpose)
        return lambda pictures, part: augmentation.apply(pictures, augmentation.part(draws, part))

    def draws(self, purpose: str) -> dict[str, Tensor]:
        """Parameters of the pipe; none where p = 0, which is the identity, at a fifth of the step's time."""
        config, p = self.config, self.players.augment.p
        if config.augment.mode == "none" or p == 0:
            return {}
        size, colours = self.players.g.size, self.players.g.img_channels
        stream = self.stream(f"augment-{purpose}")
        return augmentation.draw(stream, config.batch, p, *size, config.augment.pipe, colours)


class Fakes:
    """The random inputs of one batch of fakes."""

    def __init__(self, batch: Batch, who: str, size: int):
        self.batch, self.who, self.size = batch, who, size
        self.players, config = batch.players, batch.config
        self.z = torch.randn(size, config.generator.z_dim, generator=batch.stream(f"z-{who}"))
        trials = torch.randint(len(batch.conditions), (size,), generator=batch.stream(f"condition-{who}"))
        self.c = batch.conditions.of(trials, batch.stream(f"condition-noise-fake-{who}"))
        self.noise = self.players.g.draw_noise(batch.stream(f"layer-noise-{who}"), size)

    @cached_property
    def mixing(self) -> tuple[Tensor, Tensor]:
        """A second z, and the layer from which each sample takes its style."""
        stream, config = self.batch.stream(f"mixing-{self.who}"), self.batch.config
        crossover = draw_crossover(stream, self.size, self.players.g.num_ws, config.style_mixing)
        return torch.randn(self.size, config.generator.z_dim, generator=stream), crossover

    def condition(self, part: slice) -> Tensor:
        return self.c[part].to(self.players.device)

    def styles(self, part: slice) -> Tensor:
        """ws [b, L, w_dim]."""
        g, c, weight = self.players.g, self.condition(part), self.batch.weight
        ws = g.mapping(self.z[part].to(self.players.device), c, weight=weight)
        if self.batch.config.style_mixing == 0:
            return ws
        z, crossover = self.mixing
        other = g.mapping(z[part].to(self.players.device), c, weight=weight)
        return mix_styles(ws, other, crossover[part])

    def pictures(self, ws: Tensor, part: slice) -> Tensor:
        return self.players.g.synthesis(ws, [layer[part].to(self.players.device) for layer in self.noise])


def step_discriminator(batch: Batch, real: Tensor, c_real: Tensor) -> Values:
    """Reals up, fakes down; reals and fakes pass as one batch, whose groups for minibatch deviation do not mix.

    `real` [b, C, H, W] and `c_real` [b, D] are this process's part.
    """
    players, fakes, first = batch.players, batch.fakes("d"), []
    if isinstance(players.d, ProjectedDiscriminator):
        players.d.refresh()
    aug_real, aug_fake = batch.augmented("real-d"), batch.augmented("fake-d")
    game = hinge_discriminator_loss if hinges(batch.config) else discriminator_loss

    def losses(part: slice, own: slice) -> Values:
        with torch.no_grad():
            ws = fakes.styles(part)
            fake = fakes.pictures(ws, part)
        first.append(ws[:, 0])
        both = torch.cat([aug_real(real[own], part), aug_fake(fake, part)])
        heads = logits(batch, both, torch.cat([c_real[own], fakes.condition(part)]))
        loss = sum(w * game(*head.chunk(2)) for w, head in heads)
        real_logits, fake_logits = leading(players.d, heads).detach().chunk(2)
        players.augment.observe(real_logits)
        return {
            f"loss/D ({unit(batch.config)})": loss,
            f"logit/real ({unit(batch.config)})": real_logits.mean(),
            f"logit/fake ({unit(batch.config)})": fake_logits.mean(),
            "sign/real (-1 to 1)": real_logits.sign().mean(),
        }

    values = _stepped(batch, players.d_steps, losses, batch.config.batch, "D")
    players.g.mapping_network.follow(torch.cat(first))
    return values


def step_r1(batch: Batch, real: Tensor, c_real: Tensor) -> Values:
    """gamma/2 E|grad_x D(aug(x))|^2, in a step of its own, weighted by the interval (lazy regularisation)."""
    config, augmented = batch.config, batch.augmented("real-r1")

    def losses(part: slice, own: slice) -> Values:
        x = real[own].detach().requires_grad_(True)
        penalty = r1_penalty(x, leading(batch.players.d, logits(batch, augmented(x, part), c_real[own])))
        loss = penalty * (config.r1_gamma / 2 * config.r1_every)
        return {"loss": loss, "loss/R1 penalty (1)": penalty.detach()}

    with without_half(batch.players.d):
        values = _stepped(batch, batch.players.d_steps, losses, config.batch, "R1")
    return {"loss/R1 penalty (1)": values["loss/R1 penalty (1)"]}


def step_generator(batch: Batch) -> Values:
    """Non-saturating: the generator raises the logits of its fakes."""
    players, fakes, augmented = batch.players, batch.fakes("g"), batch.augmented("fake-g")
    players.d.requires_grad_(False)
    game = hinge_generator_loss if hinges(batch.config) else generator_loss

    def losses(part: slice, own: slice) -> Values:
        fake = augmented(fakes.pictures(fakes.styles(part), part), part)
        heads = logits(batch, fake, fakes.condition(part))
        return {f"loss/G ({unit(batch.config)})": sum(w * game(head) for w, head in heads)}

    values = _stepped(batch, players.g_steps, losses, batch.config.batch, "G")
    train_discriminator(players, batch.config)
    return values


def step_path_length(batch: Batch) -> Values:
    """Pulls the lengths of paths in style space towards their running mean (arXiv 1912.04958, section 3.2).

    The mean is that of the batches before, so that it does not depend on how a batch is cut.
    """
    config, players = batch.config.path_length, batch.players
    size = batch.config.batch // config.shrink
    fakes, total = batch.fakes("path", size), []
    stream = batch.stream("path-direction")
    directions = torch.randn(size, players.g.img_channels, *players.g.size, generator=stream)

    def losses(part: slice, own: slice) -> Values:
        ws = fakes.styles(part)
        lengths = path_length(fakes.pictures(ws, part), ws, directions[part].to(players.device))
        total.append(lengths.detach())
        penalty = (lengths - players.path_mean).square().mean()
        return {"loss": penalty * (config.weight * config.every), "loss/path penalty (1)": penalty.detach()}

    with without_half(players.g):
        values = _stepped(batch, players.g_steps, losses, size, "path")
    moved = players.path_mean.lerp(mean_over_ranks(torch.cat(total).mean()), config.decay)
    players.path_mean = torch.where(moved.isfinite(), moved, players.path_mean)
    return {"loss/path penalty (1)": values["loss/path penalty (1)"], "path/mean length (1)": players.path_mean.clone()}


def hinges(config: Config) -> bool:
    return config.discriminator.projected is not None and config.discriminator.projected.loss == "hinge"


def unit(config: Config) -> str:
    return "1" if hinges(config) else "nats"


def logits(batch: Batch, pictures: Tensor, c: Tensor) -> list[tuple[float, Tensor]]:
    """(weight, [n, ...]) of each head: one, or the unconditional one and, with a weight that may be 0, the conditional.

    A projected discriminator has as many of either kind as scales, each with verdicts of places.
    """
    d = batch.players.d
    if isinstance(d, ProjectedDiscriminator):
        if not d.two_heads:
            return [(1.0, head) for head in d(pictures, c)]
        unconditional, conditional = d.heads(pictures, c)
        return [(1.0, head) for head in unconditional] + [(batch.weight, head) for head in conditional]
    if d.unconditional is None:
        return [(1.0, d(pictures, c))]
    unconditional, conditional = d.heads(pictures, c)
    return [(1.0, unconditional), (batch.weight, conditional)]


def leading(d: Discriminator | ProjectedDiscriminator, heads: list[tuple[float, Tensor]]) -> Tensor:
    """[n, scales] logits that steer augmentation and are penalised: of each scale the first kind, mean of places."""
    scales = d.scales if isinstance(d, ProjectedDiscriminator) else 1
    return torch.stack([head.reshape(len(head), -1).mean(1) for _, head in heads[:scales]], 1)


def train_discriminator(players: Players, config: Config) -> None:
    """Switches gradients of the discriminator on, except those of levels that a transfer keeps frozen."""
    players.d.requires_grad_(True)
    for module in frozen_levels(players.d, config.transfer.freeze_d):
        module.requires_grad_(False)


def frozen_levels(d: Discriminator, n: int) -> Iterator[nn.Module]:
    """The modules of the n highest resolutions (freeze-D; Mo et al. 2020, arXiv 2002.10964)."""
    if n:
        yield from [d.from_rgb[:n], d.blocks[:n]]


def update_averages(players: Players, config: Config, images: int, weight: float = 1.0) -> None:
    """Moves the averages; they draw with the weight that the condition has at this point of a transition."""
    for half_life, average in players.averages.items():
        average.condition_weight = weight
        ema.update(average, players.g, ema.beta_at(images, config.batch, half_life, config.ema_ramp))


def _stepped(
    batch: Batch,
    steps: Averaged | zero.Sharded,
    losses: Callable[[slice, slice], Values],
    size: int,
    name: str,
) -> Values:
    """One step on the mean, over the global batch of `size`, of the first value that `losses` gives of each part."""
    steps.zero()
    parts, sums = micro_batches(size, batch.config.micro_batch), {}
    start, own = parts[0].start, parts[-1].stop - parts[0].start
    for part in parts:
        share = (part.stop - part.start) / own
        values = losses(part, slice(part.start - start, part.stop - start))
        loss = next(iter(values.values()))
        steps.backward(loss * share, last=part is parts[-1])
        for tag, value in values.items():
            sums[tag] = sums.get(tag, 0.0) + value.detach() * share
    return {**sums, f"gradient/{name} (norm)": steps.step(batch.players.guard, name)}
