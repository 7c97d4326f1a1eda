"""Samples put together into the tensors that networks see."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from eeg_gan.data.trial import Sample

# b batch, C electrode, T time sample, H height, W width

Batch = dict[str, Any]


def stacked(eegs: list[np.ndarray], images: list[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
    """EEG float32 [b, C, T] and images uint8 [b, 3, H, W] of samples' [C, T] and [H, W, 3]; None without images.

    In a worker of a DataLoader they lie in memory that both processes share, so that they are not copied once more.
    """
    eeg = default_collate([torch.tensor(one).float() for one in eegs])
    if images[0] is None:
        return eeg, None
    return eeg, default_collate([torch.from_numpy(_planes(image)) for image in images])


def _planes(image: np.ndarray) -> np.ndarray:
    """[3, H, W] of [H, W, 3]."""
    return np.stack([image[..., channel] for channel in range(3)])  # much faster than to transpose at once


def collate(samples: list[Sample], subjects: list[str] | None = None) -> Batch:
    """Samples as one batch of tensors, without `index`; `subject` counts in `subjects`, where they are given."""
    eeg, image = stacked([sample.eeg for sample in samples], [sample.image for sample in samples])
    batch: Batch = {
        "eeg": eeg,
        "label": torch.tensor([sample.meta["label"] for sample in samples]),
    }
    if subjects is not None:
        batch["subject"] = torch.tensor([subjects.index(sample.meta["subject"] or "") for sample in samples])
    return batch if image is None else batch | {"image": image}
