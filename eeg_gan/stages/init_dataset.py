"""The card and the csv of a person's own data, ready to be filled in."""

from dataclasses import dataclass
from pathlib import Path

from eeg_gan.config import UserError

CARD = """\
# The card of the data set: it travels with the data into shards and into every model that is fitted on them.
name: my-data
sfreq: 250                 # samples per second
ch_names: [O1, Oz, O2]     # in the order of the EEG's first axis
class_names: [cat, dog]    # class_names[label]; trials.csv may give names or numbers, from 0
tmin_s: 0.0                # time of the first sample relative to the stimulus, in seconds; -0.2 starts before it

# How the stimuli were ordered; it decides which splits can be believed, so be honest:
#   event-randomised: classes in random order; rsvp: likewise, in rapid succession; block: one class after the other;
#   windowed, imagined-windowed: windows cut out of longer recordings
design: event-randomised
# trial: the image that was seen in this trial; class: any image of the class; none: no images
pairing: trial

licence: unknown           # what may be done with the data
source: ""                 # where they come from: a paper, an address, a laboratory
line_hz: 50                # mains frequency at the place of recording: 50, 60 or null
description: ""            # anything else that a reader should know
"""
TRIALS = """\
eeg,image,label,subject,session,recording,onset,stimulus
eeg/trial0001.npy,images/cat01.png,cat,S1,1,S1-1,12.50,cat01
"""
README = """\
Fill in dataset.yaml, and write a row per trial into trials.csv (the one that is there is an example):

  eeg        a .npy file with one float array [channels, samples] in microvolt
  image      the picture, PNG or JPEG; leave the column out where there are none, and set pairing: none
  label      the class, by name or number
  subject    who was recorded
  session    visit to the laboratory
  recording  the file or run that onset counts in
  onset      time of the stimulus in that recording, in seconds; with it, `eeg-gan audit` can look for drifts
  stimulus   which picture was shown: repetitions have the same name, and are never divided between splits

Further columns: run, block, concept (what the picture shows, finer than the class), split (train, val or test, for
split.by=given), key, sfreq. Columns other than label, subject and eeg may be left out. All trials in one array
eeg.npy [trials, channels, samples] do as well: leave out the column eeg.

    eeg-gan prepare configs/prepare/folder.yaml source.path={folder} run_dir=runs/my-data
"""


@dataclass(frozen=True)
class Config:
    path: str = "my-data"  # the folder to make: dataset.yaml, trials.csv with an example row, README.txt


def run(config: Config) -> None:
    folder = Path(config.path)
    files = {"dataset.yaml": CARD, "trials.csv": TRIALS, "README.txt": README.format(folder=folder)}
    for name in files:
        if (folder / name).exists():
            raise UserError(f"{folder / name} is there already and is not overwritten; give another path=")
    for name in ("eeg", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(
        f"{folder}/dataset.yaml and trials.csv are written; {folder}/README.txt says what goes where. Then:\n"
        f"    eeg-gan prepare configs/prepare/folder.yaml source.path={folder} run_dir=runs/my-data"
    )
