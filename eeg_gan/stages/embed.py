"""One feature vector per trial: of its EEG by an encoder, or of its image by the image2eeg regressor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data import features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.shards import Shards
from eeg_gan.models.image_tower import build_tower
from eeg_gan.stages.loading import embed_images, encode_split, load_encoder, load_image2eeg, open_shards, unique_images
from eeg_gan.training import checkpoint, runtime
from eeg_gan.training.inference import over_all


@dataclass(frozen=True)
class Config:
    run_dir: str  # where features.safetensors and features.json go
    loader: LoaderConfig  # where the shards are and how they are read
    encoder: str | None = None  # run_dir of encode or align: features of the EEG
    image2eeg: str | None = None  # run_dir of image2eeg: features that the images would evoke
    splits: tuple[str, ...] = ("train", "val", "test")  # which splits to embed; no label is read

    def __post_init__(self):
        if (self.encoder is None) == (self.image2eeg is None):
            raise ValueError("give exactly one of encoder and image2eeg")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits names each split to embed once; got {list(self.splits)}")


def run(config: Config) -> None:
    with runtime.start("embed", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, config.splits)
        forward, digest = _from_images(config, rt) if config.image2eeg else _from_eeg(config, rt, shards)
        network = checkpoint.chosen(config.image2eeg or config.encoder).path / "state.json"
        rt.inputs([config.loader.index, network], shards=shards.digest, network=digest)
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
            _write(rt, config, shards, parts, digest)
        rt.finish(f"{sum(map(len, parts.values()))} features of length {next(iter(parts.values())).shape[1]}")


def _from_eeg(config: Config, rt: runtime.Runtime, shards):
    loaded = load_encoder(config.encoder, shards)
    return (lambda reader: encode_split(loaded.module.to(rt.device), reader, rt.device)), loaded.digest


def _from_images(config: Config, rt: runtime.Runtime):
    regressor, tower_config, state = load_image2eeg(config.image2eeg)
    tower = build_tower(tower_config)

    def forward(reader: Reader):
        if not reader.shards.has_images:
            raise UserError(f"{config.loader.index} has no images, so image2eeg has nothing to read")
        first, numbers = unique_images(reader.shards, reader.split)
        embeddings = embed_images(tower, reader, first, rt.device)
        z = over_all(
            lambda e: regressor.to(rt.device)(e["x"].to(rt.device)), lambda i: {"x": embeddings[i]}, len(first), 256
        )
        return z[numbers]

    return forward, checkpoint.tensors_digest(regressor.state_dict())


def _write(rt: runtime.Runtime, config: Config, shards: Shards, parts: dict[str, Tensor], digest: str) -> None:
    keys = [key for split in config.splits for key in shards.keys(split)]
    about = {
        "encoder_digest": digest,
        "split_digest": shards.split_digest,
        "of": "images through image2eeg" if config.image2eeg else "EEG",
        "splits": [split for split in config.splits for _ in range(shards.n(split))],
        "confounded": shards.confounded,
    }
    features.save(rt.run_dir, torch.cat([parts[split] for split in config.splits]), keys, about)
