"""EEGNet (Lawhern et al., "EEGNet: a compact convolutional network for EEG-based BCIs", J. Neural Eng. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError


class EEGNetEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: filters in time, electrodes of each filter, a separable filter, projection.

    EEGNet-8,2 of the paper's table 2, with its bounds on the norms of the spatial and of the last weights. Deviations:
    kernels (64 and 16 samples; the paper's rate is 128 Hz) and pools (4 and 8) shrink with windows under 128 samples,
    and group norm stands for batch norm, so that 1 and N processes agree.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, temporal: int = 8, depth: int = 2, dropout: float = 0.5):
        super().__init__()
        if n_times < 16:
            raise UserError(f"eegnet needs windows of 16 samples or more, got {n_times}; cut longer ones or take lstm")
        width, frames = temporal * depth, n_times // 4
        self.temporal = nn.Conv2d(1, temporal, (1, min(64, n_times // 2)), bias=False)
        self.spatial = nn.Conv2d(temporal, width, (n_chans, 1), groups=temporal, bias=False)
        self.depthwise = nn.Conv1d(width, width, min(16, frames), groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)
        self.norm_temporal, self.norm_spatial, self.norm = (nn.GroupNorm(1, n) for n in (temporal, width, width))
        self.pool = min(8, frames)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width * (frames // self.pool), dim)

    # B batch, C electrode, T time sample, F temporal filter, K filter, P pooled time
    def forward(self, x_BCT: Tensor) -> Tensor:
        h_BFCT = self.norm_temporal(self.temporal(_padded(x_BCT, self.temporal).unsqueeze(1)))
        spatial = torch.renorm(self.spatial.weight, 2, 0, 1.0)
        h_BKT = F.conv2d(h_BFCT, spatial, groups=self.spatial.groups).squeeze(2)
        h_BKP = self.dropout(F.avg_pool1d(F.elu(self.norm_spatial(h_BKT)), 4))
        h_BKP = self.norm(self.pointwise(self.depthwise(_padded(h_BKP, self.depthwise))))
        h_BKP = self.dropout(F.avg_pool1d(F.elu(h_BKP), self.pool))
        weight = torch.renorm(self.linear.weight, 2, 0, 0.25)
        return F.normalize(F.linear(h_BKP.flatten(1), weight, self.linear.bias), dim=-1)


def _padded(x: Tensor, convolution: nn.Module) -> Tensor:
    """Zeros around the last axis, so that the convolution keeps its length; torch warns of its own for even kernels."""
    more = convolution.kernel_size[-1] - 1
    return F.pad(x, (more // 2, more - more // 2))
