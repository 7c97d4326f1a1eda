"""An image tower read at a layer before its last: by the name of a module, or by the number of a block.

Intermediate layers of large vision networks are closer to EEG than the last one in several reports, so the layer is a
choice of the config and not of the code.
"""

import difflib
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError

LISTS = ("transformer.resblocks", "blocks", "stages", "layers", "features")  # where libraries keep their blocks
STAGES = ("layer1", "layer2", "layer3", "layer4")  # of residual networks
Pool = Literal["mean", "cls"]


class _Reached(Exception):
    """Ends the forward pass where the wanted output is known; what follows is not computed."""

    def __init__(self, output: object):
        self.output = output


def find(visual: nn.Module, layer: int | str, model: str) -> nn.Module:
    """The block number `layer`, negative counting from the last, or the module of that name."""
    if isinstance(layer, int):
        known = blocks(visual)
        if not -len(known) <= layer < len(known):
            told = f"it has {len(known)} blocks" if known else "its blocks are not known; name a module"
            raise UserError(f"tower.layer={layer} of {model}: there is no such block; {told}")
        return known[layer]
    modules = dict(visual.named_modules())
    name = layer.removeprefix("visual.")
    if not name or name not in modules:
        close = difflib.get_close_matches(name, modules, 3, 0.4) or [own for own in modules if own][:5]
        raise UserError(f"tower.layer={layer}: {model} has no such module; near it are {', '.join(close)}")
    return modules[name]


def blocks(visual: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, or the stages of a convolutional network, from the first to the last."""
    trunk = getattr(visual, "trunk", visual)
    modules = dict(trunk.named_modules())
    for name in LISTS:
        if isinstance(modules.get(name), (nn.ModuleList, nn.Sequential)):
            return list(modules[name])
    return [modules[name] for name in STAGES if name in modules]


def read(visual: nn.Module, module: nn.Module, x: Tensor, pool: Pool) -> Tensor:
    """[B, D] of `module` when `visual` looks at normalised pictures x; standardised over D, as scales differ much.

    Tokens [B, N, D] are averaged, or the first is taken; maps [B, D, H, W] are averaged over places.
    """

    def leave(_module: nn.Module, _inputs: object, output: object) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(leave)
    try:
        visual(x)
    except _Reached as reached:
        return _pooled(reached.output, visual, pool)
    finally:
        handle.remove()
    raise UserError("tower.layer names a module that the forward pass does not go through; name another")


def _pooled(output: object, visual: nn.Module, pool: Pool) -> Tensor:
    x = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(x, Tensor) or x.ndim not in (2, 3, 4):
        raise UserError(f"tower.layer names a module whose output is no tokens, no map and no vector ({type(x)})")
    if pool == "cls" and x.ndim != 3:
        raise UserError("tower.pool=cls takes the first token, but this layer gives no tokens; set tower.pool=mean")
    if x.ndim == 3:
        x = x[:, 0] if pool == "cls" else x.mean(1)
    elif x.ndim == 4:
        last = getattr(getattr(visual, "trunk", visual), "output_fmt", "NCHW") == "NHWC"
        x = x.mean((1, 2) if last else (2, 3))
    return F.layer_norm(x.float(), x.shape[-1:])
