"""A small encoder for event-related responses: few trials, low signal-to-noise, timing that matters."""

import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError

POOL = 4  # samples; at 128 Hz a frame of 31 ms still follows the N170


class ERPEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: filters over electrodes, a short filter in time for each, pool, projection.

    The factorisation is EEGNet's (Lawhern et al. 2018) with space before time, which is far cheaper; time is pooled in
    short frames only and kept up to the projection, as phase-locked responses are told apart by when they happen.
    """

    def __init__(
        self, n_chans: int, n_times: int, dim: int, filters: int = 64, hidden: int = 256, dropout: float = 0.2
    ):
        super().__init__()
        if n_times < 16:
            raise UserError(f"erp needs windows of 16 samples or more, got {n_times}; cut longer ones or take lstm")
        self.spatial = nn.Conv1d(n_chans, filters, 1, bias=False)
        self.temporal = nn.Conv1d(filters, filters, 9, padding=4, groups=filters, bias=False)
        self.norm = nn.GroupNorm(1, filters)
        self.dropout = nn.Dropout(dropout)
        width = filters * (n_times // POOL)
        self.linear = nn.Linear(width, dim)
        self.residual = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.5 * (dropout > 0)), nn.Linear(hidden, dim)
        )

    # B batch, C electrode, T time sample, K filter
    def forward(self, x_BCT: Tensor) -> Tensor:
        h_BKT = self.norm(self.temporal(self.spatial(x_BCT)))
        frames = self.dropout(F.avg_pool1d(F.elu(h_BKT), POOL).flatten(1))
        return F.normalize(self.linear(frames) + self.residual(frames), dim=-1)
