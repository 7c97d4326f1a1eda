"""A trained encoder for new people: each gets a layer over electrodes of their own, and nothing else learns."""

from dataclasses import dataclass

import torch
from torch import nn

from eeg_gan.config import UserError, differences, from_dict, to_dict
from eeg_gan.data.shards import Shards
from eeg_gan.models.eeg import EncoderConfig, SubjectEncoder
from eeg_gan.models.heads import ClassifierHead
from eeg_gan.stages.loading import about_data, new_encoder, refuse_map, same_data, subjects_of
from eeg_gan.training import checkpoint


@dataclass
class Adapted:
    encoder: SubjectEncoder
    head: nn.Module | None
    config: EncoderConfig
    base_subjects: tuple[str, ...]


def base_digest(run_dir: str) -> str:
    """Tells the weights of the encoder that is adapted."""
    return checkpoint.tensors_digest(checkpoint.chosen(run_dir).tensors.get("encoder", {}))


def adapted(run_dir: str, shards: Shards, config: EncoderConfig, with_head: bool) -> Adapted:
    """The encoder of `run_dir` with a new layer, the mean of the old ones, for each subject of the training split.

    Layers of old subjects, the encoder and its classifier are frozen.
    """
    found = checkpoint.chosen(run_dir)
    refuse_map("map" in found.tensors, f"adapt={run_dir}")
    known = tuple(found.state.get("subjects", ()))
    if not known or "encoder" not in found.tensors:
        raise UserError(f"adapt={run_dir} holds no layers of subjects; give a run of encode with encoder.subjects=true")
    base = from_dict(EncoderConfig, found.state["encoder"], str(found.path))
    if config not in (base, EncoderConfig()):
        other = "; ".join(differences(to_dict(base), to_dict(config)))
        raise UserError(f"adapt takes the encoder of {run_dir} as it is, but keys of encoder differ: {other}")
    same_data(found.state["data"], about_data(shards), run_dir, other_split=True)
    new = _new_subjects(shards, known, run_dir)
    encoder = new_encoder(base, shards, (*known, *new))
    start = {}
    kinds = ("mixing",) + ("readout",) * base.readout + ("filters.0", "filters.1", "filters.2") * base.matched
    for layers in kinds:
        mean = torch.stack([found.tensors["encoder"][f"{layers}.{i}"] for i in range(len(known))]).mean(0)
        start |= {f"{layers}.{len(known) + i}": mean for i in range(len(new))}
    checkpoint.restore(encoder, found.tensors["encoder"] | start, found.path)
    encoder.freeze_all_but(new)
    return Adapted(encoder, _head(found, shards, base, run_dir) if with_head else None, base, known)


def _new_subjects(shards: Shards, known: tuple[str, ...], run_dir: str) -> tuple[str, ...]:
    old = sorted(set(known) & set(subjects_of(shards, ("train", "val"))))
    if old:
        raise UserError(
            f"{', '.join(old[:5])} of {shards.path} already taught {run_dir}, under another split perhaps; prepare the "
            "new people alone"
        )
    return subjects_of(shards, ("train",))


def _head(found: checkpoint.Checkpoint, shards: Shards, base: EncoderConfig, run_dir: str) -> nn.Module:
    names, own = found.state["data"]["class_names"], list(shards.card.class_names)
    if "head" not in found.tensors or names != own:
        raise UserError(
            f"{run_dir} has no classifier for {', '.join(own[:5])}, so loss=cross_entropy cannot adapt it; take "
            "loss=triplet"
        )
    head = ClassifierHead(base.dim, len(names))
    checkpoint.restore(head, found.tensors["head"], found.path)
    return head.requires_grad_(False)
