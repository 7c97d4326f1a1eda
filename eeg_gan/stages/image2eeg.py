"""Stage 4: a regressor from images into the EEG space ("transform unseen images into the EEG space").

Singh & Raman, WACV 2024, section 3.4. The target of an image is the EEG feature of each trial that showed it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from eeg_gan.config import UserError, to_dict
from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader, shuffled_at
from eeg_gan.distributed import barrier, from_main, gather, own_part, rank, seed_at
from eeg_gan.losses.contrastive import ContrastiveConfig, contrastive, logit_scale
from eeg_gan.metrics.embedding import kmeans_accuracy
from eeg_gan.metrics.retrieval import ranks, top_k
from eeg_gan.models.image_to_eeg import ImageToEEG, ImageToEEGConfig
from eeg_gan.models.image_tower import TowerConfig, build_tower, tower_digest
from eeg_gan.stages.aligning import warn_of_random
from eeg_gan.stages.loading import about_data, load_features, open_shards, unique_images
from eeg_gan.stages.tower_cache import pictures_of
from eeg_gan.training import checkpoint, engine, optim, runtime
from eeg_gan.training.engine import EngineConfig
from eeg_gan.training.inference import draw_by_library, evaluating
from eeg_gan.training.optim import OptimConfig

UNIT = {"cosine": "1 - cosine", "mse": "1", "contrastive": "nats"}  # of the losses
RANGE = {"cosine": "-1 to 1"}  # of validation figures that are no shares


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    features: str  # run_dir of embed: the EEG features to be predicted
    tower: TowerConfig = field(default_factory=TowerConfig)
    regressor: ImageToEEGConfig = field(default_factory=ImageToEEGConfig)
    loss: Literal["cosine", "mse", "contrastive"] = "cosine"  # mse is the paper's; contrastive tells pictures apart
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    batch: int = 256  # trials in the global batch
    total_images: int = 200_000  # trials to train on, over all processes
    evaluate_every: int = 10_000  # trials between two evaluations on the validation split
    checkpoint_every: int = 100_000  # trials between two checkpoints
    select: Literal["cosine", "top1", "kmeans_accuracy"] = "cosine"  # what the best checkpoint is best in
    stop_after: int | None = None  # save and leave with exit code 75 after so many trials
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if self.batch < 1 or self.total_images < 1:
            raise ValueError("batch and total_images count trials, so they are 1 or more")
        if self.loss == "contrastive" and self.batch < 2:
            raise ValueError("loss=contrastive needs a pair and a negative, so batch is 2 or more")
        if min(self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("evaluate_every and checkpoint_every count trials, so they are 1 or more")


@dataclass
class Pairs:
    """The image embedding, the subject and the EEG feature of every trial of a split; its picture and its class."""

    embedding_NE: Tensor
    subject_N: Tensor
    target_ND: Tensor
    picture_N: Tensor
    label_N: Tensor
    first: list[int]  # the trial that shows each distinct picture first


class Regressor(nn.Module):
    """The regressor and, for the contrastive loss, its temperature."""

    def __init__(self, regressor: ImageToEEG, scale: nn.Module | None):
        super().__init__()
        self.regressor, self.scale = regressor, scale

    def forward(self, embedding: Tensor, subject: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.regressor(embedding, subject), None if self.scale is None else self.scale()

    def weights(self) -> dict[str, nn.Module]:
        """The networks of a checkpoint by name; later stages read `regressor` alone."""
        return {"regressor": self.regressor} | ({} if self.scale is None else {"scale": self.scale})


def run(config: Config) -> None:
    with runtime.start("image2eeg", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        if not shards.has_images:
            raise UserError(f"{config.loader.index} has no images, and this stage reads images; leave it out")
        known = load_features(config.features, shards.split_digest, config.loader.index)
        if rt.main:
            warn_of_random(config.tower)
        tower = build_tower(config.tower)
        files = [config.loader.index, Path(config.features) / "features.json"]
        rt.inputs(files, shards=shards.digest, features=known.meta["encoder_digest"], tower=tower_digest(tower))
        rt.reads(("train", "val"))
        train, val = (pairs(rt, shards, split, tower, known) for split in ("train", "val"))

        torch.manual_seed(seed_at(config.seed, "weights", 0))
        sizes = {
            "embedding_dim": train.embedding_NE.shape[1],
            "dim": train.target_ND.shape[1],
            "n_subjects": int(train.subject_N.max()) + 1,
        }
        model = build(config, sizes).to(rt.device)
        optimiser = optim.build([p for p in model.parameters() if p.requires_grad], config.optim)
        images, state = checkpoint.resume(rt.run_dir, model.weights(), {"optimiser": optimiser})
        best = state.get("best")
        rt.start_log(images)
        rt.confounded(shards.confounded)
        net = engine.prepare(rt, model, optimiser)

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                with rt.meter.waiting():
                    indices = torch.as_tensor(shuffled_at(config.seed, len(train.target_ND), images, config.batch))
                draw_by_library(seed_at(config.seed, "dropout", images) + rank())
                loss = step(rt, net, train, indices, images)
                images += config.batch
                bar.update(images, f"loss {loss:.3f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                better = False
                if last or runtime.crossed(images, config.batch, config.evaluate_every):
                    figures = from_main(net.on_whole(lambda whole: evaluate(whole.regressor, val, config.seed)))
                    shown = {
                        f"val/{name} ({'-1 to 1' if name == 'cosine' else '0 to 1'})": value
                        for name, value in figures.items()
                    }
                    rt.log.scalars(images, {f"loss/train ({UNIT[config.loss]})": loss, **shown, **rt.meter.read()})
                    better = best is None or figures[config.select] > best[config.select]
                    best = {"images": images, **figures} if better else best
                if last or stop or better or runtime.crossed(images, config.batch, config.checkpoint_every):
                    save(rt, net, images, best, sizes, shards, known)
                if stop and not last:
                    rt.leave(images)
        rt.finish(
            f"validation: cosine of predicted and measured feature {best['cosine']:.3f}, "
            f"picture found {best['top1']:.3f}, k-means accuracy {best['kmeans_accuracy']:.3f}",
            {name: value for name, value in best.items() if name != "images"},
            images,
        )


def build(config: Config, sizes: dict[str, int]) -> Regressor:
    regressor = ImageToEEG(sizes["embedding_dim"], sizes["dim"], config.regressor, sizes["n_subjects"])
    return Regressor(regressor, logit_scale(config.contrastive) if config.loss == "contrastive" else None)


def pairs(rt: runtime.Runtime, shards, split: str, tower, known: Features) -> Pairs:
    reader = Reader(shards, split, rt.config.loader.cache_mb, rt.config.loader.workers)
    embeddings, numbers = pictures_of(tower, reader, rt.run_dir, rt.device)
    subjects = torch.tensor([reader.subjects.index(meta["subject"] or "") for meta in shards.metas(split)])
    labels, first = torch.as_tensor(reader.labels), unique_images(shards, split)[0]
    return Pairs(embeddings[numbers], subjects, known.rows(shards.keys(split)), numbers, labels, first)


def step(rt, net, train: Pairs, indices: Tensor, images: int) -> float:
    """One optimiser step on this rank's part of the global batch, whose trials `indices` [B] numbers."""
    config: Config = rt.config
    own = indices[own_part(len(indices))]
    z, scale = net(train.embedding_NE[own].to(rt.device), train.subject_N[own].to(rt.device))
    loss = loss_of(config, z, train.target_ND[own].to(rt.device), scale, train, indices)
    return net.step(loss, optim.learning_rate(images, config.optim, config.total_images), images)


