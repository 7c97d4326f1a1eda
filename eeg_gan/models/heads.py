"""Small heads on top of an encoder's or a tower's feature."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """Features [B, dim] -> logits [B, n_classes]; head of the paper's supervised comparison, without its softmax."""

    def __init__(self, dim: int, n_classes: int):
        super().__init__()
        self.linear = nn.Linear(dim, n_classes)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(F.leaky_relu(z, 0.01))


class ProjectionHead(nn.Module):
    """Features [B, dim] -> unit vectors [B, out] in the space of the other modality; a linear map plus a residual."""

    def __init__(self, dim: int, out: int, dropout: float = 0.0):
        super().__init__()
        self.linear = nn.Linear(dim, out)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(out, out), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(out)

    def forward(self, z: Tensor) -> Tensor:
        z = self.linear(z)
        return F.normalize(self.norm(z + self.residual(z)), dim=-1)


class MappedEncoder(nn.Module):
    """A frozen encoder and a linear map behind it, the identity at the start: what joint training is compared with."""

    def __init__(self, encoder: nn.Module, dim: int):
        super().__init__()
        self.encoder, self.map = encoder.requires_grad_(False), nn.Linear(dim, dim)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def train(self, mode: bool = True) -> "MappedEncoder":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, eeg: Tensor, *subject: Tensor) -> Tensor:
        """eeg [B, C, T], and the numbers of subjects [B] where the encoder has layers of them -> unit [B, dim]."""
        with torch.no_grad():
            z = self.encoder(eeg, *subject)
        return F.normalize(self.map(z), dim=-1)
