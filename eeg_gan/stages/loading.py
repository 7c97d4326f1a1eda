"""What stages read of one another's folders: stages meet through files, and this is where the files are opened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from eeg_gan.config import UserError, differences, from_dict
from eeg_gan.data import features
from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.shards import Shards
from eeg_gan.models.eeg import EncoderConfig, SubjectEncoder, build_encoder
from eeg_gan.models.heads import ClassifierHead, MappedEncoder, ProjectionHead
from eeg_gan.models.image_to_eeg import ImageToEEG, ImageToEEGConfig
from eeg_gan.models.image_tower import ImageTower, TowerConfig, build_tower
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.training import checkpoint
from eeg_gan.training.inference import evaluating, over_all

OF_LABELS = "class labels"  # what features.json says of one-hot vectors; pictures drawn from them were told their class
OF_IMAGES = "images through image2eeg"  # what it says of predicted features


def open_shards(loader: LoaderConfig, splits: tuple[str, ...], streams: bool = False) -> Shards:
    """The prepared data set of a loader's index, with only `splits` open; `streams` says that a stage can stream."""
    if loader.mode == "stream" and not streams:
        raise UserError("loader.mode=stream is for encode; other stages read at random, so they need loader.mode=local")
    return Shards(loader.index, splits=splits, verify="none" if loader.mode == "stream" else loader.verify)


def about_data(shards: Shards) -> dict:
    """What a network must say of the EEG it was fitted on; written into every checkpoint."""
    return {
        "n_chans": len(shards.card.ch_names),
        "n_times": shards.n_times,
        "ch_names": list(shards.card.ch_names),
        "sfreq": shards.preprocessing["sfreq"],
        "preprocessing": shards.preprocessing,
        "class_names": list(shards.card.class_names),
        "split_digest": shards.split_digest,
        "confounded": shards.confounded,
    }


@dataclass
class LoadedEncoder:
    module: nn.Module
    config: EncoderConfig
    digest: str
    state: dict  # the checkpoint's own description

    @property
    def subjects(self) -> dict:
        """What a checkpoint must say of subjects who have a layer; nothing where there are none."""
        return {key: self.state[key] for key in ("subjects", "base_subjects") if key in self.state}


def load_encoder(run_dir: str | Path, shards: Shards | None = None) -> LoadedEncoder:
    """The chosen encoder of an encode or align run; refuses data of another shape or split."""
    found = checkpoint.chosen(run_dir)
    if "encoder" not in found.tensors:
        raise UserError(f"{run_dir} holds no EEG encoder; give the run_dir of encode or align")
    about, config = found.state["data"], from_dict(EncoderConfig, found.state["encoder"], str(found.path))
    if shards is not None:
        same_data(about, about_data(shards), run_dir)
        _none_of_the_base(found.state, shards, run_dir)
    names = about["ch_names"], about["sfreq"], found.state.get("subjects", ())
    module = build_encoder(config, about["n_chans"], about["n_times"], *names)
    checkpoint.restore(module, found.tensors["encoder"], found.path)
    weights = found.tensors["encoder"]
    if "map" in found.tensors:
        module = MappedEncoder(module, config.dim)
        checkpoint.restore(module.map, found.tensors["map"], found.path)
        weights = weights | {f"map.{name}": value for name, value in found.tensors["map"].items()}
    return LoadedEncoder(module, config, checkpoint.tensors_digest(weights), found.state)


def refuse_map(mapped: bool, said: str) -> None:
    """What begins with an align run of learn=map would train, or lose, the map behind its encoder."""
    if mapped:
        raise UserError(f"{said} is a run with learn=map; give the run_dir of encode that it started from")


def load_classifier(run_dir: str | Path, shards: Shards) -> tuple[nn.Module, ClassifierHead]:
    """Encoder and classifier of an encode run with loss=cross_entropy, for the classes of the shards."""
    loaded, found = load_encoder(run_dir, shards), checkpoint.chosen(run_dir)
    names, own = found.state["data"]["class_names"], list(shards.card.class_names)
    if "head" not in found.tensors:
        raise UserError(f"{run_dir} holds no classifier; give a run of encode with loss=cross_entropy")
    if names != own:
        raise UserError(f"{run_dir} tells {', '.join(names[:5])} apart, but the data have {', '.join(own[:5])}")
    head = ClassifierHead(loaded.config.dim, len(names))
    checkpoint.restore(head, found.tensors["head"], found.path)
    return loaded.module, head.eval()


@torch.no_grad()
def class_logits(head: ClassifierHead, z: Tensor) -> Tensor:
    """[N, K] of features z [N, D] on the CPU."""
    return head(z)


