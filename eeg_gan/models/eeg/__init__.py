"""Encoders of EEG: each maps x [B, C, T] to unit vectors [B, dim], for any C >= 1 and T >= 16."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from eeg_gan.config import UserError
from eeg_gan.models.eeg.atm import ATMEncoder
from eeg_gan.models.eeg.cnn import CNNEncoder
from eeg_gan.models.eeg.eegnet import EEGNetEncoder
from eeg_gan.models.eeg.erp import ERPEncoder
from eeg_gan.models.eeg.linear import LinearEncoder
from eeg_gan.models.eeg.lstm import LSTMEncoder
from eeg_gan.models.eeg.subjects import SubjectEncoder
from eeg_gan.models.eeg.tsconv import TSConvEncoder
from eeg_gan.models.eeg.zoo import ZooConfig, ZooEncoder, load_weights

ENCODERS = {
    "lstm": LSTMEncoder,
    "cnn": CNNEncoder,
    "eegnet": EEGNetEncoder,
    "tsconv": TSConvEncoder,
    "atm": ATMEncoder,
    "erp": ERPEncoder,
    "linear": LinearEncoder,
}
OPTIONS = {
    "lstm": ("hidden", "layers", "remember"),
    "cnn": ("widths", "dropout", "keep_time"),
    "eegnet": ("dropout",),
    "tsconv": ("filters", "dropout"),
    "atm": ("filters", "dropout"),
    "erp": ("filters", "dropout"),
    "linear": (),
}


@dataclass(frozen=True)
class EncoderConfig:
    name: Literal["lstm", "cnn", "eegnet", "tsconv", "atm", "erp", "linear", "zoo"] = (
        "lstm"  # lstm and cnn are the paper's, tsconv is NICE's, erp is ours, zoo is any network of braindecode
    )
    dim: int = 128  # length of the feature vector
    hidden: int = 128  # lstm: units of each layer
    layers: int = 4  # lstm: stacked layers
    remember: bool = False  # lstm: units start with memories up to the window's length; false is the paper's, 2 samples
    widths: tuple[int, ...] = (128, 256, 512, 1024)  # cnn: channels of each block
    filters: int = 40  # tsconv, atm, erp: spatial and temporal filters
    dropout: float | None = (
        None  # all but lstm and linear; null is the encoder's own (cnn 0.05, erp 0.2, else 0.5); 0: 1 and N ranks equal
    )
    keep_time: bool = True  # cnn: no stride that leaves an axis under 4; false is the paper's, blind on short windows
    subjects: bool = False  # before any encoder: each subject of the training split has a layer over electrodes
    matched: bool = False  # with subjects: each also has a fixed filter before all that, in closed form; 32 frames pass
    readout: bool = False  # with subjects: each also has a linear map of the EEG, added to the encoder's feature
    posterior: bool = False  # with readout and matched: that map ends in probabilities of the training classes
    zoo: ZooConfig = field(default_factory=ZooConfig)

    def __post_init__(self):
        for key in ("dim", "hidden", "layers", "filters"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is a size, so it must be 1 or more; got {getattr(self, key)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths lists the channels of one block or more, each 1 or more; got {list(self.widths)}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability, so it must lie in [0, 1); got {self.dropout}")
        if self.matched and not self.subjects:
            raise ValueError("matched is a filter of each subject's own, so it needs encoder.subjects=true")
        if self.readout and not self.subjects:
            raise ValueError("readout is a map of each subject's own, so it needs encoder.subjects=true")
        if self.posterior and not (self.readout and self.matched):
            raise ValueError(
                "posterior is of the linear maps of filtered EEG; set encoder.readout and encoder.matched too"
            )
        if (self.name == "zoo") != (self.zoo.model is not None):
            raise ValueError(
                "name=zoo and zoo.model=NAME belong together: a network of braindecode, such as EEGConformer"
            )


def build_encoder(
    config: EncoderConfig,
    n_chans: int,
    n_times: int,
    ch_names: Sequence[str] = (),
    sfreq: float | None = None,
    subjects: Sequence[str] = (),
) -> nn.Module:
    """The encoder that `config` names for windows of n_chans electrodes and n_times samples, in training mode.

    zoo needs the electrodes' names and the rate in Hz; `subjects` are those who have a layer, where config asks for it.
    """
    if config.name == "zoo":
        if len(ch_names) != n_chans or sfreq is None:
            raise UserError("encoder.name=zoo needs the names of the electrodes and the rate of the data")
        encoder: nn.Module = ZooEncoder(n_times, config.dim, config.zoo, ch_names, sfreq)
    else:
        options = {key: getattr(config, key) for key in OPTIONS[config.name] if getattr(config, key) is not None}
        encoder = ENCODERS[config.name](n_chans, n_times, config.dim, **options)
    if not config.subjects:
        return encoder
    readout = (n_times, config.dim) if config.readout else None
    dropout = 0.2 if config.dropout is None else config.dropout
    matched = n_times if config.matched else None
    return SubjectEncoder(encoder, n_chans, subjects, readout, dropout, matched, config.posterior)


def load_pretrained(encoder: nn.Module, config: EncoderConfig) -> None:
    """Published weights into a new encoder, where the config names a file of them."""
    if config.zoo.weights is not None:
        inner = encoder.encoder if isinstance(encoder, SubjectEncoder) else encoder
        load_weights(inner.network, config.zoo.weights)
