"""Small heads on top of an encoder's or a tower's feature."""

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
