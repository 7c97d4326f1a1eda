"""The data sets that `prepare` reads: each is a callable from SourceConfig to a Source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from eeg_gan.data.card import Card
from eeg_gan.data.sources.cvpr40 import Cvpr40Config, open_cvpr40
from eeg_gan.data.sources.eeg_imagenet import EEGImageNet, EEGImageNetConfig
from eeg_gan.data.sources.folder import Folder
from eeg_gan.data.sources.kaneshiro import Kaneshiro, KaneshiroConfig
from eeg_gan.data.sources.recordings import Recordings, RecordingsConfig
from eeg_gan.data.sources.simulated import Simulated, SimulatedConfig
from eeg_gan.data.sources.things_eeg2 import ThingsEEG2, ThingsEEG2Config
from eeg_gan.data.sources.thoughtviz import ThoughtvizConfig, open_thoughtviz


@dataclass(frozen=True)
class SourceConfig:
    """Which data are read, and from where."""

    name: Literal[
        "simulated",
        "folder",
        "cvpr40",
        "thoughtviz",
        "eeg_imagenet",
        "kaneshiro",
        "things_eeg2",
        "recordings",
    ] = "simulated"  # kind of data set
    path: str | None = None  # where it lies; not used by simulated
    simulated: SimulatedConfig = SimulatedConfig()  # what is simulated
    cvpr40: Cvpr40Config = Cvpr40Config()  # which part of EEGCVPR40
    thoughtviz: ThoughtvizConfig = ThoughtvizConfig()  # which part of ThoughtViz
    eeg_imagenet: EEGImageNetConfig = EEGImageNetConfig()  # which part of EEG-ImageNet
    kaneshiro: KaneshiroConfig = KaneshiroConfig()  # what is read beside the recordings of Kaneshiro et al.
    things_eeg2: ThingsEEG2Config = ThingsEEG2Config()  # which trials are made of THINGS-EEG2
    recordings: RecordingsConfig = RecordingsConfig()  # which events of which recordings become trials


class Source(Protocol):
    """What every data set offers; C electrode, T time sample.

    It may also have `image_key(i)`, equal for trials that show the same picture, each of which is then read once, and
    `peak_bytes`, the memory that a format needs which can only be read whole.
    """

    card: Card
    trials: list[dict[str, Any]]  # meta fields; keys unique and safe as file names

    def eeg(self, i: int) -> np.ndarray: ...  # [C, T] float32, raw, in microvolt

    def image(self, i: int) -> np.ndarray | None: ...  # [H, W, 3] uint8 RGB


SOURCES: dict[str, Callable[[SourceConfig], Source]] = {
    "simulated": lambda config: Simulated(config.simulated),
    "folder": lambda config: Folder(config.path),
    "kaneshiro": lambda config: Kaneshiro(config.path, config.kaneshiro),
    "things_eeg2": lambda config: ThingsEEG2(config.path, config.things_eeg2),
    "recordings": lambda config: Recordings(config.path, config.recordings),
    "cvpr40": lambda config: open_cvpr40(config.path, config.cvpr40),
    "thoughtviz": lambda config: open_thoughtviz(config.path, config.thoughtviz),
    "eeg_imagenet": lambda config: EEGImageNet(config.path, config.eeg_imagenet),
}
