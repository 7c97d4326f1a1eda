"""The recurrent encoder of Singh & Raman, WACV 2024, section 3.1."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LSTMEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: stacked LSTM over time, its last hidden state, a linear map without bias.

    With C = 128 and the default sizes it has the 544,768 parameters of the paper's network. Units forget half of what
    they hold with each sample at the start, so that the last state says nothing of a response long before the window's
    end, and a loss may never leave that of a constant feature. With `remember` each unit starts with a memory of its
    own length, 1 to n_times samples (Tallec and Ollivier, "Can recurrent neural networks warp time?", ICLR 2018).
    """

    def __init__(
        self, n_chans: int, n_times: int, dim: int, hidden: int = 128, layers: int = 4, remember: bool = False
    ):
        super().__init__()
        self.lstm = nn.LSTM(n_chans, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, dim, bias=False)
        if remember:
            self._remember(n_times)

    @torch.no_grad()
    def _remember(self, n_times: int) -> None:
        for layer in range(self.lstm.num_layers):
            gates, other = (getattr(self.lstm, f"bias_{kind}_l{layer}") for kind in ("ih", "hh"))
            into, forget = gates.chunk(4)[:2]  # torch's order: input, forget, cell, output
            into_other, forget_other = other.chunk(4)[:2]
            forget.copy_(torch.empty_like(forget).uniform_(1, max(n_times - 1, 2)).log())  # keeps t / (1 + t)
            into.copy_(-forget)
            into_other.zero_()
            forget_other.zero_()

    # B batch, C electrode, T time sample, L layer, H hidden unit
    def forward(self, x_BCT: Tensor) -> Tensor:
        _, (h_LBH, _) = self.lstm(x_BCT.transpose(1, 2).contiguous())
        return F.normalize(self.linear(h_LBH[-1]), dim=-1)