def new_encoder(config: EncoderConfig, shards: Shards, subjects: Sequence[str] = ()) -> nn.Module:
    """A new encoder for the shards' windows; `subjects` have a layer each where config asks for it."""
    size = len(shards.card.ch_names), shards.n_times
    return build_encoder(config, *size, shards.card.ch_names, shards.preprocessing["sfreq"], subjects)


def subjects_of(shards: Shards, splits: Sequence[str]) -> tuple[str, ...]:
    """The sorted names of all who have a trial in these splits; a trial without one counts as ""."""
    return tuple(sorted({meta["subject"] or "" for split in splits for meta in shards.metas(split)}))


def with_layers(encoder: nn.Module) -> SubjectEncoder | None:
    """The part of an encoder that has a layer for each subject; None where it has none."""
    inner = encoder.encoder if isinstance(encoder, MappedEncoder) else encoder
    return inner if isinstance(inner, SubjectEncoder) else None


def layers_of(encoder: nn.Module, shards: Shards, split: str) -> Tensor | None:
    """For each trial of a split the number of its subject's layer [N]; None where the encoder has no such layers."""
    encoder = with_layers(encoder)
    if encoder is None:
        return None
    names = subjects_of(shards, (split,))
    number = dict(zip(names, encoder.numbers(names).tolist(), strict=True))
    return torch.tensor([number[meta["subject"] or ""] for meta in shards.metas(split)])


def _none_of_the_base(state: dict, shards: Shards, run_dir: str | Path) -> None:
    """An adapted encoder has seen its first subjects under another split, so none of their trials can be judged."""
    seen = sorted(set(state.get("base_subjects", ())) & set(subjects_of(shards, shards.opened)))
    if seen:
        raise UserError(
            f"{run_dir} was adapted from an encoder that was trained on {', '.join(seen[:5])} under another split, so "
            "their trials may have been trained on; use the run that it was adapted from, or leave these people out"
        )


def same_data(trained: dict, given: dict, run_dir: str | Path, other_split: bool = False) -> None:
    """Refuses data of another shape, rate, preprocessing or, but for `other_split`, division than an encoder's own."""
    for key, cure in (
        ("ch_names", "the electrodes must be the same, in the same order"),
        ("n_times", "windows must have the same length"),
        ("sfreq", "the rate must be the same"),
        ("split_digest", "trained on another split, so its test trials may have been seen; train again on this one"),
    ):
        if trained[key] != given[key] and not (other_split and key == "split_digest"):
            raise UserError(f"{run_dir} was trained with {key} {trained[key]}, but the data have {given[key]}: {cure}")
    configs = (about["preprocessing"].get("config", {}) for about in (trained, given))
    changed = differences(*configs)
    if changed:
        raise UserError(
            f"{run_dir} was trained on EEG that was preprocessed otherwise ({'; '.join(changed)}); "
            "prepare the data as then, or train again on these"
        )


def load_features(run_dir: str | Path, split_digest: str, other: str | Path) -> Features:
    """The features of an embed run; refuses those of another division than `other` (an index, a run_dir) has."""
    known = features.load(run_dir)
    missing = {"splits", "encoder_digest", "split_digest"} - known.meta.keys()
    if missing:
        raise UserError(f"{run_dir}/features.json lacks {', '.join(sorted(missing))}; run embed again")
    if known.meta["split_digest"] != split_digest:
        raise UserError(
            f"{run_dir} was made on another split than {other}, so its test trials may have been trained on; "
            "run embed again on the shards of that one"
        )
    return known


def same_encoder(known: Features, digest: str, run_dir: str | Path, other: str | Path) -> None:
    """Refuses features of another encoder than the one that `other` was made with."""
    if known.meta["encoder_digest"] != digest:
        raise UserError(
            f"{run_dir} holds features of another encoder than {other} was made with, so their axes mean something "
            "else; run embed again with that encoder"
        )


@dataclass
class LoadedAligner:
    encoder: LoadedEncoder
    projection: ProjectionHead
    tower: ImageTower
    tower_config: TowerConfig


def load_aligner(run_dir: str | Path, shards: Shards | None = None) -> LoadedAligner:
    """Encoder, image projection and image tower of an align run."""
    found = checkpoint.chosen(run_dir)
    if "projection" not in found.tensors:
        raise UserError(f"{run_dir} holds no image projection; give the run_dir of align")
    encoder = load_encoder(run_dir, shards)
    tower_config = from_dict(TowerConfig, found.state["tower"], str(found.path))
    tower = build_tower(tower_config)
    if "tower" in found.tensors:
        checkpoint.restore(tower, found.tensors["tower"], found.path)
    projection = ProjectionHead(tower.dim, encoder.config.dim)
    checkpoint.restore(projection, found.tensors["projection"], found.path)
    return LoadedAligner(encoder, projection, tower, tower_config)


