"""What is known about a data set: how it was recorded, what its labels mean, what its pairing with images is worth."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from eeg_gan import config

Design = Literal["block", "event-randomised", "rsvp", "imagined-windowed", "windowed"]
Pairing = Literal["trial", "class", "none"]


@dataclass(frozen=True)
class Card:
    """The description that travels with a data set into its shards and into every model fitted on them."""

    name: str  # name of the data set
    sfreq: float  # sampling rate of the recordings in Hz
    ch_names: tuple[str, ...]  # names of the electrodes, in the order of the EEG's first axis
    design: Design  # how the stimuli were ordered; it decides which splits can be believed
    class_names: tuple[str, ...]  # class_names[label]
    licence: str  # terms under which the data may be used
    source: str = ""  # where the data come from: a paper, an address, a laboratory
    pairing: Pairing = "none"  # trial: the image that was seen; class: any image of the class; none: no images
    unit: str = "uV"  # unit of the raw EEG
    line_hz: float | None = None  # mains frequency at the place of recording: 50 or 60
    tmin_s: float = 0.0  # time of the first sample relative to the stimulus, in seconds
    fitted_on: Literal["none", "train", "all"] = "none"  # trials that the publisher fitted statistics (whitening) on
    description: str = ""  # anything else that a reader should know

    def __post_init__(self):
        object.__setattr__(self, "ch_names", tuple(self.ch_names))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if not self.name:
            raise ValueError("name is empty; give the data set a short name")
        if not self.sfreq > 0:
            raise ValueError(f"sfreq is the sampling rate in Hz, so it must be above 0; got {self.sfreq}")
        if self.unit != "uV":
            raise ValueError(f"unit is {self.unit!r}, but EEG is kept in microvolt; convert it and write unit: uV")
        if self.line_hz not in (None, 50, 60):
            raise ValueError(f"line_hz is the mains frequency, so it is 50, 60 or null; got {self.line_hz}")
        _check_choice("design", self.design, Design)
        _check_choice("pairing", self.pairing, Pairing)
        _check_names("ch_names", self.ch_names)
        _check_names("class_names", self.class_names)


def from_dict(values: dict, origin: str = "card") -> Card:
    """A card from plain containers; `origin` names the file in errors."""
    return config.from_dict(Card, values, origin)


def to_dict(card: Card) -> dict:
    """The card as plain containers, ready for JSON or YAML."""
    return config.to_dict(card)


def _check_choice(key: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{key} is {value!r}, which is unknown; choose one of {', '.join(get_args(choices))}")


def _check_names(key: str, names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(f"{key} is empty; list at least one name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{key} holds {', '.join(map(str, twice))} more than once; names must differ")
