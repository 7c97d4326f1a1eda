"""The image tower: the vision half of any open_clip model, or any timm network, taking uint8 images of any size.

Its embedding is the network's own, or is read at any layer before.
"""

import difflib
import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.models import timm_tower, tower_layer
from eeg_gan.torchvision_compat import load

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# An open_clip model config of 0.3 M parameters for 32 x 32 images; trains in well under a minute on a laptop's CPU.
TINY_TOWER = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class TowerConfig:
    model: str = "ViT-B-32"  # open_clip's name, timm:NAME, a model config (.json), or tiny (32 pixels, untrained)
    pretrained: str | None = None  # a tag of open_clip or timm (downloaded) or a local file; null starts at random
    frozen: bool = True  # no gradient, evaluation mode always
    layer: int | str | None = None  # number of a block (-1 is the last), or name of a module; null: the embedding
    pool: tower_layer.Pool = "mean"  # with layer: the mean over tokens or places, or the first token

    def __post_init__(self):
        if not self.model:
            raise ValueError("model is empty; name an open_clip model such as ViT-B-32, or a .json model config")


class ImageTower(nn.Module):
    """uint8 images [B, 3, H, W] -> embeddings [B, dim], not normalised."""

    def __init__(self, visual: nn.Module, dim: int, frozen: bool, layer: nn.Module | None = None, pool="mean"):
        super().__init__()
        self.visual, self.dim, self.frozen = visual, dim, frozen
        self.__dict__.update(layer=layer, pool=pool)  # a part of visual, which must not be registered twice
        size = visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        preprocess = getattr(visual, "preprocess_cfg", None) or {}
        for name, default in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)):
            values = torch.tensor(preprocess.get(name, default), dtype=torch.float32)
            self.register_buffer(name, values.view(1, 3, 1, 1))
        if frozen:
            self.requires_grad_(False)
        if layer is not None:
            self._measure()
        self.train(not frozen)

    def train(self, mode: bool = True) -> "ImageTower":
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = (x / 255 - self.mean) / self.std
            out = self.visual(x) if self.layer is None else tower_layer.read(self.visual, self.layer, x, self.pool)
        return out[0] if isinstance(out, tuple) else out  # towers with token output give (embedding, tokens)

    def _measure(self) -> None:
        """The length of the layer's output; freezes what lies behind the layer, as it would never have a gradient."""
        out = self.eval()(torch.zeros(1, 3, *self.size, dtype=torch.uint8))
        self.dim = out.shape[1]
        learnt = [p for p in self.parameters() if p.requires_grad]
        if learnt:
            for p, grad in zip(learnt, torch.autograd.grad(out.sum(), learnt, allow_unused=True), strict=True):
                p.requires_grad_(grad is not None)

    def maps(self, x: Tensor, depths: list[int] | None = None) -> list[Tensor]:
        """Feature maps [B, C, h, w] of normalised pictures after some stages or blocks, or all; gradients pass."""
        found = self.visual.forward_intermediates(
            x, indices=depths, normalize_intermediates=True, intermediates_only=True
        )
        return found["image_intermediates"]


def build_tower(config: TowerConfig) -> ImageTower:
    """The vision half of the configured model, read at the configured layer."""
    config = replace(config, pretrained=config.pretrained and os.path.expanduser(config.pretrained))
    tower = _whole(config)
    if config.layer is None:
        return tower
    found = tower_layer.find(tower.visual, config.layer, config.model)
    return ImageTower(tower.visual, tower.dim, config.frozen, found, config.pool)


def _whole(config: TowerConfig) -> ImageTower:
    """The network up to its embedding; a text half is dropped at once, for memory."""
    own = _visual_weights(config.pretrained)
    if config.model.startswith(timm_tower.PREFIX):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            visual = timm_tower.build_visual(config.model, config.pretrained if own is None else None)
        tower = ImageTower(visual, visual.output_dim, config.frozen)
        return tower if own is None else _load_visual(tower, own, config.pretrained)
    open_clip = load("open_clip")
    name = _registered(open_clip, config.model)
    pretrained = None if own is not None else _known(open_clip, name, config.pretrained)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which is what null or own weights ask for
    try:
        with torch.random.fork_rng():  # random weights are the same in every stage that builds this tower
            torch.manual_seed(0)
            model = open_clip.create_model(name, pretrained=pretrained, pretrained_text=False)
    except Exception as error:  # network, disk, format and shape errors of four libraries arrive here
        raise UserError(_why(open_clip, name, config.pretrained, error)) from None
    finally:
        logging.disable(before)
    tower = ImageTower(model.visual, _embedding_dim(open_clip, model, name), config.frozen)
    return tower if own is None else _load_visual(tower, own, config.pretrained)


