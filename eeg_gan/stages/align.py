"""Stage 2: the stage-1 encoder, fine-tuned by the CLIP or SigLIP loss against an image tower.

Singh & Raman, WACV 2024, section 3.3 (EEGClip). A frozen tower's embeddings are computed once and kept beside the run.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from eeg_gan.augment.eeg import EEGAugmentConfig, draw_and_apply
from eeg_gan.config import UserError, to_dict
from eeg_gan.data.loader import LoaderConfig, Reader, shuffled_at
from eeg_gan.data.shards import Shards
from eeg_gan.distributed import barrier, from_main, gather, generator_at, own_part, rank, seed_at
from eeg_gan.losses.contrastive import ContrastiveConfig, contrastive
from eeg_gan.metrics.retrieval import ranks, ranks_of_answers, top_k
from eeg_gan.models.eeg import EncoderConfig, load_pretrained
from eeg_gan.models.image_tower import TowerConfig, build_tower, tower_digest
from eeg_gan.stages import readout
from eeg_gan.stages.aligning import Aligner, Pictures, build, stage1, warn_of_random
from eeg_gan.stages.loading import about_data, encode_split, layers_of, open_shards
from eeg_gan.training import checkpoint, engine, optim, runtime
from eeg_gan.training.engine import EngineConfig
from eeg_gan.training.inference import draw_by_library, evaluating, over_all
from eeg_gan.training.optim import OptimConfig

RATES = ("top1", "top5", "reciprocal_rank", "image_to_eeg_top1")


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    encoder: str | None = None  # run_dir of encode, whose best encoder is fine-tuned; null: a new one from scratch
    from_scratch: bool = False  # with encoder: only its architecture is taken, with random weights
    architecture: EncoderConfig = field(default_factory=EncoderConfig)  # without encoder: what the new one is
    learn: Literal["all", "map"] = (
        "all"  # map: the encoder stays as it is and a linear map behind it learns, to compare
    )
    tower: TowerConfig = field(default_factory=TowerConfig)
    loss: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    ridge: float | None = (
        None  # with encoder.readout: adds ridge regressions on the pictures to the maps, features so long; they stay
    )
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    augment: EEGAugmentConfig = field(default_factory=EEGAugmentConfig)
    batch: int = 256  # trials in the global batch; each is the negative of the others
    micro_batch: int | None = (
        None  # pictures that a trained tower holds at a time, at the price of a second look; null: all of a process
    )
    total_images: int = 1_000_000  # trials to train on, over all processes
    evaluate_every: int = 20_000  # trials between two evaluations on the validation split
    checkpoint_every: int = 100_000  # trials between two checkpoints
    select: Literal["top1", "top5", "reciprocal_rank"] = "reciprocal_rank"  # what the best checkpoint is best in
    stop_after: int | None = None  # save and leave with exit code 75 after so many trials
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if self.batch < 2:
            raise ValueError(f"batch must hold a pair and a negative, so it is 2 or more; got {self.batch}")
        if self.learn == "map" and (self.encoder is None or self.from_scratch):
            raise ValueError("learn=map maps the feature of a trained encoder; set encoder to a run_dir of encode")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.tower.frozen):
            raise ValueError("micro_batch is 1 picture or more, of a tower that learns; set tower.frozen=false")
        if self.ridge is not None and not (self.ridge > 0 and self.tower.frozen and self.learn == "all"):
            raise ValueError("ridge is a length of features, above 0; it needs tower.frozen=true and learn=all")
        if min(self.total_images, self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("total_images, evaluate_every and checkpoint_every count trials, so they are 1 or more")

    def with_less_memory(self, processes: int) -> str:
        now = min(self.micro_batch or self.batch, self.batch // processes)
        if self.tower.frozen or now == 1:
            return "start more processes, among which batch is divided, or take a smaller tower"
        return f"set micro_batch={now // 2}, with which the same is learnt in less memory"


def run(config: Config) -> None:
    with runtime.start("align", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"))
        if not shards.has_images:
            raise UserError(f"{config.loader.index} has no images, and alignment is with images; stop after encode")
        if rt.main:
            warn_of_random(config.tower)
        start, tower = stage1(config.encoder, config.architecture, shards), build_tower(config.tower)
        files = [checkpoint.chosen(config.encoder).path / "state.json"] if config.encoder else []
        rt.inputs([config.loader.index, *files], shards=shards.digest, encoder=start.digest, tower=tower_digest(tower))
        rt.reads(("train", "val"))
        train, val = (Reader(shards, split, config.loader.cache_mb) for split in ("train", "val"))
        pictures = {reader.split: Pictures(rt, tower, reader) for reader in (train, val)}

        torch.manual_seed(seed_at(config.seed, "weights", 0))
        model = build(config, shards, start, tower).to(rt.device)
        optimiser = optim.build([p for p in model.parameters() if p.requires_grad], config.optim)
        images, state = checkpoint.resume(rt.run_dir, model.weights(), {"optimiser": optimiser})
        if images == 0 and config.encoder is None:
            load_pretrained(model.encoder, config.architecture)
        if images == 0 and (config.encoder is None or config.from_scratch):
            readout.fit_filters(model.encoder, train)
        best = state.get("best")
        if images == 0 and config.ridge is not None:
            readout.fit(model.encoder, train, pictures["train"].projected(model.projection), config.ridge)
        rt.start_log(images)
        rt.confounded(shards.confounded)
        net = engine.prepare(rt, model, optimiser)
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
                label = torch.as_tensor(train.labels[indices]).to(rt.device)
                subject = None if layers is None else layers[data["index"]].to(rt.device)
                seen = pictures["train"].of(data).to(rt.device)
                loss = step(rt, net, (eeg, seen, subject), (shown, label), images)
                images += config.batch
                bar.update(images, f"loss {loss:.3f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                better = False
                if last or runtime.crossed(images, config.batch, config.evaluate_every):
                    figures = from_main(net.on_whole(lambda whole: evaluate(whole, val, pictures["val"], rt.device)))
                    rt.log.scalars(
                        images,
                        {
                            "loss/train (nats)": loss,
                            "scale (1)": figures["scale"],
                            **{f"val/{name} (0 to 1)": value for name, value in figures.items() if name in RATES},
                            **rt.meter.read(),
                        },
                    )
                    better = best is None or figures[config.select] > best[config.select]
                    best = {"images": images, **figures} if better else best
                if last or stop or better or runtime.crossed(images, config.batch, config.checkpoint_every):
                    save(rt, config, net, images, best, start, shards)
                if stop and not last:
                    rt.leave(images)
        rt.finish(
            f"validation: retrieval top-1 {best['top1']:.3f}, top-5 {best['top5']:.3f} of {best['gallery']:.0f} images",
            {name: value for name, value in best.items() if name != "images"},
            images,
        )


def step(rt, net, inputs: tuple[Tensor, Tensor, Tensor | None], whole: tuple[Tensor, Tensor], images: int) -> float:
    """One optimiser step; the loss sees the global batch: `whole` numbers the picture [B] and the class [B] of it."""
    config: Config = rt.config
    a, b, scale = net(*inputs)
    loss = contrastive(gather(a), gather(b), scale, config.loss, *whole)
    return net.step(loss, optim.learning_rate(images, config.optim, config.total_images), images)


def evaluate(model: Aligner, val: Reader, pictures: Pictures, device: torch.device) -> dict[str, float]:
    """Retrieval among the distinct pictures of the validation split, and of its trials by picture."""
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
        gallery, scale = net.projection(embeddings.to(device)).cpu(), float(net.scale()[0])
    rank_of_true = ranks(z, gallery, pictures.numbers)
    return {
        "top1": float(top_k(rank_of_true, 1).mean()),
        "top5": float(top_k(rank_of_true, 5).mean()),
        "reciprocal_rank": float((1 / (1 + rank_of_true)).mean()),
        "image_to_eeg_top1": float(top_k(ranks_of_answers(gallery, z, pictures.numbers)[0], 1).mean()),
        "gallery": len(gallery),
        "scale": scale,
    }


def save(rt, config: Config, net, images: int, best: dict, start, shards: Shards) -> None:
    state = {
        "encoder": to_dict(start.config),
        "tower": to_dict(config.tower),
        "data": about_data(shards),
        "stage1": start.digest,
        "best": best,
        **start.subjects,
    }
    with net.whole() as (model, optimiser):
        if rt.main:
            checkpoint.save_run(rt.run_dir, images, model.weights(), {"optimiser": optimiser}, state, config.select)
    barrier()
