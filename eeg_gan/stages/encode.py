"""Stage 1: an EEG encoder by triplet loss, by supervised contrast, or by cross-entropy for the paper's comparison.

Singh & Raman, WACV 2024, section 3.1. Selection is on the validation split alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from eeg_gan.augment.eeg import EEGAugmentConfig, blend, draw_and_apply
from eeg_gan.config import UserError, differences, to_dict
from eeg_gan.data.loader import LoaderConfig, Partners, Reader, balanced_at
from eeg_gan.data.shards import Shards
from eeg_gan.data.stream import Held, Stream, listed
from eeg_gan.distributed import barrier, from_main, gather, generator_at, own_part, rank, seed_at
from eeg_gan.losses.supervised import SupervisedContrastiveConfig, supervised_contrastive
from eeg_gan.losses.triplet import TripletConfig, cross_entropy, triplet
from eeg_gan.metrics.embedding import clusters, knn_accuracy, linear_svm, matched_accuracy, nmi_ari
from eeg_gan.models.eeg import EncoderConfig, SubjectEncoder, load_pretrained
from eeg_gan.models.heads import ClassifierHead, MappedEncoder
from eeg_gan.stages import readout
from eeg_gan.stages.adapting import adapted, base_digest
from eeg_gan.stages.loading import (
    about_data,
    class_logits,
    encode_split,
    layers_of,
    load_encoder,
    new_encoder,
    open_shards,
    refuse_map,
    subjects_of,
)
from eeg_gan.training import checkpoint, engine, optim, runtime
from eeg_gan.training.engine import EngineConfig
from eeg_gan.training.inference import draw_by_library
from eeg_gan.training.optim import OptimConfig

LOSS_UNIT = {"triplet": "1", "supervised_contrastive": "nats", "cross_entropy": "nats"}


@dataclass(frozen=True)
class Config:
    run_dir: str  # the run: its checkpoints, log and config; the same command again continues it
    loader: LoaderConfig  # where the shards are and how they are read
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapt: str | None = (
        None  # run_dir of encode with encoder.subjects: only layers of new subjects learn, few trials do
    )
    start_from: str | None = (
        None  # run_dir of encode or align whose encoder's weights this one starts from, all of them trainable
    )
    loss: Literal["triplet", "supervised_contrastive", "cross_entropy"] = (
        "triplet"  # cross_entropy is the paper's supervised comparison
    )
    triplet: TripletConfig = field(default_factory=TripletConfig)
    supervised_contrastive: SupervisedContrastiveConfig = field(default_factory=SupervisedContrastiveConfig)
    ridge: float | None = (
        None  # with encoder.readout: maps are ridge regressions on classes and stay; features so long beside 1; null: 0
    )
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    augment: EEGAugmentConfig = field(default_factory=EEGAugmentConfig)
    mix: float = 0.0  # blend each trial with up to this much of another of its class (and subject, if they have layers)
    classes_per_batch: int = 16  # P; fewer where the data have fewer classes
    trials_per_class: int = 8  # K; the global batch is P x K trials
    total_images: int = 2_000_000  # trials to train on, over all processes
    evaluate_every: int = 20_000  # trials between two evaluations on the validation split
    checkpoint_every: int = 100_000  # trials between two checkpoints
    select: Literal["kmeans_accuracy", "knn_accuracy", "head_accuracy"] = (
        "kmeans_accuracy"  # what the best checkpoint is best in, on validation; head: cross_entropy's own classifier
    )
    stop_after: int | None = None  # save and leave with exit code 75 after so many trials
    seed: int = 0  # of every random draw

    def __post_init__(self):
        if self.classes_per_batch < 2 or self.trials_per_class < 2:
            raise ValueError("a triplet needs classes_per_batch >= 2 and trials_per_class >= 2")
        if not 0 <= self.mix <= 1:
            raise ValueError(
                f"mix is the weight of a second trial beside 1 of the first, so it lies in [0, 1]; got {self.mix}"
            )
        if self.select == "head_accuracy" and self.loss != "cross_entropy":
            raise ValueError("select=head_accuracy asks for a classifier, which only loss=cross_entropy trains")
        if self.start_from and self.adapt:
            raise ValueError("start_from trains all of an encoder, adapt only layers of new subjects; give one of them")
        if self.mix and self.loader.mode == "stream":
            raise ValueError("mix needs partners of the same class, which a stream cannot fetch; set mix=0")
        if (self.encoder.subjects or self.adapt) and self.loader.mode == "stream":
            raise ValueError("layers of subjects need trials that are known beforehand; set loader.mode=local")
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError(
                f"ridge is the length of a feature beside 1 of the encoder's, so above 0; got {self.ridge}"
            )
        if self.ridge is not None and (not self.encoder.readout or self.adapt or self.start_from):
            raise ValueError(
                "ridge fits linear maps of a new encoder's subjects; set encoder.readout=true, and neither adapt nor "
                "start_from"
            )
        if self.encoder.posterior and self.ridge is None and not (self.adapt or self.start_from):
            raise ValueError("encoder.posterior is fitted behind the maps that ridge fits; set ridge, 3 say")
        if min(self.total_images, self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("total_images, evaluate_every and checkpoint_every count trials, so they are 1 or more")


class Encoder(nn.Module):
    """The encoder and, for cross-entropy, its classifier."""

    def __init__(self, encoder: nn.Module, head: nn.Module | None, config: EncoderConfig, base: tuple[str, ...] = ()):
        super().__init__()
        self.encoder, self.head, self.config = encoder, head, config
        self.base_subjects = base  # of the run that is adapted

    def forward(self, eeg: Tensor, subject: Tensor | None = None) -> Tensor:
        """eeg [B, C, T]; subject [B] numbers the layers, for encoders that have them."""
        z = self.encoder(eeg) if subject is None else self.encoder(eeg, subject)
        return z if self.head is None else self.head(z)


def run(config: Config) -> None:
    with runtime.start("encode", config) as rt:
        if rt.done:
            return
        shards = open_shards(config.loader, ("train", "val"), streams=True)
        base = {key: base_digest(run) for key, run in begun_from(config).items()}
        rt.inputs([config.loader.index], shards=shards.digest, **base)
        rt.reads(("train", "val"))
        train, val = (reader(config, shards, split) for split in ("train", "val"))
        classes = min(config.classes_per_batch, count_classes(shards, train))
        batch = classes * config.trials_per_class

        torch.manual_seed(seed_at(config.seed, "weights", 0))
        model = build(config, shards).to(rt.device)
        optimiser = optim.build([p for p in model.parameters() if p.requires_grad], config.optim)
        images, state = checkpoint.resume(rt.run_dir, weights(model), {"optimiser": optimiser})
        if images == 0 and not begun_from(config):
            load_pretrained(model.encoder, config.encoder)
            readout.fit_filters(model.encoder, train)
            if config.ridge is not None:
                codes = readout.class_codes(train.labels, len(shards.card.class_names), config.encoder.dim, config.seed)
                labels = torch.as_tensor(train.labels) if config.encoder.matched else None
                readout.fit(model.encoder, train, codes, config.ridge, labels)
        best = state.get("best")
        rt.start_log(images)
        rt.confounded(shards.confounded)
        net = engine.prepare(rt, model, optimiser)
        part, layers = own_part(batch), layers_of(model.encoder, shards, "train")
        batches = (streamed if config.loader.mode == "stream" else balanced)(
            config, shards, train, classes, images, layers
        )

        with rt.bar(config.total_images, images) as bar:
            while images < config.total_images:
                with rt.meter.waiting():
                    found = next(batches)
                eeg, labels, indices = (x.to(rt.device) for x in found)
                eeg = draw_and_apply(eeg, generator_at(config.seed, "augment", images), config.augment, part, batch)
                draw_by_library(seed_at(config.seed, "dropout", images) + rank())
                subject = None if layers is None else layers[indices.cpu()].to(rt.device)
                loss = step(rt, net, eeg, subject, labels, part, images)
                images += batch
                bar.update(images, f"loss {loss:.3f}")

                last, stop = images >= config.total_images, rt.must_stop(images)
                better = False
                if last or runtime.crossed(images, batch, config.evaluate_every):
                    figures = from_main(net.on_whole(lambda whole: evaluate(whole, train, val, rt.device, config.seed)))
                    rt.log.scalars(
                        images,
                        {
                            f"loss/train ({LOSS_UNIT[config.loss]})": loss,
                            **{f"val/{k} (0 to 1)": v for k, v in figures.items()},
                            **rt.meter.read(),
                        },
                    )
                    better = best is None or figures[config.select] > best[config.select]
                    best = {"images": images, **figures} if better else best
                if last or stop or better or runtime.crossed(images, batch, config.checkpoint_every):
                    save(rt, config, net, images, best, shards)
                if stop and not last:
                    rt.leave(images)
        rt.finish(
            f"validation: k-means accuracy {best['kmeans_accuracy']:.3f}, kNN {best['knn_accuracy']:.3f}, "
            f"linear SVM {best['svm_accuracy']:.3f}",
            {name: value for name, value in best.items() if name != "images"},
            images,
        )


def begun_from(config: Config) -> dict[str, str]:
    """The runs whose weights this one begins with, by the key that names them."""
    given = {"adapt": config.adapt, "start_from": config.start_from}
    return {key: run for key, run in given.items() if run is not None}


def build(config: Config, shards: Shards) -> Encoder:
    if config.adapt is not None:
        found = adapted(config.adapt, shards, config.encoder, config.loss == "cross_entropy")
        return Encoder(found.encoder, found.head, found.config, found.base_subjects)
    own = config.encoder
    if config.start_from is None:
        encoder = new_encoder(own, shards, subjects_of(shards, ("train",)) if own.subjects else ())
    else:
        begun = load_encoder(config.start_from, shards)
        refuse_map(isinstance(begun.module, MappedEncoder), f"start_from={config.start_from}")
        if own not in (begun.config, EncoderConfig()):
            other = "; ".join(differences(to_dict(begun.config), to_dict(own)))
            raise UserError(f"start_from={config.start_from} has another encoder: {other}; leave encoder out")
        encoder, own = begun.module, begun.config
    if config.ridge is not None:
        readout.freeze(encoder)
    head = ClassifierHead(own.dim, len(shards.card.class_names)) if config.loss == "cross_entropy" else None
    return Encoder(encoder, head, own)


def reader(config: Config, shards: Shards, split: str) -> Reader | Held:
    """A split for evaluation: all of it, or of a stream as much as fits into loader.cache_mb."""
    loader = config.loader
    if loader.mode == "local":
        return Reader(shards, split, loader.cache_mb, loader.workers)
    held = Held(listed(shards, split, loader.stream), shards.form, loader.stream, loader.cache_mb)
    if len(set(held.labels.tolist())) < 2:
        raise UserError(
            f"loader.cache_mb={loader.cache_mb} holds {held.n} trials of {split}, which are of one class, so that "
            "nothing can be evaluated; raise it"
        )
    return held


def count_classes(shards: Shards, train: Reader | Held) -> int:
    """Classes to train on; of streamed shards those of the card, as only some trials' labels are known beforehand."""
    return len(shards.card.class_names) if isinstance(train, Held) else len(set(train.labels.tolist()))


