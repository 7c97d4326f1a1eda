"""One feature vector per trial: of its EEG by an encoder, of its image by the image2eeg regressor, or of its class.

One-hot vectors of classes are the comparison that tells what EEG adds, and the condition of pictures without EEG. They
are the only features that are made of labels, of the test split too where `splits` names it: what is drawn from them
was told its class. features.json says `of: class labels`, and generate and evaluate pass the word on.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data import features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.shards import Shards
from eeg_gan.models.eeg.montage import Absent
from eeg_gan.models.image_tower import build_tower
from eeg_gan.stages.loading import (
    OF_IMAGES,
    OF_LABELS,
    encode_split,
    load_encoder,
    load_image2eeg,
    open_shards,
    spread,
)
from eeg_gan.stages.tower_cache import pictures_of
from eeg_gan.stages.transferring import transferred
from eeg_gan.training import checkpoint, runtime
from eeg_gan.training.inference import over_all

SHOWN = 1000  # features on the projector's page, with a thumbnail each


@dataclass(frozen=True)
class Config:
    run_dir: str  # where features.safetensors and features.json go
    loader: LoaderConfig  # where the shards are and how they are read
    encoder: str | None = None  # run_dir of encode or align: features of the EEG
    other_data: bool = False  # the encoder was trained on another data set; electrodes are mapped by name
    absent: Absent = "refuse"  # other_data: electrodes that these data lack; interpolate: splines over the others
    image2eeg: str | None = None  # run_dir of image2eeg: features that the images would evoke
    classes: bool = False  # one-hot vectors of the trials' classes instead; these read labels, of test too
    splits: tuple[str, ...] = ("train", "val", "test")  # which splits to embed

    def __post_init__(self):
        if [self.encoder is not None, self.image2eeg is not None, self.classes].count(True) != 1:
            raise ValueError("give exactly one of encoder, image2eeg and classes=true")
        if self.other_data and self.encoder is None:
            raise ValueError("other_data is about an encoder of EEG; name one, or set other_data=false")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits names each split to embed once; got {list(self.splits)}")


def run(config: Config) -> None:
    with runtime.start("embed", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, config.splits)
        forward, digest, about = _source(config, rt, shards)
        network = config.image2eeg or config.encoder
        files = [checkpoint.chosen(network).path / "state.json"] if network else []
        rt.inputs([config.loader.index, *files], shards=shards.digest, network=digest)
        rt.start_log()
        rt.confounded(shards.confounded)
        rt.reads(config.splits)
        parts = {}
        with rt.bar(sum(shards.n(split) for split in config.splits)) as bar:
            done = 0
            for split in config.splits:
                parts[split] = forward(Reader(shards, split, config.loader.cache_mb, config.loader.workers))
                bar.update(done := done + shards.n(split))
                rt.check_stop()
        if rt.main:
            _write(rt, config, shards, parts, {"encoder_digest": digest, **about})
            _show(rt, shards, parts)
        rt.finish(f"{sum(map(len, parts.values()))} features of length {next(iter(parts.values())).shape[1]}")


def _source(config: Config, rt: runtime.Runtime, shards: Shards):
    """What makes the features of a split, a digest of it, and what features.json says of it."""
    if config.classes:
        return _from_classes(shards)
    return _from_images(config, rt) if config.image2eeg else _from_eeg(config, rt, shards)


def _from_classes(shards: Shards):
    names = shards.card.class_names

    def forward(reader: Reader) -> Tensor:
        return F.one_hot(torch.from_numpy(reader.labels).long(), len(names)).float()

    return forward, hashlib.sha256(json.dumps(["one-hot", *names]).encode()).hexdigest(), {"of": OF_LABELS}


def _from_eeg(config: Config, rt: runtime.Runtime, shards):
    other = config.other_data
    loaded = transferred(config.encoder, shards, config.absent) if other else load_encoder(config.encoder, shards)
    return (lambda reader: encode_split(loaded.module.to(rt.device), reader, rt.device)), loaded.digest, {"of": "EEG"}


def _from_images(config: Config, rt: runtime.Runtime):
    regressor, tower_config, state = load_image2eeg(config.image2eeg)
    tower = build_tower(tower_config)

    def forward(reader: Reader):
        if not reader.shards.has_images:
            raise UserError(f"{config.loader.index} has no images, so image2eeg has nothing to read")
        embeddings, numbers = pictures_of(tower, reader, rt.run_dir, rt.device)
        z = over_all(
            lambda e: regressor.to(rt.device)(e["x"].to(rt.device)),
            lambda i: {"x": embeddings[i]},
            len(embeddings),
            256,
        )
        return z[numbers]

    about = {"of": OF_IMAGES, "target_digest": state.get("target_digest")}  # of the encoder whose features it predicts
    return forward, checkpoint.tensors_digest(regressor.state_dict()), about


def _show(rt: runtime.Runtime, shards: Shards, parts: dict[str, Tensor]) -> None:
    """Up to SHOWN features on TensorBoard's projector page, of the validation split: no labels of test are read."""
    split = next((name for name in ("val", "train") if name in parts), None)
    if split is None:
        return
    reader = Reader(shards, split)
    picked = spread(reader.n, SHOWN)
    rows = []
    for i in picked:
        meta = shards.metas(split)[i]
        rows.append([shards.card.class_names[meta["label"]], meta["subject"] or "", str(meta["stimulus"] or "")])
    pictures = reader.batch(picked)["image"] if shards.has_images else None
    rt.log.embedding(parts[split][picked], ("class", "subject", "stimulus"), rows, pictures)


def _write(rt: runtime.Runtime, config: Config, shards: Shards, parts: dict[str, Tensor], about: dict) -> None:
    keys = [key for split in config.splits for key in shards.keys(split)]
    about = {
        **about,
        "split_digest": shards.split_digest,
        "splits": [split for split in config.splits for _ in range(shards.n(split))],
        "confounded": shards.confounded,
    }
    features.save(rt.run_dir, torch.cat([parts[split] for split in config.splits]), keys, about)
