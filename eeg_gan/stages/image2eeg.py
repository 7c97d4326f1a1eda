"""Stage 4: a regressor from images into the EEG space ("transform unseen images into the EEG space").

Singh & Raman, WACV 2024, section 3.4. The target of an image is the EEG feature of each trial that showed it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from eeg_gan.config import UserError, to_dict
from eeg_gan.data.features import Features
from eeg_gan.data.loader import LoaderConfig, Reader, shuffled_at
from eeg_gan.distributed import barrier, own_part, rank, seed_at
from eeg_gan.models.image_to_eeg import ImageToEEG, ImageToEEGConfig
from eeg_gan.models.image_tower import TowerConfig, build_tower, tower_digest
from eeg_gan.stages.loading import about_data, embed_images, load_features, open_shards, unique_images
from eeg_gan.training import checkpoint, optim, runtime
from eeg_gan.training.inference import draw_by_library, evaluating
from eeg_gan.training.optim import OptimConfig


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    features: str  # run_dir of embed: the EEG features to be predicted
    tower: TowerConfig = field(default_factory=TowerConfig)
    regressor: ImageToEEGConfig = field(default_factory=ImageToEEGConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: int = 256  # trials in the global batch
    total_images: int = 200_000  # trials to train on, over all processes
    evaluate_every: int = 10_000  # trials between two evaluations on the validation split
    checkpoint_every: int = 100_000  # trials between two checkpoints
    stop_after: int | None = None  # save and leave with exit code 75 after so many trials
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if self.batch < 1 or self.total_images < 1:
            raise ValueError("batch and total_images count trials, so they are 1 or more")
        if min(self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("evaluate_every and checkpoint_every count trials, so they are 1 or more")


@dataclass
class Pairs:
    """The image embedding, the subject and the EEG feature of every trial of a split."""

    embedding_NE: Tensor
    subject_N: Tensor
    target_ND: Tensor


def run(config: Config) -> None:
    with runtime.start("image2eeg", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        if not shards.has_images:
            raise UserError(f"{config.loader.index} has no images, and this stage reads images; leave it out")
        known = load_features(config.features, shards.split_digest, config.loader.index)
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
        model = ImageToEEG(sizes["embedding_dim"], sizes["dim"], config.regressor, sizes["n_subjects"]).to(rt.device)
        optimiser = optim.build(model.parameters(), config.optim)
        images, state = checkpoint.resume(rt.run_dir, {"regressor": model}, {"optimiser": optimiser})
        best = state.get("best")
        rt.start_log(images)
        rt.confounded(shards.confounded)
        net, optimiser = rt.accelerator.prepare(model, optimiser)

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                with rt.meter.waiting():
                    order = shuffled_at(config.seed, len(train.target_ND), images, config.batch)
                indices = order[own_part(config.batch)]
                draw_by_library(seed_at(config.seed, "dropout", images) + rank())
                loss = step(rt, net, optimiser, train, torch.as_tensor(indices), images)
                images += config.batch
                bar.update(images, f"loss {loss:.3f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                better = False
                if last or runtime.crossed(images, config.batch, config.evaluate_every):
                    cosine = evaluate(model, val)
                    figures = {"loss/train (1 - cosine)": loss, "val/cosine (-1 to 1)": cosine}
                    rt.log.scalars(images, {**figures, **rt.meter.read()})
                    better = best is None or cosine > best["cosine"]
                    best = {"images": images, "cosine": cosine} if better else best
                if last or stop or better or runtime.crossed(images, config.batch, config.checkpoint_every):
                    if rt.main:
                        state = {
                            "regressor": to_dict(config.regressor),
                            "tower": to_dict(config.tower),
                            **sizes,
                            "data": about_data(shards),
                            "best": best,
                        }
                        checkpoint.save_run(
                            rt.run_dir, images, {"regressor": model}, {"optimiser": optimiser}, state, "cosine"
                        )
                    barrier()
                if stop and not last:
                    rt.leave(images)
        rt.finish(
            f"validation: cosine of predicted and measured feature {best['cosine']:.3f}",
            {"cosine": best["cosine"]},
            images,
        )


def pairs(rt: runtime.Runtime, shards, split: str, tower, known: Features) -> Pairs:
    reader = Reader(shards, split, rt.config.loader.cache_mb, rt.config.loader.workers)
    first, numbers = unique_images(shards, split)
    embeddings = embed_images(tower, reader, first, rt.device).cpu()
    subjects = torch.tensor([reader.subjects.index(meta["subject"] or "") for meta in shards.metas(split)])
    return Pairs(embeddings[numbers], subjects, known.rows(shards.keys(split)))


def step(rt, net, optimiser, train: Pairs, indices: Tensor, images: int) -> float:
    """One step on 1 - cosine, the squared error of unit vectors up to a factor."""
    config: Config = rt.config
    optim.set_learning_rate(optimiser, optim.learning_rate(images, config.optim, config.total_images))
    z = net(train.embedding_NE[indices].to(rt.device), train.subject_N[indices].to(rt.device))
    loss = 1 - (z * train.target_ND[indices].to(rt.device)).sum(1).mean()
    optimiser.zero_grad()
    rt.accelerator.backward(loss)
    rt.meter.gradients("regressor", net)
    optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def evaluate(model: ImageToEEG, val: Pairs) -> float:
    """Mean cosine between predicted and measured features of unseen images, for the mean subject."""
    device = next(model.parameters()).device
    with evaluating(model) as net:
        return float((net(val.embedding_NE.to(device)).cpu() * val.target_ND).sum(1).mean())
