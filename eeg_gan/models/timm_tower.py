"""Any timm network as the vision half of an image tower: `timm:resnet50` with a local file or one of timm's tags."""

import difflib
import logging
import os
import sys
from collections.abc import Sequence

from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.torchvision_compat import load

PREFIX = "timm:"


class TimmVisual(nn.Module):
    """Normalised pictures [B, 3, H, W] -> pooled features [B, output_dim]; speaks as open_clip's vision halves do."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk
        given = trunk.pretrained_cfg
        self.image_size, self.output_dim = tuple(given["input_size"][1:]), trunk.head_hidden_size
        self.preprocess_cfg = {"mean": given["mean"], "std": given["std"]}

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | None = None, normalize_intermediates: bool = False, **_: object
    ) -> dict[str, list[Tensor]]:
        """Maps [B, C, h, w] after stages or blocks, as open_clip's method of this name gives them."""
        found = self.trunk.forward_intermediates(
            x, indices=indices, norm=normalize_intermediates, intermediates_only=True
        )
        return {"image_intermediates": found}


def build_visual(model: str, pretrained: str | None) -> TimmVisual:
    """The network `timm:NAME` without its classifier; weights from a local file, by a tag of timm's, or random."""
    timm, name = load("timm"), model.removeprefix(PREFIX)
    if "." in name or not timm.is_model(name):
        raise UserError(_no_such_model(timm, name))
    local = pretrained is not None and os.path.isfile(pretrained)
    if pretrained is not None and not local:
        _check_tag(timm, name, pretrained)
    full = name if local or pretrained is None else f"{name}.{pretrained}"
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # every attempt of a download that fails would be told, twice
    try:
        trunk = timm.create_model(full, pretrained=full != name, num_classes=0)
    except Exception as error:  # network, disk and format errors of three libraries arrive here
        raise UserError(_not_downloaded(timm, full, error)) from None
    finally:
        logging.disable(before)
    if local:
        _load_file(timm, trunk, name, pretrained)
    return TimmVisual(trunk)


def _no_such_model(timm, name: str) -> str:
    plain, _, tag = name.partition(".")
    if tag and timm.is_model(plain):
        return f"timm:{name}: write model=timm:{plain} and pretrained={tag}, or pretrained=FILE of these weights"
    close = difflib.get_close_matches(plain, timm.list_models(), 1, 0.5)
    return f"timm:{name}: timm has no such model" + (f"; did you mean timm:{close[0]}?" if close else "")


def _check_tag(timm, name: str, tag: str) -> None:
    known = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
    if tag in known:
        return
    if is_path(tag):
        found = {known[0]: _where(timm, f"{name}.{known[0]}")} if known else {}
        raise UserError(no_such_file(tag, f"{PREFIX}{name}", found))
    raise UserError(f"{tag}: timm:{name} has no such weights; its tags are {', '.join(known) or 'none'}")


def is_path(pretrained: str) -> bool:
    """Whether a word names a file, and no tag of published weights."""
    return os.sep in pretrained or pretrained.endswith((".safetensors", ".pt", ".pth", ".bin"))


def no_such_file(path: str, model: str, published: dict[str, str]) -> str:
    """What to do where a weights file is missing; `published` has the addresses of some weights by tag."""
    said = f"pretrained={path}: no such weights file (looked for {os.path.abspath(os.path.expanduser(path))})"
    for tag, where in published.items():
        said += (
            f"; get weights of {model} on a machine with a network, for example {where}, and give their path, or set "
            f"pretrained={tag} where there is a network"
        )
    return said if published else f"{said}; give the path of a local file"


def _where(timm, full: str) -> str:
    """The address of published weights."""
    source = timm.get_pretrained_cfg(full)
    if source.hf_hub_id:
        return f"https://huggingface.co/{source.hf_hub_id}/resolve/main/model.safetensors"
    return source.url or ""


def _not_downloaded(timm, full: str, error: Exception) -> str:
    reason, where = " ".join(str(error).split())[:300], _where(timm, full)
    name, _, tag = full.partition(".")
    return (
        f"pretrained={tag} of timm:{name} could not be loaded ({reason}); on a machine with a network get {where} and "
        f"give it as pretrained=/path/to/{os.path.basename(where) or 'the file'}"
    )


def _load_file(timm, trunk: nn.Module, name: str, path: str) -> None:
    """Every weight of the network must be there; what the file has beside them (its classifier) is left."""
    renamed = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)  # of files by other names
    try:
        unlike = timm.models.load_checkpoint(trunk, path, strict=False, filter_fn=renamed)
    except Exception as error:  # not a file of tensors, or tensors of other shapes
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not the weights of timm:{name} ({reason}); name the model they belong to") from None
    if unlike.missing_keys:
        missing = ", ".join(unlike.missing_keys[:3])
        raise UserError(
            f"{path}: not the weights of timm:{name}: {len(unlike.missing_keys)} of its tensors are not there "
            f"({missing} ...); name the model they belong to"
        )
