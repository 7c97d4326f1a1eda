"""Images for held-out trials: the condition is the trial's feature, or a shuffled one as a control."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.distributed import barrier, generator_at, rank, world_size
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages.loading import keys_of, load_features, load_generator, same_encoder, spread, to_uint8
from eeg_gan.training import checkpoint, runtime
from eeg_gan.training.log import grid

MEAN_OF = 32  # draws of z behind the mean w of a condition


@dataclass(frozen=True)
class Config:
    run_dir: str  # where images/, grid.png and manifest.json go
    gan: str  # run_dir of gan
    features: str  # run_dir of embed: one condition per trial
    split: Literal["train", "val", "test"] = "test"  # whose trials are drawn; no label is read
    condition: Literal["own", "shuffled"] = "own"  # shuffled gives each trial another trial's feature, as a control
    per_trial: int = 1  # images per trial, each from its own z
    psi: float = 1.0  # truncation towards the mean w of the trial's own condition; 1 is none, less is more typical
    limit: int | None = None  # at most so many trials, evenly spread; null takes all
    batch: int = 64  # images at a time
    seed: int = 0  # of z and of the shuffle

    def __post_init__(self):
        if self.per_trial < 1 or self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError("per_trial, batch and limit count things, so they are 1 or more")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more; got seed={self.seed}")


def run(config: Config) -> None:
    with runtime.start("generate", config) as rt:
        if rt.done:
            return
        generator, state = load_generator(config.gan)
        known = conditions_for(config, generator, state)
        keys, conditions = chosen_trials(config, known)
        files = [checkpoint.chosen(config.gan).path / "state.json", Path(config.features) / "features.json"]
        digest = checkpoint.tensors_digest(generator.state_dict())
        rt.inputs(files, gan=digest, features=known.meta["encoder_digest"])
        rt.reads((config.split,))
        rt.start_log()
        rt.confounded(state["data"]["confounded"])
        folder = rt.run_dir / "images"
        folder.mkdir(exist_ok=True)
        generator.to(rt.device)
        total = len(keys) * config.per_trial
        with rt.bar(total) as bar:
            for numbers in rounds(total, config.batch):
                for number, picture in zip(numbers, draw(generator, config, numbers, conditions), strict=True):
                    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{name(keys, config, number)}.png")
                bar.update(min(total, numbers[-1] + 1) if numbers else total)
                rt.check_stop()
        barrier()
        if rt.main:
            _write_manifest(rt.run_dir, config, keys, state, digest)
            _write_grid(rt, [folder / f"{name(keys, config, n)}.png" for n in spread(total, 64)])
        rt.finish(f"{total} images of {config.split} trials ({config.condition} EEG)")


def rounds(total: int, batch: int) -> list[list[int]]:
    """The numbers of this rank's pictures by batches; as many on every rank, for ranks agree after each (maybe [])."""
    own, count = range(rank(), total, world_size()), -(-total // (world_size() * batch))
    return [list(own[i * batch : (i + 1) * batch]) for i in range(count)]


def conditions_for(config: Config, generator: Generator, state: dict) -> Features:
    """The features, which must be what the generator was trained on: division, length, and encoder of the EEG."""
    known = load_features(config.features, state["data"]["split_digest"], config.gan)
    dim = known.features.shape[1]
    if dim != generator.c_dim:
        raise UserError(
            f"{config.features} holds features of length {dim}, but {config.gan} was trained on length "
            f"{generator.c_dim}; give the features that it was trained on"
        )
    if known.meta.get("of") != "images through image2eeg":  # those imitate the encoder that the regressor learned from
        same_encoder(known, state["encoder_digest"], config.features, config.gan)
    return known


def chosen_trials(config: Config, known: Features) -> tuple[list[str], Tensor]:
    """The keys of the split's trials and the condition of each."""
    keys = keys_of(known, config.split)
    conditions = known.rows(keys)
    if config.condition == "shuffled":
        order = torch.randperm(len(keys), generator=generator_at(config.seed, "shuffle", 0))
        conditions = conditions[order.roll(1)][order.argsort()]  # along one cycle, so that no trial keeps its own
    if config.limit is not None and config.limit < len(keys):
        picked = spread(len(keys), config.limit)
        return [keys[i] for i in picked], conditions[picked]
    return keys, conditions


def draw(generator: Generator, config: Config, numbers: list[int], conditions: Tensor) -> Tensor:
    """uint8 [B, 3, H, W]; an image's z depends on its number alone, so any machine layout gives the same picture."""
    if not numbers:
        return torch.empty(0, 3, generator.resolution, generator.resolution, dtype=torch.uint8)
    device = next(generator.parameters()).device
    z = torch.stack([torch.randn(generator.z_dim, generator=generator_at(config.seed, "z", n)) for n in numbers])
    c = conditions[[n // config.per_trial for n in numbers]]
    with torch.no_grad():
        ws = generator.mapping(z.to(device), c.to(device))
        if config.psi != 1:
            ws = mean_ws(generator, c.to(device), config.seed).lerp(ws, config.psi)
        return to_uint8(generator.synthesis(ws, "const")).cpu()


def mean_ws(generator: Generator, c: Tensor, seed: int) -> Tensor:
    """The mean over z of each condition's ws [B, num_ws, w_dim].

    Truncation towards the global mean would pull all conditions together; this one keeps them apart.
    """
    z = torch.randn(MEAN_OF, generator.z_dim, generator=generator_at(seed, "truncation", 0)).to(c)
    ws = generator.mapping(z.repeat(len(c), 1), c.repeat_interleave(MEAN_OF, 0))
    return ws.unflatten(0, (len(c), MEAN_OF)).mean(1)


def name(keys: list[str], config: Config, number: int) -> str:
    return f"{keys[number // config.per_trial]}-{number % config.per_trial}"


def _write_manifest(run_dir: Path, config: Config, keys: list[str], state: dict, digest: str) -> None:
    checkpoint.write_json(
        run_dir / "manifest.json",
        {
            "gan": config.gan,
            "gan_digest": digest,
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


def _write_grid(rt: runtime.Runtime, files: list[Path]) -> None:
    """Read back from disk, for other ranks have drawn some of them."""
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    whole = grid(torch.from_numpy(pictures).permute(0, 3, 1, 2), 8)
    Image.fromarray(whole.permute(1, 2, 0).numpy()).save(rt.run_dir / "grid.png")
    rt.log.pictures(0, "generated/evenly spread trials", whole)