def loss_of(config: Config, z: Tensor, target: Tensor, scale: Tensor | None, train: Pairs, indices: Tensor) -> Tensor:
    """Predicted z [b, D] against measured features [b, D]; `indices` [B] numbers the trials of the global batch.

    Of unit vectors the squared error is 2 / D times 1 - cosine: the two differ in what a learning rate means.
    """
    if config.loss == "mse":
        return (z - target).square().mean()
    if config.loss == "cosine":
        return 1 - (z * target).sum(1).mean()
    whole = train.picture_N[indices].to(z.device), train.label_N[indices].to(z.device)
    return contrastive(gather(z), gather(target), scale, config.contrastive, *whole)


@torch.no_grad()
def evaluate(model: ImageToEEG, val: Pairs, seed: int) -> dict[str, float]:
    """Predicted features of unseen pictures, for the mean subject, against measured ones.

    cosine: the mean over trials. top1: how often a trial's picture is the nearest of all. kmeans_accuracy: the paper's
    measure, on predicted features.
    """
    device = next(model.parameters()).device
    with evaluating(model) as net:
        z = net(val.embedding_NE[val.first].to(device)).cpu()
    target, labels = val.target_ND.numpy(), val.label_N[val.first].numpy()
    classes = len(np.unique(labels))
    return {
        "cosine": float((z[val.picture_N] * val.target_ND).sum(1).mean()),
        "top1": float(top_k(ranks(target, z.numpy(), val.picture_N.numpy()), 1).mean()),
        "kmeans_accuracy": kmeans_accuracy(z.numpy(), labels, classes, seed)[0] if len(z) >= classes else 0.0,
    }


def save(rt, net, images: int, best: dict, sizes: dict, shards, known: Features) -> None:
    config: Config = rt.config
    state = {
        "regressor": to_dict(config.regressor),
        "tower": to_dict(config.tower),
        **sizes,
        "data": about_data(shards),
        "target_digest": known.meta["encoder_digest"],
        "best": best,
    }
    with net.whole() as (model, optimiser):
        if rt.main:
            checkpoint.save_run(rt.run_dir, images, model.weights(), {"optimiser": optimiser}, state, config.select)
    barrier()
