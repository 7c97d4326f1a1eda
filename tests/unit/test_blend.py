"""Which trials encode blends: the EEG is a constant that says whose trial it is."""

import numpy as np
import pytest
import torch

from eeg_gan.data.card import Card
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.shards import Shards, write_shards
from eeg_gan.data.trial import Sample
from eeg_gan.stages import encode
from eeg_gan.stages.encode import balanced

CARD = Card("tiny", 100.0, ("Oz", "Pz"), "event-randomised", ("cat", "dog"), "CC0")
LEVELS = {"s0": 1.0, "s1": 10.0}  # further apart than a blend of equals can lift a constant: by sqrt(2)


def samples(split):
    for i in range(24):
        label, subject = i % 2, f"s{i // 2 % 2}"
        level = LEVELS[subject] * (-1) ** label
        yield Sample(f"{split}-{i}", np.full((2, 16), level, np.float32), None, {"label": label, "subject": subject})


@pytest.mark.parametrize("with_layers", [False, True])
def test_a_trial_is_blended_with_its_class_and_where_subjects_have_layers_with_its_subject(tmp_path, with_layers):
    write_shards(tmp_path, {"train": samples("train"), "val": samples("val")}, 8, CARD, {}, {"by": "trial"})
    shards = Shards(tmp_path / "index.json", ("train", "val"))
    train = Reader(shards, "train")
    layers = torch.tensor([int(meta["subject"][1]) for meta in shards.metas("train")])
    config = encode.Config("unused", LoaderConfig(str(tmp_path / "index.json")), mix=1.0, trials_per_class=6)
    batches = balanced(config, shards, train, 2, 0, layers if with_layers else None)
    mixed = 0
    for _ in range(4):
        eeg, labels, trials = next(batches)
        value, own = eeg[:, 0, 0].abs(), torch.tensor(list(LEVELS.values()))[layers[trials]]
        assert (eeg[:, 0, 0].sign() == 1 - 2 * labels).all(), "never with another class"
        alone = (value >= 0.999 * own) & (value <= 1.415 * own)
        mixed += int((~alone).sum())
    assert mixed == 0 if with_layers else mixed > 5
