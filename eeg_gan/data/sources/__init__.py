"""The data sets that `prepare` reads: each is a callable from SourceConfig to a Source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from eeg_gan.data.card import Card
from eeg_gan.data.sources.folder import Folder
from eeg_gan.data.sources.kaneshiro import Kaneshiro, KaneshiroConfig
from eeg_gan.data.sources.recordings import Recordings, RecordingsConfig
from eeg_gan.data.sources.simulated import Simulated, SimulatedConfig
from eeg_gan.data.sources.things_eeg2 import ThingsEEG2, ThingsEEG2Config


@dataclass(frozen=True)
class SourceConfig:
    """Which data are read, and from where."""

    name: Literal[
        "simulated",
        "folder",
        "kaneshiro",
        "things_eeg2",
        "recordings",
    ] = "simulated"  # kind of data set
    path: str | None = None  # where it lies; not used by simulated
    simulated: SimulatedConfig = SimulatedConfig()  # what is simulated
    kaneshiro: KaneshiroConfig = KaneshiroConfig()
    things_eeg2: ThingsEEG2Config = ThingsEEG2Config()
    recordings: RecordingsConfig = RecordingsConfig()


class Source(Protocol):
    """What every data set offers; C electrode, T time sample."""

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
}
