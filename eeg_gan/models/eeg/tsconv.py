"""The temporal-spatial convolution of NICE (Song et al., "Decoding Natural Images from EEG", ICLR 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError


class TSConvEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: filters in time, mean pool, filters over electrodes, a residual projection.

    Deviations from the paper: the kernel (25), the pool (51) and its stride (5) shrink with windows under 204 samples;
    group norm stands for batch norm, so that 1 and N processes agree and a trial's feature does not depend on its
    neighbours in the batch.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, filters: int = 40, dropout: float = 0.5):
        super().__init__()
        if n_times < 16:
            raise UserError(f"tsconv needs windows of 16 samples or more, got {n_times}; cut longer ones or take lstm")
        kernel, self.pool = min(25, n_times // 4), min(51, n_times // 4)
        stride = max(1, min(5, self.pool // 4))
        frames = (n_times - self.pool + 1 - kernel) // stride + 1
        self.temporal = nn.Conv2d(1, filters, (1, kernel), (1, stride))
        self.spatial = nn.Conv2d(filters, filters, (n_chans, 1))
        self.norm_temporal = nn.GroupNorm(1, filters)  # one group: the power of one filter beside another is kept
        self.norm_spatial = nn.GroupNorm(1, filters)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Conv2d(filters, filters, 1)
        self.project = nn.Linear(filters * frames, dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(dim, dim), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(dim)

    # B batch, C electrode, T time sample, K filter, P pooled time
    def forward(self, x_BCT: Tensor) -> Tensor:
        # Pooling and filtering commute: pooling the one input plane first lets the filters run at the pool's stride.
        pooled_B1CT = F.avg_pool2d(x_BCT.unsqueeze(1), (1, self.pool), 1)
        h_BKCP = F.elu(self.norm_temporal(self.temporal(pooled_B1CT)))
        h_BK1P = self.dropout(F.elu(self.norm_spatial(self.spatial(h_BKCP))))
        z = self.project(torch.flatten(self.mix(h_BK1P), 1))
        return F.normalize(self.norm(z + self.residual(z)), dim=-1)
