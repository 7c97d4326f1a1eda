"""The card and the csv of a person's own data, ready to be filled in."""

from dataclasses import dataclass
from pathlib import Path

from eeg_gan.config import UserError

CARD = """\
name: my-data
sfreq: 250                 # samples per second
ch_names: [O1, Oz, O2]     # in the order of the EEG's first axis
design: event-randomised   # block | event-randomised | rsvp | windowed | imagined-windowed
licence: unknown           # what may be done with the data
class_names: [cat, dog]    # class_names[label]
tmin_s: 0.0                # time of the first sample relative to the stimulus
line_hz: 50                # mains frequency: 50 or 60
pairing: trial             # trial: the image that was seen; class: any image of the class; none: no images
"""
TRIALS = """\
eeg,image,label,subject,session,recording,onset,stimulus
eeg/trial0001.npy,images/cat01.png,cat,S1,1,S1-1,12.50,cat01
eeg/trial0002.npy,images/dog07.png,dog,S1,1,S1-1,14.75,dog07
"""


@dataclass(frozen=True)
class Config:
    path: str = "my-data"  # the folder to make: dataset.yaml and trials.csv with example rows


def run(config: Config) -> None:
    folder = Path(config.path)
    for name in ("dataset.yaml", "trials.csv"):
        if (folder / name).exists():
            raise UserError(f"{folder / name} is there already and is not overwritten; give another path=")
    (folder / "eeg").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "dataset.yaml").write_text(CARD)
    (folder / "trials.csv").write_text(TRIALS)
    print(
        f"{folder}/dataset.yaml and trials.csv are written. Fill them in, put one float array [channels, samples] in\n"
        f"microvolt per trial into {folder}/eeg, the pictures into {folder}/images, and then:\n"
        f"    eeg-gan prepare configs/prepare/folder.yaml source.path={folder} run_dir=runs/my-data"
    )
