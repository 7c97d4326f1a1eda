"""The recurrent encoder of Singh & Raman, WACV 2024, section 3.1."""

import torch.nn.functional as F
from torch import Tensor, nn


class LSTMEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: stacked LSTM over time, its last hidden state, a linear map without bias.

    With C = 128 and the default sizes it has the 544,768 parameters of the paper's network.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, hidden: int = 128, layers: int = 4):
        super().__init__()
        self.lstm = nn.LSTM(n_chans, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, dim, bias=False)

    # B batch, C electrode, T time sample, L layer, H hidden unit
    def forward(self, x_BCT: Tensor) -> Tensor:
        _, (h_LBH, _) = self.lstm(x_BCT.transpose(1, 2).contiguous())
        return F.normalize(self.linear(h_LBH[-1]), dim=-1)
