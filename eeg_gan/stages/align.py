"""Stage 2: the stage-1 encoder, fine-tuned by the CLIP loss against an open_clip image tower.

Singh & Raman, WACV 2024, section 3.3 (EEGClip). A frozen tower's embeddings are computed once
and kept in the run directory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eeg_gan.augment.eeg import EEGAugmentConfig, draw_and_apply
from eeg_gan.config import UserError, to_dict
from eeg_gan.data.loader import LoaderConfig, Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import any_rank, barrier, from_main, gather, generator_at, own_part, rank, seed_at
from eeg_gan.losses.contrastive import ContrastiveConfig, LogitScale, clip_loss
from eeg_gan.metrics.retrieval import ranks, top_k
from eeg_gan.models.heads import ProjectionHead
from eeg_gan.models.image_tower import ImageTower, TowerConfig, build_tower, tower_digest
from eeg_gan.stages.loading import (
    about_data,
    embed_images,
    encode_split,
    layers_of,
    load_encoder,
    new_encoder,
    open_shards,
    unique_images,
)
from eeg_gan.training import checkpoint, optim, runtime
from eeg_gan.training.inference import draw_by_library, evaluating, over_all
from eeg_gan.training.optim import OptimConfig


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    encoder: str  # run_dir of encode, whose best encoder is fine-tuned
    from_scratch: bool = False  # start from random weights of the same architecture instead
    tower: TowerConfig = field(default_factory=TowerConfig)
    loss: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: EEGAugmentConfig = field(default_factory=EEGAugmentConfig)
    batch: int = 256  # trials in the global batch; each is the negative of the others
    total_images: int = 1_000_000  # trials to train on, over all processes
    evaluate_every: int = 20_000  # trials between two evaluations on the validation split
    checkpoint_every: int = 100_000  # trials between two checkpoints
    select: Literal["top1", "top5", "reciprocal_rank"] = "reciprocal_rank"  # what the best checkpoint is best in
    stop_after: int | None = None  # save and leave with exit code 75 after so many trials
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if self.batch < 2:
            raise ValueError(f"batch must hold a pair and a negative, so it is 2 or more; got {self.batch}")
        if min(self.total_images, self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("total_images, evaluate_every and checkpoint_every count trials, so they are 1 or more")


class Aligner(nn.Module):
    """Both modalities as unit vectors of one space, and the temperature between them."""

    def __init__(self, encoder: nn.Module, projection: nn.Module, scale: nn.Module, tower: nn.Module | None):
        super().__init__()
        self.encoder, self.projection, self.scale, self.tower = encoder, projection, scale, tower

    def forward(self, eeg: Tensor, picture: Tensor, subject: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """eeg [B, C, T]; picture: uint8 images where the tower is trained, else its embeddings [B, E].

        subject [B] numbers the layers of an encoder that has one for each subject.
        """
        embedding = picture if self.tower is None else self.tower(picture)
        return (
            self.encoder(eeg) if subject is None else self.encoder(eeg, subject),
            self.projection(embedding),
            self.scale(),
        )


def run(config: Config) -> None:
    with runtime.start("align", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        if not shards.has_images:
            raise UserError(f"{config.loader.index} has no images, and alignment is with images; stop after encode")
        stage1 = load_encoder(config.encoder, shards)
        tower = build_tower(config.tower)
        files = [config.loader.index, checkpoint.chosen(config.encoder).path / "state.json"]
        rt.inputs(files, shards=shards.digest, encoder=stage1.digest, tower=tower_digest(tower))
        rt.reads(("train", "val"))
        train, val = (Reader(shards, split, config.loader.cache_mb) for split in ("train", "val"))
        pictures = {
            split: Pictures(rt, config, tower, shards, reader) for split, reader in (("train", train), ("val", val))
        }

        torch.manual_seed(seed_at(config.seed, "weights", 0))
        model = build(config, shards, stage1, tower).to(rt.device)
        optimiser = optim.build([p for p in model.parameters() if p.requires_grad], config.optim)
        images, state = checkpoint.resume(rt.run_dir, weights(model), {"optimiser": optimiser})
        best = state.get("best")
        rt.start_log(images)
        rt.confounded(shards.confounded)
        net, optimiser = rt.accelerator.prepare(model, optimiser)
        layers = layers_of(model.encoder, shards, "train")

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                indices = shuffled_at(config.seed, train.n, images, config.batch)
                part = own_part(config.batch)
                with rt.meter.waiting():
                    data = train.batch(indices[part])
                eeg = draw_and_apply(
                    data["eeg"].to(rt.device),
                    generator_at(config.seed, "augment", images),
                    config.augment,
                    part,
                    config.batch,
                )
                draw_by_library(seed_at(config.seed, "dropout", images) + rank())
                shown = pictures["train"].numbers[torch.as_tensor(indices)].to(rt.device)
                subject = None if layers is None else layers[data["index"]].to(rt.device)
                seen = pictures["train"].of(data).to(rt.device)
                loss = step(rt, net, optimiser, (eeg, seen, subject), shown, images)
                images += config.batch
                bar.update(images, f"loss {loss:.3f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                better = False
                if last or runtime.crossed(images, config.batch, config.evaluate_every):
                    figures = from_main(evaluate(model, val, pictures["val"], rt.device))
                    rt.log.scalars(
                        images,
                        {
                            "loss/train (nats)": loss,
                            "scale (1)": float(model.scale().detach()),
                            **{f"val/{name} (0 to 1)": value for name, value in figures.items() if name != "gallery"},
                            **rt.meter.read(),
                        },
                    )
                    better = best is None or figures[config.select] > best[config.select]
                    best = {"images": images, **figures} if better else best
                if last or stop or better or runtime.crossed(images, config.batch, config.checkpoint_every):
                    save(rt, config, model, optimiser, images, best, stage1, shards)
                if stop and not last:
                    rt.leave(images)
        rt.finish(
            f"validation: retrieval top-1 {best['top1']:.3f}, top-5 {best['top5']:.3f} of {best['gallery']:.0f} images",
            {name: value for name, value in best.items() if name != "images"},
            images,
        )


class Pictures:
    """The image side of one split: pictures for a trained tower, cached embeddings for a frozen one."""

    def __init__(self, rt: runtime.Runtime, config: Config, tower: ImageTower, shards: Shards, reader: Reader):
        self.first, self.numbers = unique_images(shards, reader.split)
        self.reader, self.embeddings = reader, None
        if config.tower.frozen:
            name = f"tower-{reader.split}-{tower_digest(tower)[:12]}-{shards.digest[:12]}.safetensors"
            self.embeddings = _cached(rt.run_dir / name, lambda: embed_images(tower, reader, self.first, rt.device))

    def of(self, data: dict) -> Tensor:
        """What the model reads for a batch: embeddings [B, E], or the pictures themselves."""
        return data["image"] if self.embeddings is None else self.embeddings[self.numbers[data["index"]]]


def build(config: Config, shards: Shards, stage1, tower: ImageTower) -> Aligner:
    encoder = stage1.module
    if config.from_scratch:
        encoder = new_encoder(stage1.config, shards, stage1.state.get("subjects", ()))
    projection = ProjectionHead(tower.dim, stage1.config.dim)
    scale = LogitScale(config.loss.temperature, config.loss.learn_temperature)
    return Aligner(encoder.train(), projection, scale, None if config.tower.frozen else tower.requires_grad_(True))


def weights(model: Aligner) -> dict[str, nn.Module]:
    """The networks of a checkpoint by name."""
    named = {"encoder": model.encoder, "projection": model.projection, "scale": model.scale}
    return named | ({"tower": model.tower} if model.tower is not None else {})


def step(rt, net, optimiser, inputs: tuple[Tensor, Tensor, Tensor | None], shown: Tensor, images: int) -> float:
    """One optimiser step; the loss sees the global batch, `shown` [B] names the picture of each of its trials."""
    config: Config = rt.config
    optim.set_learning_rate(optimiser, optim.learning_rate(images, config.optim, config.total_images))
    a, b, scale = net(*inputs)
    loss = clip_loss(gather(a), gather(b), scale, shown if config.loss.same_image else None)
    optimiser.zero_grad()
    rt.accelerator.backward(loss)
    rt.meter.gradients("encoder and head", net)
    optimiser.step()
    return float(loss.detach())


def evaluate(model: Aligner, val: Reader, pictures: Pictures, device: torch.device) -> dict[str, float]:
    """EEG -> image retrieval among the distinct pictures of the validation split."""
    z = encode_split(model.encoder, val, device)
    with evaluating(model) as net, torch.no_grad():
        if pictures.embeddings is None:
            embeddings = over_all(
                lambda b: net.tower(b["image"].to(device)),
                lambda i: val.batch([pictures.first[k] for k in i]),
                len(pictures.first),
                64,
            )
        else:
            embeddings = pictures.embeddings
        gallery = net.projection(embeddings.to(device)).cpu()
    rank_of_true = ranks(z, gallery, pictures.numbers)
    return {
        "top1": float(top_k(rank_of_true, 1).mean()),
        "top5": float(top_k(rank_of_true, 5).mean()),
        "reciprocal_rank": float((1 / (1 + rank_of_true)).mean()),
        "gallery": len(gallery),
    }


def save(rt, config: Config, model: Aligner, optimiser, images: int, best: dict, stage1, shards: Shards) -> None:
    if rt.main:
        state = {
            "encoder": to_dict(stage1.config),
            "tower": to_dict(config.tower),
            "data": about_data(shards),
            "stage1": stage1.digest,
            "best": best,
            **stage1.subjects,
        }
        checkpoint.save_run(rt.run_dir, images, weights(model), {"optimiser": optimiser}, state, config.select)
    barrier()


def _cached(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """Reads a tensor that was computed before, or computes and keeps it; the name holds the digests of its inputs."""
    if any_rank(not path.exists()):
        embeddings = compute()
        if rank() == 0:
            checkpoint.save_tensors(path, {"embeddings": embeddings})
        barrier()
        return embeddings
    return load_file(path)["embeddings"]