def tower_state(tower: ImageTower) -> dict[str, Tensor]:
    """The weights under open_clip's names; saved as safetensors, `pretrained=FILE` reads them back."""
    return {f"visual.{name}": value.detach().cpu().contiguous() for name, value in tower.visual.state_dict().items()}


def tower_digest(tower: ImageTower) -> str:
    """sha256 over the weights, the normalisation and the layer that is read: equal exactly for equal towers."""
    digest = hashlib.sha256()
    if tower.layer is not None:
        name = next(name for name, module in tower.visual.named_modules() if module is tower.layer)
        digest.update(f"layer {name} {tower.pool}".encode())
    for name, value in sorted(tower.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _registered(open_clip, model: str) -> str:
    """The name under which open_clip knows the model; a path and `tiny` are registered first."""
    if model == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "eeg-gan-tiny.json")
            path.write_text(json.dumps(TINY_TOWER), encoding="utf-8")
            open_clip.add_model_config(path)
        return "eeg-gan-tiny"
    if model.endswith(".json"):
        _check_model_config(Path(model))
        open_clip.add_model_config(Path(model))
        return Path(model).stem
    if ":" not in model and model.replace("/", "-") not in open_clip.list_models():
        known = {own.lower(): own for own in open_clip.list_models()}
        meant = [f"did you mean {known[own]}? " for own in difflib.get_close_matches(model.lower(), known, 1, 0.5)]
        raise UserError(
            f"{model}: open_clip has no such model; {''.join(meant)}Names are those of open_clip.list_models(), as "
            "ViT-B-32 is, the path of a model config that ends in .json, or one of timm's as timm:NAME"
        )
    return model


def _check_model_config(path: Path) -> None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable open_clip model config: {error}") from None
    keys = values if isinstance(values, dict) else {}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in keys]
    if missing:
        raise UserError(f"{path}: an open_clip model config has embed_dim, vision_cfg and text_cfg; missing: {missing}")


def _visual_weights(pretrained: str | None) -> dict[str, Tensor] | None:
    """The tensors of a file that holds a vision half alone, as `tower_state` gives them; else None."""
    if pretrained is None or not pretrained.endswith(".safetensors") or not os.path.isfile(pretrained):
        return None
    try:
        with safe_open(pretrained, "pt") as file:
            alone = all(name.startswith("visual.") for name in file.keys())
        return load_file(pretrained) if alone else None
    except Exception as error:
        raise UserError(f"{pretrained}: not a readable safetensors file ({error}); copy it again") from None


def _known(open_clip, name: str, pretrained: str | None) -> str | None:
    if pretrained is None or ":" in name or os.path.isfile(pretrained):
        return pretrained
    if open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained):
        return pretrained
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if timm_tower.is_path(pretrained):
        example = sorted(tags, key=lambda tag: not tag.startswith("laion2b_s"))[:1]
        raise UserError(
            timm_tower.no_such_file(pretrained, name, {tag: _where(open_clip, name, tag)[0] for tag in example})
        )
    raise UserError(f"{pretrained}: {name} has no such weights; its tags are {', '.join(tags) or 'none'}")


def _why(open_clip, name: str, pretrained: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if pretrained is None and name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        return (
            f"{name} could not be downloaded ({reason}); on a machine with a network get the files of "
            f"https://huggingface.co/{repository} (`hf download {repository} --local-dir FOLDER`) and give the folder "
            "as model=local-dir:FOLDER"
        )
    if pretrained is None or os.path.isfile(pretrained):
        return f"{pretrained or name}: open_clip cannot build {name} from it: {reason}; give weights of this very model"
    where, file = _where(open_clip, name, pretrained)
    return (
        f"pretrained={pretrained} of {name} could not be downloaded ({reason}); on a machine with a network get {where}"
        f" and give it as pretrained=/path/to/{os.path.basename(where) or file}"
    )


def _where(open_clip, name: str, tag: str) -> tuple[str, str]:
    """The address of published weights, and what their file is called."""
    source = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) or {}
    if not source.get("hf_hub"):
        return source.get("url", ""), "the weights"
    repository, _, file = source["hf_hub"].rpartition("/")
    file = file or "open_clip_model.safetensors"
    return f"https://huggingface.co/{repository}/resolve/main/{file}", file


def _embedding_dim(open_clip, model: nn.Module, name: str) -> int:
    dim = getattr(model.visual, "output_dim", None)
    if dim is None:
        dim = (open_clip.get_model_config(name.replace("/", "-")) or {}).get("embed_dim")
    assert dim is not None, f"open_clip's {name} does not tell the length of its embedding"
    return int(dim)


def _load_visual(tower: ImageTower, state: dict[str, Tensor], path: str) -> ImageTower:
    try:
        tower.visual.load_state_dict({name.removeprefix("visual."): value for name, value in state.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not the weights of this model ({reason}); name the model they belong to") from None
    return tower
