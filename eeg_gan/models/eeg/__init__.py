"""Encoders of EEG: each maps x [B, C, T] to unit vectors [B, dim]."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from eeg_gan.models.eeg.cnn import CNNEncoder
from eeg_gan.models.eeg.erp import ERPEncoder
from eeg_gan.models.eeg.lstm import LSTMEncoder
from eeg_gan.models.eeg.tsconv import TSConvEncoder

ENCODERS = {"lstm": LSTMEncoder, "cnn": CNNEncoder, "tsconv": TSConvEncoder, "erp": ERPEncoder}
OPTIONS = {
    "lstm": ("hidden", "layers"),
    "cnn": ("widths", "dropout", "keep_time"),
    "tsconv": ("filters", "dropout"),
    "erp": ("filters", "dropout"),
}


@dataclass(frozen=True)
class EncoderConfig:
    name: Literal["lstm", "cnn", "tsconv", "erp"] = (
        "lstm"  # lstm and cnn are the paper's, tsconv is NICE's, erp is ours
    )
    dim: int = 128  # length of the feature vector
    hidden: int = 128  # lstm: units of each layer
    layers: int = 4  # lstm: stacked layers
    widths: tuple[int, ...] = (128, 256, 512, 1024)  # cnn: channels of each block
    filters: int = 40  # tsconv, erp: spatial and temporal filters
    dropout: float | None = (
        None  # cnn, tsconv, erp; null is the encoder's own (0.05, 0.5, 0.2); 0 makes 1 and N processes equal
    )
    keep_time: bool = True  # cnn: no stride that leaves an axis under 4; false is the paper's, blind on short windows

    def __post_init__(self):
        for key in ("dim", "hidden", "layers", "filters"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is a size, so it must be 1 or more; got {getattr(self, key)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths lists the channels of one block or more, each 1 or more; got {list(self.widths)}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability, so it must lie in [0, 1); got {self.dropout}")


def build_encoder(config: EncoderConfig, n_chans: int, n_times: int) -> nn.Module:
    """The encoder that `config` names for windows of n_chans electrodes and n_times samples, in training mode."""
    options = {key: getattr(config, key) for key in OPTIONS[config.name] if getattr(config, key) is not None}
    return ENCODERS[config.name](n_chans, n_times, config.dim, **options)
