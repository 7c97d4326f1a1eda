"""Where the conditions of generated images come from: features, EEG, images, the means of classes, one trial's file."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.data.loader import Reader
from eeg_gan.distributed import generator_at
from eeg_gan.models.image_tower import build_tower
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.loading import (
    OF_IMAGES,
    LoadedEncoder,
    embed_images,
    encode_split,
    keys_of,
    load_encoder,
    load_features,
    load_image2eeg,
    open_shards,
    same_encoder,
    spread,
    with_layers,
)
from eeg_gan.training import checkpoint
from eeg_gan.training.inference import evaluating, over_all

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# What each source must be given; images takes a folder of them, or the split of an index.
NEEDS = {
    "features": ("features",),
    "eeg": ("loader", "encoder"),
    "images": ("image2eeg",),
    "class_means": ("features", "loader"),
    "trial": ("trial", "encoder"),
}


@dataclass
class Source:
    """Named conditions, of which those that are drawn are computed."""

    keys: list[str]  # [N]
    conditions: Callable[[list[int]], Tensor]  # numbers -> [len, D]
    files: list[str | Path] = field(default_factory=list)  # descriptions and pictures whose change makes the run anew
    digests: dict[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] = ()  # which were opened
    of: str = "EEG"  # what the conditions were made of


def open_source(config: Any, generator: Generator, state: dict, device: torch.device) -> Source:
    """The source that the config names; refuses what the generator was not trained on."""
    source = SOURCES[config.source](config, generator, state, device)
    names = [file_name(key) for key in source.keys]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two conditions are called {twice}, but keys name files; rename one of them")
    return source


def chosen(config: Any, source: Source) -> tuple[list[str], Tensor]:
    """The keys of the trials to draw and the condition of each, its own or, as a control, another trial's."""
    n = len(source.keys)
    own = whose = torch.arange(n)
    if config.condition == "shuffled":
        if n < 2:
            raise UserError("condition=shuffled gives each trial another one's condition, but there is only one trial")
        order = torch.randperm(n, generator=generator_at(config.seed, "shuffle", 0))
        whose = order.roll(1)[order.argsort()]  # along one cycle, so that no trial keeps its own
    if config.keys is not None:
        own = torch.tensor(places(source.keys, config.keys))
    elif config.limit is not None:
        own = torch.tensor(spread(n, config.limit))
    return [source.keys[i] for i in own], source.conditions(whose[own].tolist())


def places(keys: list[str], wanted: tuple[str, ...]) -> list[int]:
    absent = [key for key in wanted if key not in keys]
    if absent:
        raise UserError(f"keys: there is no {absent[0]} here; the keys are {', '.join(keys[:4])} ...")
    return [keys.index(key) for key in wanted]


def file_name(key: str) -> str:
    """A key as part of a file's name: names of classes may hold anything."""
    return re.sub(r"[^\w.+-]+", "_", key)


def from_features(config: Any, generator: Generator, state: dict, device: torch.device) -> Source:
    known = features_of(config, generator, state)
    keys = keys_of(known, config.split)
    rows = known.rows(keys)
    files = [Path(config.features) / "features.json"]
    digests, of = {"features": known.meta["encoder_digest"]}, known.meta.get("of", "EEG")
    return Source(keys, lambda i: rows[i], files, digests, (config.split,), of)


def from_class_means(config: Any, generator: Generator, state: dict, device: torch.device) -> Source:
    """The mean feature of each class's training trials, as long as a training trial's is on average."""
    known, shards = features_of(config, generator, state), open_shards(config.loader, ("train",))
    if shards.split_digest != state["data"]["split_digest"]:
        raise UserError(f"{config.loader.index} is another division of the trials than {config.gan} was trained on")
    rows, labels = known.rows(shards.keys("train")), torch.from_numpy(shards.labels("train"))
    present = labels.unique().tolist()
    means = torch.stack([rows[labels == label].mean(0) for label in present])
    means = F.normalize(means) * rows.norm(dim=1).mean()
    names = [shards.card.class_names[label] for label in present]
    files = [Path(config.features) / "features.json", config.loader.index]
    of = f"means of classes, {known.meta.get('of', 'EEG')}"
    return Source(names, lambda i: means[i], files, {"features": known.meta["encoder_digest"]}, ("train",), of)


