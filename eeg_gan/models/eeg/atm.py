"""Attention over electrodes before a temporal-spatial convolution, after ATM (Li et al., NeurIPS 2024).

"Visual Decoding and Reconstruction via EEG Embeddings with Guided Diffusion", section 2.2: each electrode's time course
is a token, a transformer layer lets electrodes attend to one another, NICE's convolution reads the result.
"""

import torch
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.models.eeg.tsconv import TSConvEncoder

WIDEST = 256  # of a token; the paper's 250 samples are tokens of 250
HEADS = 4


class ATMEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: tokens of electrodes, one layer of attention, temporal-spatial convolution.

    Deviations from the paper: a token has T numbers, rounded up to the four heads and 256 at most; the token of the
    subject is left out (`encoder.subjects` gives people layers of their own, for any encoder); norms as in tsconv.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, filters: int = 40, dropout: float = 0.5):
        super().__init__()
        if n_times < 16:
            raise UserError(f"atm needs windows of 16 samples or more, got {n_times}; cut longer ones or take lstm")
        width = min(WIDEST, -(-n_times // HEADS) * HEADS)
        self.embed = nn.Linear(n_times, width)
        self.electrode = nn.Parameter(0.02 * torch.randn(n_chans, width))
        self.attention = nn.TransformerEncoderLayer(width, HEADS, width, dropout / 2, "gelu", batch_first=True)
        self.convolution = TSConvEncoder(n_chans, width, dim, filters, dropout)

    # B batch, C electrode, T time sample, W width of a token
    def forward(self, x_BCT: Tensor) -> Tensor:
        h_BCW = self.embed(x_BCT) + self.electrode
        return self.convolution(self.attention(h_BCW))
