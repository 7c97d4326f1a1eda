"""The linear maps of an encoder's subjects, fitted in closed form before the rest learns."""

import logging

import torch
from torch import Tensor

from eeg_gan.data.loader import Reader
from eeg_gan.distributed import generator_at
from eeg_gan.models.eeg import SubjectEncoder
from eeg_gan.models.eeg.readout import fitted
from eeg_gan.models.eeg.subjects import frames
from eeg_gan.stages.loading import layers_of

BATCH = 256  # trials read at a time
log = logging.getLogger("eeg_gan")


def freeze(encoder: SubjectEncoder) -> None:
    """What was fitted in closed form stays: gradients would only fit the trials that it has seen more closely."""
    encoder.readout.requires_grad_(False)


def fit(encoder: SubjectEncoder, train: Reader, target_ND: Tensor, length: float) -> None:
    """Adds to each subject's map the ridge regression of that subject's training trials on their targets [N, D]."""
    layers = layers_of(encoder, train.shards, train.split)
    said = []
    for number, name in enumerate(encoder.names):
        trials = (layers == number).nonzero().flatten()
        parts = [frames(train.batch(part.numpy())["eeg"]) for part in trials.split(BATCH)]
        pooled = torch.cat(parts) if parts else torch.zeros(0, len(encoder.readout[number]))
        weights, explained, strength = fitted(pooled, target_ND[trials], name, length)
        encoder.add_to_readout(name, weights.to(encoder.readout[number].device))
        said.append(f"{name} {explained:.3f} ({strength:g})")
        if explained <= 0:
            log.warning("the linear map of %s explains nothing of unseen trials: more trials, or ridge=null", name)
    log.info("linear maps, R^2 of unseen trials (strength): %s", ", ".join(said))


def class_codes(labels: Tensor, n_classes: int, dim: int, seed: int) -> Tensor:
    """[N, dim] a code for each trial's class: orthonormal where there are no more classes than axes."""
    codes = torch.randn(max(n_classes, dim), dim, generator=generator_at(seed, "class-codes", 0), dtype=torch.float64)
    codes = torch.linalg.qr(codes)[0][:n_classes] if n_classes <= dim else codes / dim**0.5
    return codes.float()[labels]