def load_generator(run_dir: str | Path, ema: int | None = None, at: int | None = None) -> tuple[Generator, dict]:
    """An averaged generator of a gan run, in evaluation mode and float32, and its checkpoint's description.

    `ema` is the half-life of the average, the run's `ema_half_life` where it is None. `at` says after how many images;
    None takes the chosen checkpoint.
    """
    found = checkpoint.chosen(run_dir, at)
    if "average" not in found.tensors:
        raise UserError(f"{run_dir} holds no generator; give the run_dir of gan")
    lives = found.state.get("ema", [])
    if ema is not None and ema not in lives:
        raise UserError(f"ema={ema}: {run_dir} keeps averages of half-life {', '.join(map(str, lives))}; take one")
    average = "average" if ema is None or ema == lives[0] else f"average-{ema}"
    generator = Generator(**found.state["generator"])
    checkpoint.restore(generator, found.tensors[average], found.path)
    return generator.eval().requires_grad_(False), found.state


def load_image2eeg(run_dir: str | Path) -> tuple[ImageToEEG, TowerConfig, dict]:
    """The regressor of an image2eeg run, the tower that it reads, and its checkpoint's description."""
    found = checkpoint.chosen(run_dir)
    if "regressor" not in found.tensors:
        raise UserError(f"{run_dir} holds no regressor; give the run_dir of image2eeg")
    state, tensors = found.state, found.tensors["regressor"]
    config = from_dict(ImageToEEGConfig, state["regressor"], str(found.path))
    regressor = ImageToEEG(state["embedding_dim"], state["dim"], config, state["n_subjects"])
    checkpoint.restore(regressor, tensors, found.path)
    return regressor.eval(), from_dict(TowerConfig, state["tower"], str(found.path)), state


def encode_split(
    encoder: nn.Module, reader: Reader, device: torch.device, batch: int = 256, trials: Sequence[int] | None = None
) -> Tensor:
    """Unit features [N, D] of every trial of a split, or of `trials` of it, without dropout."""
    trials = range(reader.n) if trials is None else trials
    layers = None if with_layers(encoder) is None else layers_of(encoder, reader.shards, reader.split)

    def forward(b: dict) -> Tensor:
        eeg = b["eeg"].to(device)
        return net(eeg) if layers is None else net(eeg, layers[b["index"]].to(device))

    with evaluating(encoder) as net:
        return over_all(forward, lambda i: reader.batch([trials[k] for k in i]), len(trials), batch)


def keys_of(known: Features, split: str) -> list[str]:
    """The keys of one split, in the order of the features."""
    keys = [key for key, own in zip(known.keys, known.meta["splits"], strict=True) if own == split]
    if not keys:
        raise UserError(f"there are no features of split {split}; run embed with splits that hold it")
    return keys


def read_generated(run_dir: str | Path) -> tuple[list[str], Tensor]:
    """Keys [N] and uint8 images [N, 3, H, W] of a generate run."""
    path = Path(run_dir) / "manifest.json"
    if not path.exists():
        raise UserError(f"{path}: no manifest; run generate with run_dir={run_dir} first")
    rows = json.loads(path.read_text())["images"]
    pictures = [np.asarray(Image.open(path.parent / row["file"]).convert("RGB")) for row in rows]
    return [row["key"] for row in rows], torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def spread(n: int, count: int) -> list[int]:
    """`count` of the numbers 0 .. n - 1, evenly spread, or all where there are no more."""
    return [i * n // count for i in range(count)] if count < n else list(range(n))


def to_uint8(pictures: Tensor) -> Tensor:
    """A generator's float images, nominally in [-1, 1], as uint8."""
    return (pictures * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def unique_images(shards: Shards, split: str) -> tuple[list[int], torch.Tensor]:
    """The trials that show each distinct picture first [M], and for every trial the number of its picture [N]."""
    first: dict[str, int] = {}
    numbers = [first.setdefault(meta["image_sha256"], len(first)) for meta in shards.metas(split)]
    seen: dict[int, int] = {}
    for trial, number in enumerate(numbers):
        seen.setdefault(number, trial)
    return [seen[number] for number in range(len(first))], torch.tensor(numbers)


def embed_images(tower: ImageTower, reader: Reader, trials: list[int], device: torch.device, batch: int = 64) -> Tensor:
    """Tower embeddings [M, E] of the pictures of the given trials."""
    tower = tower.to(device)
    with evaluating(tower) as net:
        return over_all(
            lambda b: net(b["image"].to(device)), lambda i: reader.batch([trials[k] for k in i]), len(trials), batch
        )
