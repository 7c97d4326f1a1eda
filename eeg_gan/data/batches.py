"""Samples put together into the tensors that networks see."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_gan.data.trial import Sample

# b batch, C electrode, T time sample, H height, W width

Batch = dict[str, Any]


def stacked(eegs: list[np.ndarray], images: list[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
    """EEG [b, C, T] and images uint8 [b, 3, H, W] of samples' [C, T] and [H, W, 3]; None where there are no images."""
    eeg = torch.from_numpy(np.stack(eegs))
    if images[0] is None:
        return eeg, None
    whole = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for planes, image in zip(whole, images, strict=True):
        for channel in range(3):  # much faster than to transpose at once
            planes[channel] = image[..., channel]
    return eeg, torch.from_numpy(whole)


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
