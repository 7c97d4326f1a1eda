"""What align starts from: an encoder of stage 1, its linear map, or a new encoder; and the image side of a split."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eeg_gan.config import UserError
from eeg_gan.data.loader import Reader
from eeg_gan.data.shards import Shards
from eeg_gan.losses.contrastive import LogitScale, logit_scale
from eeg_gan.models.eeg import EncoderConfig
from eeg_gan.models.heads import MappedEncoder, ProjectionHead
from eeg_gan.models.image_tower import ImageTower, TowerConfig
from eeg_gan.stages import readout
from eeg_gan.stages.loading import LoadedEncoder, load_encoder, new_encoder, refuse_map, subjects_of, unique_images
from eeg_gan.stages.tower_cache import pictures_of
from eeg_gan.training import runtime
from eeg_gan.training.inference import evaluating

log = logging.getLogger("eeg_gan")


class Aligner(nn.Module):
    """Both modalities as unit vectors of one space, and the temperature between them.

    `micro_batch` pictures at a time pass through a tower that is trained; the loss sees all of them.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projection: nn.Module,
        scale: LogitScale,
        tower: nn.Module | None,
        micro_batch: int | None = None,
    ):
        super().__init__()
        self.encoder, self.projection, self.scale, self.tower = encoder, projection, scale, tower
        self.micro_batch = micro_batch

    def forward(self, eeg: Tensor, picture: Tensor, subject: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """eeg [B, C, T]; picture: uint8 images where the tower is trained, else its embeddings [B, E].

        subject [B] numbers the layers of an encoder that has one for each subject.
        """
        embedding = picture if self.tower is None else self._seen(picture)
        return (
            self.encoder(eeg) if subject is None else self.encoder(eeg, subject),
            self.projection(embedding),
            self.scale(),
        )

    def _seen(self, pictures: Tensor) -> Tensor:
        """Embeddings [B, E]; in micro-batches only these are kept, and backward looks at each part a second time."""
        if self.micro_batch is None or not torch.is_grad_enabled():
            return self.tower(pictures)
        parts = pictures.split(self.micro_batch)
        return torch.cat([checkpoint(self.tower, part, use_reentrant=False) for part in parts])

    def weights(self) -> dict[str, nn.Module]:
        """The networks of a checkpoint by name."""
        mapped = isinstance(self.encoder, MappedEncoder)
        named = {"encoder": self.encoder.encoder if mapped else self.encoder}
        named |= {"map": self.encoder.map} if mapped else {}
        named |= {"projection": self.projection, "scale": self.scale}
        return named | ({"tower": self.tower} if self.tower is not None else {})


class Pictures:
    """The image side of one split: pictures for a trained tower, kept embeddings for a frozen one."""

    def __init__(self, rt: runtime.Runtime, tower: ImageTower, reader: Reader):
        self.first, self.numbers = unique_images(reader.shards, reader.split)
        self.embeddings = pictures_of(tower, reader, rt.run_dir, rt.device)[0] if tower.frozen else None

    def of(self, data: dict) -> Tensor:
        """What the model reads for a batch: embeddings [B, E], or the pictures themselves."""
        return data["image"] if self.embeddings is None else self.embeddings[self.numbers[data["index"]]]

    @torch.no_grad()
    def projected(self, projection: ProjectionHead) -> Tensor:
        """[N, dim] where the picture of each trial lies in the common space, of a frozen tower."""
        with evaluating(projection) as net:
            device = next(net.parameters()).device
            return net(self.embeddings.to(device)).cpu()[self.numbers]


def warn_of_random(tower: TowerConfig) -> None:
    """A frozen tower without weights is fixed noise: better than nothing on plain pictures, and never what is meant."""
    if tower.frozen and tower.pretrained is None and not tower.model.startswith(("hf-hub:", "local-dir:")):
        log.warning(
            "tower.pretrained is null, so %s has random weights; a tag (laion2b_s34b_b79k of ViT-B-32, say) or a local "
            "file of weights gives it published ones",
            tower.model,
        )


def stage1(run_dir: str | None, architecture: EncoderConfig, shards: Shards) -> LoadedEncoder:
    """The encoder of a run of encode, or a description of a new one, whose module is yet to be made."""
    if run_dir is None:
        subjects = subjects_of(shards, ("train",)) if architecture.subjects else ()
        state = {"subjects": list(subjects), "base_subjects": []} if subjects else {}
        return LoadedEncoder(nn.Identity(), architecture, None, state)
    if architecture != EncoderConfig():
        raise UserError(
            f"architecture describes a new encoder, but encoder={run_dir} has its own; leave one of them out"
        )
    loaded = load_encoder(run_dir, shards)
    refuse_map(isinstance(loaded.module, MappedEncoder), f"encoder={run_dir}")
    return loaded


def build(config: Any, shards: Shards, start: LoadedEncoder, tower: ImageTower) -> Aligner:
    """The model of an align config; random weights are drawn from torch's present stream."""
    encoder = start.module
    if config.encoder is None or config.from_scratch:
        if start.config.posterior:
            raise UserError(
                "encoder.posterior is fitted by encode on classes, so a new encoder cannot have it; give a run_dir of "
                "encode with from_scratch=false, or an encoder or architecture without posterior"
            )
        encoder = new_encoder(start.config, shards, start.state.get("subjects", ()))
    if config.ridge is not None:
        if not start.config.readout:
            raise UserError(
                f"ridge adds to linear maps of each subject's own, but {config.encoder or 'architecture'} has none; "
                "set encoder.readout=true there, or ridge=null here"
            )
        if start.config.posterior:
            raise UserError(
                "ridge adds pictures to the linear maps, but those of this encoder end in probabilities of classes "
                "(encoder.posterior); set ridge=null, or give an encoder without"
            )
        readout.freeze(encoder)
    projection = ProjectionHead(tower.dim, start.config.dim)
    scale = logit_scale(config.loss)
    if config.learn == "map":
        with torch.random.fork_rng():
            encoder = MappedEncoder(encoder, start.config.dim)
    if config.micro_batch is not None and any("BatchNorm" in type(module).__name__ for module in tower.modules()):
        raise UserError(
            f"micro_batch={config.micro_batch} would change what {config.tower.model} learns, as its batch norms see "
            "one part at a time; leave it out and start more processes, or take a tower without them (a ViT)"
        )
    return Aligner(encoder.train(), projection, scale, None if tower.frozen else tower, config.micro_batch)