def from_eeg(config: Any, generator: Generator, state: dict, device: torch.device) -> Source:
    """Trials of prepared shards, encoded when they are drawn."""
    shards = open_shards(config.loader, (config.split,))
    encoder = _encoder(config, state, shards)
    reader = Reader(shards, config.split, config.loader.cache_mb, config.loader.workers)
    keys = shards.keys(config.split)

    def conditions(picked: list[int]) -> Tensor:
        return encode_split(encoder.module.to(device), reader, device, trials=picked)

    return Source(keys, conditions, [config.loader.index], {"features": encoder.digest}, (config.split,))


def from_trial(config: Any, generator: Generator, state: dict, device: torch.device) -> Source:
    """One .npy of [electrodes, samples] as shards hold it: filtered, cut and scaled."""
    encoder = _encoder(config, state)
    eeg = _read_trial(Path(config.trial), encoder.state["data"], config.encoder)
    if layered := with_layers(encoder.module):
        layered.numbers([""])  # says that the mean layer serves

    def conditions(picked: list[int]) -> Tensor:
        with evaluating(encoder.module.to(device)) as net, torch.no_grad():
            return net(eeg[None].to(device)).float().cpu()[[0] * len(picked)]

    return Source([Path(config.trial).stem], conditions, [config.trial], {"features": encoder.digest})


def from_images(config: Any, generator: Generator, state: dict, device: torch.device) -> Source:
    """The EEG features that unseen pictures would evoke, of a folder or of an index's split, by image2eeg."""
    regressor, tower_config, about = load_image2eeg(config.image2eeg)
    _same_regressor(config, generator, state, about)
    tower = build_tower(tower_config)
    if config.images is not None:
        keys, embed, files, splits = _folder(config, generator, tower, device)
    else:
        keys, embed, files, splits = _split_images(config, tower, device)

    def conditions(picked: list[int]) -> Tensor:
        embeddings = embed(picked)
        with evaluating(regressor.to(device)) as net:
            return over_all(lambda e: net(e["x"].to(device)), lambda i: {"x": embeddings[i]}, len(picked), 256)

    digests = {"features": checkpoint.tensors_digest(regressor.state_dict())}
    return Source(keys, conditions, files, digests, splits, OF_IMAGES)


SOURCES = {
    "features": from_features,
    "eeg": from_eeg,
    "images": from_images,
    "class_means": from_class_means,
    "trial": from_trial,
}


def class_names_of(config: Any, keys: list[str]) -> list[str]:
    """The class of every drawn trial; the labels of the test split are for evaluate and audit alone."""
    if config.source == "class_means":
        return keys
    shards = open_shards(config.loader, (config.split,))
    known = {meta["key"]: shards.card.class_names[meta["label"]] for meta in shards.metas(config.split)}
    absent = [key for key in keys if key not in known]
    if absent:
        raise UserError(f"grid=classes: {config.loader.index} has no trial {absent[0]} in split {config.split}")
    return [known[key] for key in keys]


