"""Adaptive discriminator augmentation: moves the probability p by how sure the discriminator is of reals."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eeg_gan.augment.image import PIPES
from eeg_gan.distributed import sum_over_ranks


@dataclass(frozen=True)
class AdaptiveConfig:
    mode: Literal["ada", "fixed", "none"] = "ada"  # ada: p follows the target; fixed: p stays; none: no augmentation
    target: float = 0.6  # wanted mean sign of the logits of real images
    p: float = 0.0  # probability of each transform at the start
    p_max: float = 0.8  # p never passes this; near 1 the transforms leak into generated images
    speed_kimg: float = 500.0  # thousands of images in which p can move by one
    every: int = 4  # batches between two adjustments
    pipe: str = "bgc"  # transforms: b pixel blits, g geometry, c colour, f filter, n noise, c cutout

    def __post_init__(self):
        if self.pipe not in PIPES:
            raise ValueError(f"no augmentation pipe is called {self.pipe!r}; choose one of {', '.join(PIPES)}")
        if not 0 <= self.p <= self.p_max <= 1:
            raise ValueError(f"probabilities satisfy 0 <= p <= p_max <= 1; got p={self.p} and p_max={self.p_max}")
        if not -1 < self.target < 1:
            raise ValueError(f"target is a mean of signs, so it lies between -1 and 1; got {self.target}")
        if self.speed_kimg <= 0 or self.every < 1:
            raise ValueError(f"speed_kimg and every are positive; got {self.speed_kimg} and {self.every}")


def updated_p(p: float, sign_mean: float, images: int, config: AdaptiveConfig) -> float:
    """p after one adjustment that covers `images` images, between 0 and p_max."""
    if config.mode != "ada":
        return p
    direction = (sign_mean > config.target) - (sign_mean < config.target)
    return min(max(p + direction * images / (config.speed_kimg * 1000), 0.0), config.p_max)


@dataclass
class Adaptive:
    """The state of the controller, equal on all ranks; sums wait as tensors so that observing does not stall a GPU.

    As the paper's r_t (Karras et al. 2020, arXiv 2006.06676, section 3) it counts each real image of the last batches
    once; published code counts those of R1 steps, one batch in sixteen, a second time.
    """

    config: AdaptiveConfig
    p: float = 0.0
    sign_sum: float | Tensor = 0.0
    sign_count: float | Tensor = 0.0

    def __post_init__(self):
        self.p = 0.0 if self.config.mode == "none" else max(self.p, self.config.p)

    def observe(self, logits: Tensor) -> None:
        """Takes in the logits of real images; every rank calls this with its own."""
        if self.config.mode != "ada":
            return
        signs = logits.detach().float().sign()
        total = sum_over_ranks(torch.stack([signs.sum(), torch.full_like(signs.sum(), signs.numel())]))
        self.sign_sum, self.sign_count = self.sign_sum + total[0], self.sign_count + total[1]

    def update(self, images_per_update: int) -> float:
        """Adjusts p, forgets the sums and returns the mean sign (0 when nothing was observed)."""
        count = float(self.sign_count)
        mean = float(self.sign_sum) / count if count else 0.0
        if count:
            self.p = updated_p(self.p, mean, images_per_update, self.config)
        self.sign_sum = self.sign_count = 0.0
        return mean

    def state_dict(self) -> dict[str, float]:
        return {"p": self.p, "sign_sum": float(self.sign_sum), "sign_count": float(self.sign_count)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.p, self.sign_sum, self.sign_count = (float(state[key]) for key in ("p", "sign_sum", "sign_count"))
        self.p = min(max(self.p, 0.0), self.config.p_max)
