"""The linear baseline: what no network may stay under (Gifford et al. 2022; Perceptogram, 2024, decode by it alone)."""

import torch.nn.functional as F
from torch import Tensor, nn


class LinearEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: one linear map of the trial, standardised over its electrodes and times.

    With `optim.weight_decay` its weights shrink as those of a ridge regression do. It reads what is locked to the
    stimulus alone: a rhythm of random phase has no mean.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(n_chans * n_times, dim, bias=False)

    def forward(self, x_BCT: Tensor) -> Tensor:
        flat = x_BCT.flatten(1)
        return F.normalize(self.linear(F.layer_norm(flat, flat.shape[1:])), dim=-1)
