"""The two small networks that the demo trains on its own training images, because it may download none.

The tower stands where a published CLIP tower would; the classifier judges generated pictures, and its distances carry
its name, so that nobody takes them for Inception figures.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.distributed import barrier, seed_at
from eeg_gan.losses.contrastive import clip_loss
from eeg_gan.metrics.detectors import SmallClassifier, augmented, fit_classifier
from eeg_gan.models.image_tower import TINY_TOWER, TowerConfig, build_tower, tower_state
from eeg_gan.ops import computes_bfloat16
from eeg_gan.stages.loading import open_shards, unique_images
from eeg_gan.training import checkpoint, runtime

TEMPERATURE = 0.1


@dataclass(frozen=True)
class JudgeConfig:
    run_dir: str  # where weights.safetensors goes
    loader: LoaderConfig  # the shards
    steps: int = 1200  # of 64 images
    lr: float = 3e-3  # peak of the one-cycle schedule
    seed: int = 0  # of weights and batches


@dataclass(frozen=True)
class TowerTraining:
    run_dir: str  # where model.json and weights.safetensors go
    loader: LoaderConfig  # the shards
    steps: int = 600  # of `batch` images
    batch: int = 64  # images
    lr: float = 1e-3  # peak of the one-cycle schedule
    seed: int = 0  # of weights and batches


def train_judge(config: JudgeConfig) -> None:
    """A classifier of the training images; the headline is its accuracy on validation images."""
    with runtime.start("demo-classifier", config) as rt:
        if rt.done:
            return
        data = {split: _pictures(rt, split) for split in ("train", "val")}
        torch.manual_seed(seed_at(config.seed, "weights", 0))
        model = SmallClassifier(int(data["train"][1].max()) + 1, data["train"][0].shape[-1])
        with rt.bar(config.steps, label="classifier") as bar:

            def after_step(step: int) -> None:
                bar.update(step)
                rt.check_stop()

            half = computes_bfloat16()
            fit_classifier(model, *data["train"], config.steps, 64, config.lr, config.seed, after_step, half)
        with torch.no_grad():
            accuracy = float((model(data["val"][0])[1].argmax(1) == data["val"][1]).float().mean())
        _save(rt, model.state_dict())
        rt.finish(f"the demo's own classifier: accuracy {accuracy:.3f} on validation images")


def train_tower(config: TowerTraining) -> None:
    """An open_clip tower trained to tell classes and single pictures apart under slight changes."""
    with runtime.start("demo-tower", config) as rt:
        if rt.done:
            return
        images, labels = _pictures(rt, "train")
        rt.start_log()
        torch.manual_seed(seed_at(config.seed, "weights", 0))
        tower = build_tower(TowerConfig(model="tiny", frozen=False)).train()
        head = nn.Linear(tower.dim, int(labels.max()) + 1)
        parameters = [*tower.parameters(), *head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=max(config.steps, 2))
        generator = torch.Generator().manual_seed(seed_at(config.seed, "tower", 0))
        half = computes_bfloat16()
        with rt.bar(config.steps, label="tower") as bar:
            for step in range(config.steps):
                picked = torch.randperm(len(images), generator=generator)[: config.batch]
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    views = [tower(augmented(images[picked], generator, shift=0.04, noise=12.0)) for _ in range(2)]
                views = [v.float() for v in views]
                loss = clip_loss(*(F.normalize(v, dim=1) for v in views), scale=1 / TEMPERATURE)
                loss = loss + F.cross_entropy(head(views[0]), labels[picked])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update(step + 1, f"loss {float(loss.detach()):.3f}")
                if runtime.crossed((step + 1) * config.batch, config.batch, 20 * config.batch):
                    rt.log.scalars((step + 1) * config.batch, {"loss/train (nats)": float(loss.detach())})
                rt.check_stop()
        if rt.main:
            checkpoint.write_json(rt.run_dir / "model.json", TINY_TOWER)
        _save(rt, tower_state(tower))
        rt.finish(f"the demo's own image tower: loss {float(loss.detach()):.3f} on {len(images)} training images")


def _pictures(rt: runtime.Runtime, split: str) -> tuple[Tensor, Tensor]:
    """The distinct images of a split, uint8 [M, 3, H, W], and their labels [M]."""
    shards = open_shards(rt.config.loader, (split,))
    rt.reads((split,))
    batch = Reader(shards, split, rt.config.loader.cache_mb, rt.config.loader.workers).batch(
        unique_images(shards, split)[0]
    )
    return batch["image"], batch["label"]


def _save(rt: runtime.Runtime, tensors: dict[str, Tensor]) -> None:
    if rt.main:
        checkpoint.save_tensors(rt.run_dir / "weights.safetensors", tensors)
    barrier()
