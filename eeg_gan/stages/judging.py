"""A detector at work: what it sees in real pictures, kept between runs, and in generated ones, on any processes."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eeg_gan import __version__
from eeg_gan.data.loader import Reader
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import any_rank, barrier, generator_at, is_main
from eeg_gan.metrics import detectors, perceptual
from eeg_gan.metrics.detectors import CIFAR_CLASSES, DetectorConfig
from eeg_gan.metrics.generated import OF_TRAINING, Seen, Sets, linear_probe
from eeg_gan.models.image_tower import TowerConfig, build_tower
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.loading import unique_images
from eeg_gan.training import checkpoint, kept
from eeg_gan.training.inference import over_all

VERSION = 1  # of what is kept; raise it when a detector here changes
Fetch = Callable[[list[int]], Tensor]


def open_detector(config: DetectorConfig) -> nn.Module:
    """The detector; what is random in it is the same each time, and no random stream of the caller's moves."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = build_tower(TowerConfig(config.model, config.weights)) if config.name == "tower" else None
        return detectors.build_detector(config, tower).requires_grad_(False)


def cache_folder(given: str | None, run_dir: str | Path) -> Path:
    """Where features of real pictures are kept: beside the run unless told otherwise."""
    return Path(run_dir).parent / "detector-cache" if given is None else Path(given)


class Judge:
    """A detector whose logits are named by class, so that data and detector may order classes differently.

    Only the data's classes compete. Where it has no logits for them, a linear probe on its features tells them apart.
    """

    def __init__(
        self, config: DetectorConfig, names: Sequence[str] | None, class_names: Sequence[str], device: torch.device
    ):
        self.config, self.class_names, self.device = config, class_names, device
        self.detector, self.name = open_detector(config).to(device), detectors.shown_name(config)
        with torch.no_grad():
            _, logits = self.detector(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device))
        self.n_logits = logits.shape[1]
        self.columns = None
        if self.n_logits and not (
            names is None and config.name == "resnet56" and set(class_names) - set(CIFAR_CLASSES)
        ):
            self.columns = detectors.logit_columns(config, self.n_logits, names, class_names)

    @torch.no_grad()
    def look(self, fetch: Fetch, n: int, batch: int = 128) -> Seen:
        """Features and logits of pictures 0 .. n - 1; `fetch` gives uint8 [B, 3, H, W]; ranks share the work."""

        def forward(pictures: dict) -> Tensor:
            return torch.cat(self.detector(pictures["x"].to(self.device)), 1)

        both = over_all(forward, lambda i: {"x": fetch(i)}, n, batch).numpy()
        features, logits = np.split(both, [both.shape[1] - self.n_logits], axis=1)
        return Seen(features, logits)

    @property
    def has_maps(self) -> bool:
        return hasattr(self.detector, "maps")

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """[B] squared distance of pictures: of feature maps place by place, or of features where there are no maps."""
        if self.has_maps:
            return perceptual.map_distance(self.detector.maps(a), self.detector.maps(b))
        return (self.detector(a)[0] - self.detector(b)[0]).square().sum(1)

    @torch.no_grad()
    def pair_distances(self, fetch: Fetch, pairs: Sequence[tuple[int, int]], batch: int = 64) -> np.ndarray | None:
        """[P] distances of feature maps; None where the detector has none."""
        if not self.has_maps or not pairs:
            return None

        def forward(numbers: dict) -> Tensor:
            sides = zip(*(pairs[i] for i in numbers["x"]), strict=True)
            return self.apart(*(fetch(list(side)).to(self.device) for side in sides))[:, None]

        return over_all(forward, lambda i: {"x": i}, len(pairs), batch)[:, 0].numpy()

    def sets(self, real: Seen, train: Seen, seed: int) -> Sets:
        """Held-out and training pictures, and what says the class of others."""
        if self.columns is None:
            probe = functools.cache(lambda: linear_probe(train, len(self.class_names)))  # fitted when first asked
            return Sets(real, real, train, lambda seen: probe()(seen), "probe_accuracy", seed)
        return Sets(real, real, train, lambda seen: seen.logits[:, self.columns].argmax(1), seed=seed)

    def asks_training(self, metrics: Sequence[str]) -> bool:
        """Whether any of these figures needs training pictures, of which there may be many to look at."""
        return bool({*OF_TRAINING, "nearest"} & set(metrics)) or self.columns is None

    def digest(self) -> str:
        """What tells this detector, on this kind of device, from any other."""
        own = self.config.weights if self.config.name == "torchscript" else None
        weights = checkpoint.tensors_digest(self.detector.state_dict()) if own is None else checkpoint.file_digest(own)
        told = [VERSION, __version__, self.config.name, self.config.size, self.config.model, self.device.type, weights]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def look_at_real(judge: Judge, reader: Reader, folder: Path) -> Seen:
    """Each distinct picture of a split once, with its class; read from `folder` where it was seen before.

    What is kept is found by the digests of the pictures and of the detector, so that it cannot be that of others.
    """
    shards: Shards = reader.shards
    first, _ = unique_images(shards, reader.split)
    metas = shards.metas(reader.split)
    told = judge.digest() + "".join(metas[trial]["image_sha256"] for trial in first)
    path = folder / f"{judge.name}-{hashlib.sha256(told.encode()).hexdigest()}.safetensors"
    seen = _read(path, len(first))
    if any_rank(seen is None):
        seen = judge.look(lambda i: reader.batch([first[k] for k in i])["image"], len(first))
        if is_main():
            _write(path, seen)
        barrier()
    assert seen is not None
    seen.labels = reader.labels[first]
    return seen


@torch.no_grad()
def path_lengths(judge: Judge, g: Generator, conditions: Tensor, seed: int, batch: int = 64) -> np.ndarray:
    """[P] lengths, in the detector's distance, of paths between two z of each condition [P, D]."""

    def lengths(numbers: dict) -> Tensor:
        c = conditions[numbers["x"]].to(judge.device)
        ends = (draws(seed, f"evaluate-path-{end}", numbers["x"], g.z_dim).to(judge.device) for end in "ab")
        ws, other = (g.mapping(z, c) for z in ends)
        return perceptual.path_lengths(ws, other, synthesised, judge.apart)[:, None]

    def synthesised(ws: Tensor) -> Tensor:  # not rounded: the steps are small
        return g.synthesis(ws, "const") * 127.5 + 128

    return over_all(lengths, lambda i: {"x": i}, len(conditions), batch)[:, 0].numpy()


def draws(seed: int, purpose: str, numbers: list[int], size: int) -> Tensor:
    """[B, size] normal vectors; each depends on its number alone."""
    return torch.stack([torch.randn(size, generator=generator_at(seed, purpose, n)) for n in numbers])


def class_pairs(labels: np.ndarray, most: int = 1000) -> list[tuple[int, int]]:
    """Pairs of pictures of one class, each picture in one pair."""
    order = np.argsort(labels, kind="stable")
    pairs = [(int(a), int(b)) for a, b in zip(order[::2], order[1::2], strict=False) if labels[a] == labels[b]]
    return pairs[:: -(-len(pairs) // most) or 1]


def _read(path: Path, n: int) -> Seen | None:
    """What is kept of `n` pictures, or None."""
    tensors = kept.read(path, "the pictures are looked at again")
    if tensors is None or len(tensors["features"]) != n:
        return None
    return Seen(tensors["features"].numpy(), tensors["logits"].numpy())


def _write(path: Path, seen: Seen) -> None:
    tensors = {"features": torch.from_numpy(seen.features), "logits": torch.from_numpy(seen.logits)}
    kept.write(path, tensors, "the pictures will be looked at again next time")
