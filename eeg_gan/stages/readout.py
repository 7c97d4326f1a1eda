"""Filters and linear maps of an encoder's subjects, fitted in closed form before the rest learns."""

import logging

import torch
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.data.loader import Reader
from eeg_gan.distributed import generator_at
from eeg_gan.models.eeg import SubjectEncoder, matched
from eeg_gan.models.eeg.readout import discriminant, fitted
from eeg_gan.models.eeg.subjects import frames
from eeg_gan.stages.loading import layers_of, spread, with_layers

BATCH = 256  # trials read at a time
VALUES = 2**26  # of one subject's EEG that a filter is fitted on: more trials than that hold are thinned evenly
log = logging.getLogger("eeg_gan")


def freeze(encoder: SubjectEncoder) -> None:
    """What was fitted in closed form stays: gradients would only fit the trials that it has seen more closely."""
    encoder.readout.requires_grad_(False)


def fit_filters(encoder: nn.Module, train: Reader) -> None:
    """Each subject's matched filter, where there are any, from that subject's training trials and their classes."""
    encoder = with_layers(encoder)
    if encoder is None or encoder.filters is None:
        return
    layers, labels, people = layers_of(encoder, train.shards, train.split), torch.as_tensor(train.labels), []
    most = VALUES // encoder.filters[0][0].numel()
    for number, name in enumerate(encoder.names):
        own = (layers == number).nonzero().flatten()
        trials = own[spread(len(own), most)]
        least = matched.LEAST + len(labels[trials].unique())
        if len(trials) < least:
            has = f"has {len(own)}" + (f", of which {most} fit into memory" if len(own) > most else "")
            raise UserError(
                f"encoder.matched needs {matched.LEAST} training trials of each subject beyond one of each class, here "
                f"{least}, but {name} {has}; write encoder.matched=false, or leave that subject out"
            )
        eeg = torch.cat([train.batch(part.numpy())["eeg"] for part in trials.split(BATCH)])
        people.append(matched.Subject(eeg, labels[trials]))
    for name, own in zip(encoder.names, matched.filters(people), strict=True):
        encoder.set_filter(name, *own)


def fit(
    encoder: SubjectEncoder, train: Reader, target_ND: Tensor, length: float, label_N: Tensor | None = None
) -> None:
    """Adds to each subject's map the ridge regression of that subject's training trials on their targets [N, D].

    Its features of unseen trials have this root mean square length; with labels, they are those of a discriminant.
    """
    layers = layers_of(encoder, train.shards, train.split)
    if encoder.posterior is not None and len(label_N.unique()) > target_ND.shape[1]:
        raise UserError(
            f"encoder.posterior has a direction for each of {len(label_N.unique())} classes, but encoder.dim is "
            f"{target_ND.shape[1]}; raise encoder.dim, or set encoder.posterior=false"
        )
    maps, unseen, said = [], torch.zeros_like(target_ND), []
    for number, name in enumerate(encoder.names):
        trials = (layers == number).nonzero().flatten()
        parts = [pooled(encoder, train.batch(part.numpy())["eeg"], layers[part]) for part in trials.split(BATCH)]
        x_NP = torch.cat(parts) if len(trials) else torch.zeros(0, len(encoder.readout[number]))
        weights, unseen[trials], explained, strength = fitted(x_NP, target_ND[trials], name, encoder.filters is None)
        maps.append(weights)
        said.append(f"{name} {explained:.3f} ({strength:g})")
        if explained <= 0:
            log.warning("the linear map of %s explains nothing of unseen trials: more trials, or ridge=null", name)
    to, means = (torch.eye(target_ND.shape[1]), None) if label_N is None else discriminant(unseen, label_N)
    for number, (name, weights) in enumerate(zip(encoder.names, maps, strict=True)):
        size = (unseen[layers == number] @ to).square().sum(1).mean().sqrt().clamp(min=1e-12)
        scale = length / size if encoder.posterior is None else 1.0
        encoder.add_to_readout(name, (weights @ to * scale).to(encoder.readout[number].device))
    if encoder.posterior is not None:
        codes = torch.stack([target_ND[label_N == label][0] for label in label_N.unique()])
        encoder.posterior.set(means, length * codes)
    seen = "" if encoder.filters is None else " (which the filters have seen)"
    log.info("linear maps, R^2 of trials left out%s (strength): %s", seen, ", ".join(said))


@torch.no_grad()
def pooled(encoder: SubjectEncoder, eeg: Tensor, layer: Tensor) -> Tensor:
    """[b, P] what the linear maps read of trials [b, C, T], on the CPU."""
    device = encoder.mixing[0].device
    return frames(encoder.filtered(eeg.to(device), layer.to(device))).cpu()


def class_codes(labels: Tensor, n_classes: int, dim: int, seed: int) -> Tensor:
    """[N, dim] a code for each trial's class: orthonormal where there are no more classes than axes."""
    codes = torch.randn(max(n_classes, dim), dim, generator=generator_at(seed, "class-codes", 0), dtype=torch.float64)
    codes = torch.linalg.qr(codes)[0][:n_classes] if n_classes <= dim else codes / dim**0.5
    return codes.float()[labels]
