"""The keys of the gan stage, and which of them contradict one another."""

from dataclasses import dataclass, field
from typing import Literal

from eeg_gan.augment.adaptive import AdaptiveConfig
from eeg_gan.augment.condition import ConditionConfig
from eeg_gan.config import UserError
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.models.stylegan2.discriminator import DiscriminatorConfig
from eeg_gan.models.stylegan2.generator import GeneratorConfig
from eeg_gan.stages import gan_presets
from eeg_gan.stages.gan_evaluation import GanEvaluationConfig
from eeg_gan.training.engine import EngineConfig
from eeg_gan.training.guard import GuardConfig


@dataclass(frozen=True)
class AdamConfig:
    """Adam at one rate throughout, as StyleGAN2 is trained; lazy regularisation is corrected for."""

    name: Literal["adam", "sgd"] = "adam"  # sgd is plain descent, for comparisons
    lr: float = 2.5e-3  # learning rate
    beta1: float = 0.0  # Adam's first decay
    beta2: float = 0.99  # Adam's second decay
    clip_norm: float | None = None  # longest gradient of the global batch; null: as long as it is

    def __post_init__(self):
        if not self.lr > 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"lr is above 0, beta1 and beta2 lie in [0, 1); got {self.lr}, {self.beta1}, {self.beta2}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is a length above 0, or null for none; got {self.clip_norm}")


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

    def __post_init__(self):
        if self.freeze_d < 0 or (self.freeze_d and self.run is None):
            raise ValueError("freeze_d counts resolutions of the network that transfer.run names, so it needs that too")


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    features: str  # run_dir of embed: the condition of every trial
    preset: Literal["auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar", "wacv2024"] | None = (
        None  # published settings for all keys that are not given
    )
    resolution: int | None = None  # longer side of the images in pixels, for which preset=auto computes
    gpus: int = 1  # processes that preset=auto computes for
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    augment: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
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
    half_levels: int = 4  # highest resolutions that compute in a half type; the base never does
    deterministic: bool = False  # on a GPU: the same bits each time, at some speed; a CPU gives them anyway
    batch: int = 64  # real images in the global batch
    micro_batch: int | None = None  # images that a process holds at a time; null: its whole part of the batch
    total_images: int = 5_000_000  # real images to train on, over all processes (kimg x 1000)
    snapshot_every: int = 40_000  # images between two grids of pictures in TensorBoard
    checkpoint_every: int = 200_000  # images between two checkpoints
    keep_checkpoints: int | None = 2  # newest ones that stay, beside the best; null: all, for figures over training
    stop_after: int | None = None  # save and leave with exit code 75 after so many images
    seed: int = 0  # of every random draw

    @staticmethod
    def underlay(values: dict) -> dict:
        """What given keys are laid over: those of the preset, and no R1 where the discriminator is projected."""
        name, below = values.get("preset"), {}
        if name in gan_presets.NAMES:
            below = gan_presets.preset(name, values.get("resolution"), values.get("gpus", 1))
        given = values.get("discriminator")
        if isinstance(given, dict) and given.get("projected") is not None:
            below = {**below, "r1_gamma": 0.0}
        return below

    def __post_init__(self):
        if self.batch < 2 or self.total_images < 1 or self.r1_every < 1 or self.gpus < 1:
            raise ValueError("batch must be 2 or more; total_images, r1_every and gpus 1 or more")
        if min(self.checkpoint_every, self.snapshot_every) < 1 or self.seed < 0:
            raise ValueError("checkpoint_every and snapshot_every count images, 1 or more; seed is 0 or more")
        if self.keep_checkpoints is not None and self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints is 1 or more, or null for all; got {self.keep_checkpoints}")
        if self.r1_gamma < 0 or self.half_levels < 0:
            raise ValueError(f"r1_gamma and half_levels are 0 or more; got {self.r1_gamma:g} and {self.half_levels}")
        if not 0 <= self.style_mixing <= 1:
            raise ValueError(f"style_mixing is a probability, so it lies in [0, 1]; got {self.style_mixing:g}")
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
        if self.discriminator.projected is not None and self.transfer.freeze_d:
            raise ValueError(
                "transfer.freeze_d keeps resolutions of StyleGAN2's discriminator; the tower of a projected one is "
                "frozen anyway: leave freeze_d out"
            )
        check_groups(self, 1)

    def with_less_memory(self, processes: int) -> str:
        """The next smaller micro-batch, which changes nothing of what is learnt."""
        own = self.batch // processes
        smaller = [m for m in micro_batches_of(self, own) if m < (self.micro_batch or own)]
        if smaller:
            return f"set micro_batch={smaller[-1]}, with which the same is learnt in less memory"
        return "start more processes, among which batch is divided, or make generator and discriminator smaller"


def check_groups(config: Config, processes: int) -> None:
    """Each process, and each micro-batch of it, holds whole groups for minibatch deviation."""
    batch, micro = config.batch, config.micro_batch
    group = group_of(config)
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
        raise UserError(
            f"micro_batch={micro} must divide the {own} images of a process and hold whole groups of "
            f"discriminator.mbstd_group={group}; choose {', '.join(map(str, micro_batches_of(config, own)))}"
        )
    shrink = config.path_length.shrink
    if config.path_length.weight and batch % (shrink * processes):
        fit = [str(n) for n in range(1, own + 1) if own % n == 0]
        raise UserError(
            f"path_length.shrink={shrink} does not divide the {own} images of a process; choose {', '.join(fit)}"
        )


def group_of(config: Config) -> int:
    """Images that a minibatch deviation joins."""
    return config.discriminator.mbstd_group if config.discriminator.projected is None else 1


def micro_batches_of(config: Config, own: int) -> list[int]:
    """Into which the `own` images of a process can be cut, from small to large."""
    group = group_of(config)
    return [m for m in range(group, own + 1, group) if own % m == 0]