def read_image(path: str | Path, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W]: the middle of a picture file, in the proportions of `size` (H, W), resized to it."""
    try:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); give a PNG or a JPEG") from None
    (width, height), (rows, columns) = picture.size, size
    scale = min(width / columns, height / rows)
    inside = max(1, round(columns * scale)), max(1, round(rows * scale))
    left, top = (width - inside[0]) // 2, (height - inside[1]) // 2
    picture = picture.crop((left, top, left + inside[0], top + inside[1]))
    picture = picture.resize((columns, rows), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def features_of(config: Any, generator: Generator, state: dict) -> Features:
    """The features, which must be what the generator was trained on: division, length, and encoder of the EEG."""
    known = load_features(config.features, state["data"]["split_digest"], config.gan)
    dim = known.features.shape[1]
    if dim != generator.c_dim:
        raise UserError(
            f"{config.features} holds features of length {dim}, but {config.gan} was trained on length "
            f"{generator.c_dim}; give the features that it was trained on"
        )
    if known.meta.get("of") != OF_IMAGES:  # those imitate the encoder that the regressor learned from
        same_encoder(known, state["encoder_digest"], config.features, config.gan)
    return known


def _encoder(config: Any, state: dict, shards=None) -> LoadedEncoder:
    loaded = load_encoder(config.encoder, shards)
    if loaded.digest != state["encoder_digest"]:
        raise UserError(
            f"{config.encoder} is another encoder than the one whose features {config.gan} was trained on; give the "
            "run_dir that was given to embed"
        )
    return loaded


def _read_trial(path: Path, about: dict, encoder: str) -> Tensor:
    try:
        eeg = np.load(path, allow_pickle=False).astype(np.float32)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .npy of one trial") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a .npy of numbers ({error})") from None
    shape = (about["n_chans"], about["n_times"])
    if eeg.shape != shape or not np.isfinite(eeg).all():
        raise UserError(
            f"{path} holds {'x'.join(map(str, eeg.shape))} values, but {encoder} reads {shape[0]} electrodes x "
            f"{shape[1]} samples at {about['sfreq']:g} Hz, all finite; cut it to that"
        )
    scale, deviation = about["preprocessing"].get("scale", {}).get("kind"), float(eeg.std())
    if scale in ("robust", "zscore") and not 0.02 < deviation < 50:
        raise UserError(
            f"{path} has a standard deviation of {deviation:.3g}, but prepared trials lie near 1, so it is raw; give "
            "one as shards hold it, after filter and scaling, or run prepare on the recording"
        )
    return torch.from_numpy(eeg)


def _same_regressor(config: Any, generator: Generator, state: dict, about: dict) -> None:
    if about["dim"] != generator.c_dim:
        raise UserError(
            f"{config.image2eeg} predicts features of length {about['dim']}, but {config.gan} was trained on length "
            f"{generator.c_dim}; train it on the features of that gan"
        )
    record = Path(config.image2eeg) / "run.json"
    learned = json.loads(record.read_text()).get("inputs", {}).get("features") if record.exists() else None
    if about["data"]["split_digest"] != state["data"]["split_digest"] or learned not in (None, state["encoder_digest"]):
        raise UserError(
            f"{config.image2eeg} learned from another split or encoder than {config.gan}; train both on the same "
            "shards and features"
        )


def _folder(config: Any, generator: Generator, tower, device: torch.device):
    found = sorted(p for p in Path(config.images).rglob("*") if p.suffix.lower() in IMAGE_FILES)
    if not found:
        raise UserError(f"images={config.images}: no image ({', '.join(IMAGE_FILES)}) lies there; name their folder")
    keys = [file_name(str(path.relative_to(config.images).with_suffix(""))) for path in found]

    def embed(picked: list[int]) -> Tensor:
        with evaluating(tower.to(device)) as net:
            read = lambda i: {"x": torch.stack([read_image(found[picked[k]], generator.size) for k in i])}  # noqa: E731
            return over_all(lambda b: net(b["x"].to(device)), read, len(picked), 64)

    return keys, embed, [config.images, *found], ()


def _split_images(config: Any, tower, device: torch.device):
    shards = open_shards(config.loader, (config.split,))
    if not shards.has_images:
        raise UserError(f"{config.loader.index} has no images, so image2eeg has nothing to read")
    reader = Reader(shards, config.split, config.loader.cache_mb, config.loader.workers)
    embed = lambda picked: embed_images(tower, reader, picked, device)  # noqa: E731
    return shards.keys(config.split), embed, [config.loader.index], (config.split,)
