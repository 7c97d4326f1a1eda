"""Networks of braindecode by name. Electrodes are mapped, interpolated or refused, never filled with zeros."""

import difflib
import importlib
import inspect
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.models.eeg.montage import Absent, mixing, montage_name

NONCOMMERCIAL = ("BrainModule", "EEGMiner", "MetaNeuromotorHand", "EMG2QwertyNet", "VEMG2Pose")
HEAD = "final_layer"  # braindecode's name of what maps features to outputs
PAGE = "https://braindecode.org/stable/generated/braindecode.models.{}.html"
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class ZooConfig:
    model: str | None = None  # name of a network of braindecode.models, such as EEGConformer
    keys: dict[str, Any] = field(default_factory=dict)  # the network's own keys; see its page
    channels: tuple[str, ...] | None = None  # electrodes it reads, in order; null: its own fixed list, else the data's
    absent: Absent = "refuse"  # electrodes that the data lack: an error, or splines over the others by position
    weights: str | None = None  # local file of weights to start from: .safetensors, or .pt without pickled code
    sfreq: float | None = None  # rate in Hz that the weights were trained at; the data must have it

    def __post_init__(self):
        if self.weights is not None and self.sfreq is None:
            raise ValueError("zoo.weights were trained at a rate that their file does not tell; write it as zoo.sfreq")


class ZooEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: the data's electrodes made the network's, the network with `dim` outputs.

    Source: Schirrmeister et al. 2017 (braindecode) and the paper that the network's page names. Many of its networks
    have batch norm, so 1 and N processes agree only nearly.
    """

    def __init__(self, n_times: int, dim: int, config: ZooConfig, ch_names: Sequence[str], sfreq: float):
        super().__init__()
        cls = find(config.model)
        places = fixed_channels(cls)
        fixed = config.channels or tuple(places)
        if config.weights and not fixed:
            raise UserError(
                f"{config.weights} does not tell its electrodes; write those that it was trained on, in their order, "
                "as encoder.zoo.channels"
            )
        if config.weights and config.sfreq != sfreq:
            raise UserError(
                f"the weights were trained at {config.sfreq:g} Hz, but the data have {sfreq:g} Hz; "
                f"run prepare with preprocess.resample_hz={config.sfreq:g}"
            )
        weights = torch.from_numpy(mixing(ch_names, fixed, config.absent, places)).float() if fixed else None
        self.register_buffer("mixing", weights)  # [network, data] electrodes
        self.network = make(cls, config, fixed or tuple(ch_names), n_times, dim, sfreq)

    # B batch, C electrode of the data, K electrode of the network, T time sample
    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BKT = x_BCT if self.mixing is None else self.mixing @ x_BCT
        return F.normalize(self.network(x_BKT), dim=-1)


def find(name: str | None) -> type[nn.Module]:
    """The class of a network by its name alone; a path of a class is no name."""
    library = _library(name)
    known = [
        n for n in dir(library) if inspect.isclass(getattr(library, n)) and issubclass(getattr(library, n), nn.Module)
    ]
    known = [n for n in known if not n.startswith("Interpolated")]
    if name in NONCOMMERCIAL:
        raise UserError(f"encoder.zoo.model: the licence of {name} forbids commercial use, so it is not offered here")
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
        raise UserError(f"encoder.zoo.model: braindecode has no network {name}; {hint}")
    return getattr(library, name)


def fixed_channels(cls: type[nn.Module]) -> dict[str, Any]:
    """The electrodes that a network was published for, in order, with their positions in MNE's montage.

    braindecode tells them for a few, such as Labram and BENDR.
    """
    library = importlib.import_module("braindecode.models")
    for name in dir(library):
        other = getattr(library, name)
        if name.startswith("Interpolated") and inspect.isclass(other) and cls in other.__bases__:
            return {electrode["ch_name"]: electrode["loc"] for electrode in other._TARGET_CHS_INFO}
    return {}


def make(
    cls: type[nn.Module], config: ZooConfig, channels: Sequence[str], n_times: int, dim: int, sfreq: float
) -> nn.Module:
    """The network for these inputs, tried on zeros: it must give [B, dim]."""
    given = {"n_outputs": dim, "n_chans": len(channels), "n_times": n_times, "sfreq": sfreq}
    clash = sorted(given.keys() & config.keys.keys())
    if clash:
        raise UserError(f"encoder.zoo.keys: {', '.join(clash)} follow from the data and encoder.dim; leave them out")
    described = {"chs_info": _described(channels, sfreq)} if described_by(cls) else {}
    try:
        network = cls(**given, **described, **config.keys)
        with torch.no_grad():
            shape = tuple(network.eval()(torch.zeros(2, len(channels), n_times)).shape)
    except Exception as error:  # whatever a network of another library raises
        raise UserError(
            f"{cls.__name__} cannot read {len(channels)} electrodes x {n_times} samples at {sfreq:g} Hz: "
            f"{' '.join(str(error).split())[:300]}; see its page for encoder.zoo.keys"
        ) from None
    if shape != (2, dim):
        raise UserError(f"{cls.__name__} gives {list(shape[1:])} for a trial, not {dim} numbers; take another network")
    return network.train()


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Weights of a local file into a network; all but the head must fit by name and shape."""
    found = _read(Path(path), type(network).__name__)
    renamed = getattr(network, "mapping", None) or {}
    found = {renamed.get(name, name): value for name, value in found.items()}
    own = network.state_dict()
    fits = {name for name in own.keys() & found.keys() if own[name].shape == found[name].shape}
    wrong = [f"{name} is missing there" for name in own.keys() - found.keys() if HEAD not in name]
    wrong += [f"{name} is not in this network" for name in found.keys() - own.keys() if HEAD not in name]
    wrong += [
        f"{name} is {list(found[name].shape)} there and {list(own[name].shape)} here"
        for name in (own.keys() & found.keys()) - fits
        if HEAD not in name
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{path} holds another network than {type(network).__name__} with these keys, electrodes and samples: "
            f"{'; '.join(sorted(wrong)[:3])}{more}"
        )
    network.load_state_dict({**own, **{name: found[name] for name in fits}})
    log.info("%s: %d of %d tensors loaded; the rest, of the head, is new", path, len(fits), len(own))


def described_by(cls: type[nn.Module]) -> bool:
    return "chs_info" in inspect.signature(cls).parameters


def _library(name: str | None):
    try:
        return importlib.import_module("braindecode.models")
    except (ImportError, OSError) as error:
        raise UserError(
            f"encoder.zoo.model names {name}, a network of braindecode, which cannot be imported ({error}); "
            "pip install 'eeg-gan[zoo]', or choose another encoder.name"
        ) from None


def _described(channels: Sequence[str], sfreq: float) -> list[dict]:
    """MNE's description of the electrodes, with standard positions where the names have one."""
    import mne

    info = mne.create_info(list(channels), sfreq, "eeg")
    info.set_montage(montage_name(), match_case=False, match_alias=True, on_missing="ignore", verbose="error")
    return info["chs"]


def _read(path: Path, model: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"encoder.zoo.weights={path}: no such file; on a machine with a network get model.safetensors of the "
            f"repository whose name {PAGE.format(model)} gives to from_pretrained, and name where it lies here"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]}); give a .safetensors, or a .pt "
            "that holds tensors alone"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no named tensors; give the state dict of the network")
    return {name.removeprefix("module."): value for name, value in found.items()}
