"""Adam and the learning rate as a pure function of the images seen."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "sgd"] = "adamw"  # sgd is plain descent, for comparisons
    lr: float = 3e-4  # peak learning rate of Adam
    beta1: float = 0.9  # Adam's first decay
    beta2: float = 0.999  # Adam's second decay
    weight_decay: float = 0.0  # decoupled (AdamW)
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up
    warmup_images: int = 0  # linear rise of the learning rate over so many images
    clip_norm: float | None = None  # longest gradient of the global batch; null: as long as it is

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"lr must be positive; got {self.lr}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1); got {self.beta1} and {self.beta2}")
        if self.weight_decay < 0 or self.warmup_images < 0:
            raise ValueError("weight_decay and warmup_images must not be negative")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is a length above 0, or null for none; got {self.clip_norm}")


def build(parameters: Iterable[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay)
    betas = (float(config.beta1), float(config.beta2))  # torch 2.13 refuses a pair of int and float
    return torch.optim.AdamW(parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay)


def learning_rate(images: int, config: OptimConfig, total: int) -> float:
    """Linear to `lr` over the warm-up, then constant or half a cosine to zero at `total`."""
    if images < config.warmup_images:
        return config.lr * images / config.warmup_images
    if config.schedule == "constant":
        return config.lr
    done = (images - config.warmup_images) / max(total - config.warmup_images, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
