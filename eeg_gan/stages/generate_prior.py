"""Conditions drawn towards what pictures evoke: one trial's feature is mostly noise, and the generator would draw that.

The role of the prior between text and image embeddings in Ramesh et al. 2022 (arXiv 2204.06125), without a network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.stages.loading import keys_of, load_features

CHUNK = 256  # conditions at a time
SHRINKAGE = 0.1  # of the noise's covariance, towards noise that is alike along all axes


@dataclass(frozen=True)
class PriorConfig:
    features: str | None = None  # run_dir of embed on image2eeg, whose training features are the prior; null: none
    measured: str | None = None  # run_dir of embed on EEG: how its training features scatter; null: alike in all axes
    temperature: float = (
        0.03  # of cosines: low takes the nearest picture, high the mean; with measured 1 is as on train
    )

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature divides cosines or distances, so it is above 0; got {self.temperature}")
        if self.measured is not None and self.features is None:
            raise ValueError("measured says how EEG scatters around prior.features, so it needs those too")

    @property
    def read(self) -> list[Path]:
        """The descriptions of all that is read."""
        return [Path(folder) / "features.json" for folder in (self.features, self.measured) if folder is not None]


@dataclass
class Prior:
    features: Tensor  # [M, D] of the distinct training pictures, unit vectors
    whitening: Tensor  # [D, D] x @ whitening has noise of unit variance, up to the temperature
    temperature: float

    def expected(self, conditions: Tensor) -> Tensor:
        """Unit [N, D]: the direction of the mean of the features given each noisy condition [N, D].

        The posterior mean where each picture is as likely and noise is Gaussian around its feature.
        """
        places = self.features @ self.whitening
        found = []
        for c in F.normalize(conditions, dim=1).split(CHUNK):
            distance = torch.cdist(c @ self.whitening, places, compute_mode="donot_use_mm_for_euclid_dist")
            found.append((-distance.square() / (2 * self.temperature)).softmax(1) @ self.features)
        return F.normalize(torch.cat(found), dim=1)


def known(config: Any, state: dict, dim: int) -> Prior:
    """The prior of a generate run, which must fit the generator's conditions of length `dim`."""
    given, rows = _training(config, state, config.prior.features, dim)
    whitening = torch.eye(dim)
    if config.prior.measured is not None:
        measured, theirs = _training(config, state, config.prior.measured, dim)
        if keys_of(measured, "train") != keys_of(given, "train"):
            raise UserError(f"{config.prior.measured} and {config.prior.features} hold features of other trials")
        whitening = whitening_of(theirs - rows)
    return Prior(rows.unique(dim=0), whitening, config.prior.temperature)


def whitening_of(noise: Tensor) -> Tensor:
    """[D, D] such that noise [N, D] @ it has about unit covariance; a tenth of shrinkage keeps small axes small."""
    noise = noise.double()
    covariance = noise.T @ noise / len(noise)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    return torch.linalg.cholesky(torch.linalg.inv(covariance)).float()


def _training(config: Any, state: dict, folder: str, dim: int) -> tuple[Features, Tensor]:
    """The features of a folder, and those of the training split as unit vectors [N, D]."""
    given = load_features(folder, state["data"]["split_digest"], config.gan)
    rows = given.rows(keys_of(given, "train"))
    if rows.shape[1] != dim:
        raise UserError(
            f"{folder} holds features of length {rows.shape[1]}, but {config.gan} was trained on length {dim}; run "
            "embed with the encoder that it was trained on, or image2eeg trained on its features"
        )
    return given, F.normalize(rows, dim=1)
