"""Stage 4: from the embedding of an image to the unit EEG feature that it would evoke."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageToEEGConfig:
    hidden: int = 512  # units of each hidden layer
    layers: int = 2  # hidden layers
    dropout: float = 0.05  # 0 makes 1 and N processes equal
    subjects: bool = False  # learn an offset per subject, as people see alike but not the same

    def __post_init__(self):
        if self.hidden < 1 or self.layers < 0:
            raise ValueError(f"hidden must be 1 or more and layers 0 or more; got {self.hidden} and {self.layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability, so it must lie in [0, 1); got {self.dropout}")


class ImageToEEG(nn.Module):
    """Image embeddings [B, E] and subject indices [B] -> unit EEG features [B, dim].

    Subject -1, or no subject, is the mean of the known subjects.
    """

    def __init__(self, embedding_dim: int, dim: int, config: ImageToEEGConfig, n_subjects: int = 0):
        super().__init__()
        self.subjects = nn.Embedding(n_subjects, embedding_dim) if config.subjects and n_subjects else None
        if self.subjects is not None:
            nn.init.zeros_(self.subjects.weight)
        layers, width = [nn.LayerNorm(embedding_dim)], embedding_dim
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.LeakyReLU(0.01), nn.Dropout(config.dropout)]
            width = config.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim, bias=False))

    def forward(self, embedding: Tensor, subject: Tensor | None = None) -> Tensor:
        x = F.normalize(embedding, dim=-1)
        if self.subjects is not None:
            x = x + self._offset(len(x), subject)
        return F.normalize(self.layers(x), dim=-1)

    def _offset(self, batch: int, subject: Tensor | None) -> Tensor:
        mean = self.subjects.weight.mean(0).expand(batch, -1)
        if subject is None:
            return mean
        return torch.where((subject >= 0).unsqueeze(1), self.subjects(subject.clamp(min=0)), mean)