def balanced(
    config: Config, shards: Shards, train: Reader, classes: int, images: int, layers: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """EEG [b, C, T] of this rank's part, labels [B] of the global batch, numbers [b] of the part's trials."""
    labels, batch = train.labels, classes * config.trials_per_class
    alike = labels if layers is None else labels + (labels.max() + 1) * layers.numpy()
    partners = Partners(alike)
    while True:
        indices = balanced_at(labels, config.seed, images, classes, config.trials_per_class)
        part = own_part(batch)
        own = torch.as_tensor(indices[part])
        yield blended(train, indices, partners, config, images, part), torch.as_tensor(labels[indices]), own
        images += batch


def streamed(
    config: Config, shards: Shards, train: Held, classes: int, images: int, layers: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same of streamed shards, in the order in which they come; it goes on at the start of an epoch."""
    loader, part = config.loader, own_part(classes * config.trials_per_class)
    epoch = images // shards.n("train")
    found = listed(shards, "train", loader.stream)
    stream = Stream(found, shards.form, part.stop - part.start, config.seed, loader.stream, epoch, loader.workers)
    for batch in stream.batches():
        yield batch["eeg"], gather(batch["label"]), torch.arange(0)  # streamed trials have no number


def blended(train: Reader, indices: np.ndarray, partners: Partners, config: Config, images: int, part: slice) -> Tensor:
    """EEG [b, C, T] of this rank's part, each trial blended with another of its class (and subject)."""
    eeg = train.batch(indices[part])["eeg"]
    if config.mix == 0:
        return eeg
    generator = generator_at(config.seed, "mix", images)
    partner = partners.of(indices, generator)
    return blend(eeg, train.batch(partner[part])["eeg"], generator, config.mix, part, len(indices))


def weights(model: Encoder) -> dict[str, nn.Module]:
    """The networks of a checkpoint by name; later stages read `encoder` alone."""
    return {"encoder": model.encoder} | ({"head": model.head} if model.head is not None else {})


def step(
    rt: runtime.Runtime, net, eeg: Tensor, subject: Tensor | None, labels: Tensor, part: slice, images: int
) -> float:
    """One optimiser step on this rank's part of the global batch; pairs and `labels` [B] span all of it."""
    config: Config = rt.config
    output = net(eeg, subject)
    if config.loss == "cross_entropy":
        loss = cross_entropy(output, labels[part])
    elif config.loss == "supervised_contrastive":
        loss = supervised_contrastive(gather(output), labels, config.supervised_contrastive)
    else:
        loss = triplet(gather(output), labels, config.triplet)
    return net.step(loss, optim.learning_rate(images, config.optim, config.total_images), images)


def evaluate(model: Encoder, train: Reader, val: Reader, device: torch.device, seed: int) -> dict[str, float]:
    """Clustering of the validation split itself, classifiers fitted on the training split, and its own."""
    z_train, z_val = (encode_split(model.encoder, reader, device).numpy() for reader in (train, val))
    y_train, y_val = train.labels, val.labels
    found = clusters(z_val, len(set(y_train.tolist())), seed)
    nmi, ari = nmi_ari(found, y_val)
    own = {}
    if model.head is not None:
        said = class_logits(model.head, torch.from_numpy(z_val).to(device)).argmax(1).cpu().numpy()
        own = {"head_accuracy": float((said == y_val).mean())}
    return own | {
        "kmeans_accuracy": matched_accuracy(found, y_val)[0],
        "knn_accuracy": float(knn_accuracy(z_train, y_train, z_val, y_val).mean()),
        "svm_accuracy": float(linear_svm(z_train, y_train, z_val, y_val).mean()),
        "nmi": nmi,
        "ari": ari,
    }


def save(rt: runtime.Runtime, config: Config, net, images: int, best: dict, shards: Shards) -> None:
    with net.whole() as (model, optimiser):
        if rt.main:
            state = {"encoder": to_dict(model.config), "data": about_data(shards), "best": best}
            if isinstance(model.encoder, SubjectEncoder):
                state |= {"subjects": list(model.encoder.names), "base_subjects": list(model.base_subjects)}
            checkpoint.save_run(rt.run_dir, images, weights(model), {"optimiser": optimiser}, state, config.select)
    barrier()
