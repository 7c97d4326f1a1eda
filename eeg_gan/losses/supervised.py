"""Supervised contrastive learning (Khosla et al. 2020), by pytorch-metric-learning, over the global batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eeg_gan.config import UserError

LARGEST = 4096  # trials; the library lists all pairs, about 50 bytes each: 1 GB


@dataclass(frozen=True)
class SupervisedContrastiveConfig:
    temperature: float = 0.1  # divides cosines; the paper's value

    def __post_init__(self):
        if not 0.001 <= self.temperature <= 100:
            raise ValueError(f"temperature divides cosines, so it must lie in [0.001, 100]; got {self.temperature}")


def supervised_contrastive(z: Tensor, labels: Tensor, config: SupervisedContrastiveConfig) -> Tensor:
    """Equation 2 (L_out) of embeddings z [B, D] with labels [B]: mean over the anchors that have a positive.

    The caller gathers embeddings and labels over ranks first.
    """
    from pytorch_metric_learning.losses import SupConLoss

    if len(z) > LARGEST:
        raise UserError(
            f"loss=supervised_contrastive lists all pairs of the batch, too many for {len(z)} trials; use {LARGEST} or "
            "fewer (classes_per_batch x trials_per_class), or loss=triplet"
        )
    with torch.autocast(z.device.type, enabled=False):
        return SupConLoss(config.temperature)(z.float(), labels)
