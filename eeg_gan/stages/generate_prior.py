"""Conditions drawn towards what pictures evoke: one trial's feature is mostly noise, and the generator would draw that.

The role of the prior between text and image embeddings in Ramesh et al. 2022 (arXiv 2204.06125), without a network.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.stages.loading import keys_of, load_features

CHUNK = 1024  # conditions at a time


@dataclass(frozen=True)
class PriorConfig:
    features: str | None = None  # run_dir of embed on image2eeg, whose training features are the prior; null: none
    temperature: float = 0.03  # of the cosines: lower takes the nearest picture, higher the mean of all

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature divides cosines, so it is above 0; got {self.temperature}")


def known(config: Any, state: dict, dim: int) -> Tensor:
    """[M, D] the distinct training features of the prior, which must fit the generator's."""
    given = load_features(config.prior.features, state["data"]["split_digest"], config.gan)
    rows = given.rows(keys_of(given, "train"))
    if rows.shape[1] != dim:
        raise UserError(
            f"{config.prior.features} holds features of length {rows.shape[1]}, but {config.gan} was trained on length "
            f"{dim}; run embed with image2eeg trained on the features that it was trained on"
        )
    return rows.unique(dim=0)


def expected(conditions: Tensor, prior: Tensor, temperature: float) -> Tensor:
    """Unit [N, D]: the direction of the mean of `prior` [M, D] given each noisy condition [N, D].

    The posterior mean where each row of the prior is as likely and noise is von Mises-Fisher with concentration
    1 / temperature: weights proportional to exp(cosine / temperature).
    """
    prior = F.normalize(prior, dim=1)
    weights = [(F.normalize(c, dim=1) @ prior.T / temperature).softmax(1) for c in conditions.split(CHUNK)]
    return F.normalize(torch.cat(weights) @ prior, dim=1)
