"""Images for held-out trials: the condition is the trial's feature, or a shuffled one as a control."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from eeg_gan.data import features
from eeg_gan.distributed import barrier, generator_at, rank, world_size
from eeg_gan.stages.loading import keys_of, load_generator
from eeg_gan.training import checkpoint, runtime
from eeg_gan.training.log import grid


@dataclass(frozen=True)
class Config:
    run_dir: str  # where images/, grid.png and manifest.json go
    gan: str  # run_dir of gan
    features: str  # run_dir of embed: one condition per trial
    split: Literal["train", "val", "test"] = "test"  # whose trials are drawn; no label is read
    condition: Literal["own", "shuffled"] = "own"  # shuffled gives each trial another trial's feature, as a control
    per_trial: int = 1  # images per trial, each from its own z
    psi: float = 1.0  # truncation towards the mean w; 1 is none
    limit: int | None = None  # at most so many trials, evenly spread; null takes all
    batch: int = 64  # images at a time
    seed: int = 0  # of z and of the shuffle

    def __post_init__(self):
        if self.per_trial < 1 or self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError("per_trial, batch and limit count things, so they are 1 or more")


def run(config: Config) -> None:
    with runtime.start("generate", config) as rt:
        if rt.done:
            return
        generator, state = load_generator(config.gan)
        known = features.load(config.features)
        keys, conditions = chosen_trials(config, known)
        rt.inputs(gan=checkpoint.tensors_digest(generator.state_dict()), features=known.meta["encoder_digest"])
        rt.reads((config.split,))
        folder = rt.run_dir / "images"
        folder.mkdir(exist_ok=True)
        generator.to(rt.device)
        total, images = len(keys) * config.per_trial, []
        own = [n for n in range(total) if n % world_size() == rank()]
        with rt.bar(total) as bar:
            for start in range(0, len(own), config.batch):
                numbers = own[start : start + config.batch]
                images += list(draw(generator, config, numbers, conditions))
                for number, picture in zip(numbers, images[-len(numbers) :], strict=True):
                    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{name(keys, config, number)}.png")
                bar.update(start * world_size())
                rt.check_stop()
        barrier()
        if rt.main:
            _write_manifest(rt.run_dir, config, keys, state)
            _write_grid(rt.run_dir, images)
        rt.finish(f"{total} images of {config.split} trials ({config.condition} EEG)")


def chosen_trials(config: Config, known: features.Features) -> tuple[list[str], Tensor]:
    """The keys of the split's trials and the condition of each."""
    keys = keys_of(known, config.split)
    conditions = known.rows(keys)
    if config.condition == "shuffled":
        order = torch.randperm(len(keys), generator=generator_at(config.seed, "shuffle", 0))
        conditions = conditions[order.roll(1)][order.argsort()]  # along one cycle, so that no trial keeps its own
    if config.limit is not None and config.limit < len(keys):
        picked = [i * len(keys) // config.limit for i in range(config.limit)]
        return [keys[i] for i in picked], conditions[picked]
    return keys, conditions


def draw(generator, config: Config, numbers: list[int], conditions: Tensor) -> Tensor:
    """uint8 [B, 3, H, W]; an image's z depends on its number alone, so any machine layout gives the same picture."""
    device = next(generator.parameters()).device
    z = torch.stack([torch.randn(generator.z_dim, generator=generator_at(config.seed, "z", n)) for n in numbers])
    c = conditions[[n // config.per_trial for n in numbers]]
    with torch.no_grad():
        images = generator(z.to(device), c.to(device), noise="const", psi=config.psi)
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu()


def name(keys: list[str], config: Config, number: int) -> str:
    return f"{keys[number // config.per_trial]}-{number % config.per_trial}"


def _write_manifest(run_dir: Path, config: Config, keys: list[str], state: dict) -> None:
    checkpoint.write_json(
        run_dir / "manifest.json",
        {
            "gan": config.gan,
            "condition": config.condition,
            "psi": config.psi,
            "seed": config.seed,
            "confounded": state["data"]["confounded"],
            "images": [
                {"key": keys[n // config.per_trial], "number": n, "file": f"images/{name(keys, config, n)}.png"}
                for n in range(len(keys) * config.per_trial)
            ],
        },
    )


def _write_grid(run_dir: Path, images: list[Tensor]) -> None:
    shown = torch.stack(images[:: max(1, len(images) // 64)][:64])
    Image.fromarray(grid(shown, 8).permute(1, 2, 0).numpy()).save(run_dir / "grid.png")
