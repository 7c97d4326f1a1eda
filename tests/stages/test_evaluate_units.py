"""What evaluate takes as independent when it draws intervals."""

from types import SimpleNamespace

import pytest

from eeg_gan.stages.evaluate import Context

METAS = [
    {"key": "a", "subject": "1", "recording": "r", "stimulus": "cat.png"},
    {"key": "b", "subject": "2", "recording": "r", "stimulus": "cat.png"},
    {"key": "c", "subject": "2", "recording": None, "stimulus": None},
    {"key": "d", "subject": None, "recording": None, "stimulus": "dog.png"},
]


@pytest.mark.parametrize(
    ("pairing", "units"),
    [("trial", ["cat.png", "cat.png", "c", "dog.png"]), ("class", ["1/r", "2/r", "2", "d"])],
)
def test_pictures_nobody_saw_are_no_unit(pairing, units):
    shards = SimpleNamespace(card=SimpleNamespace(pairing=pairing), metas=lambda split: METAS)
    assert Context(SimpleNamespace(split="test"), None, shards).units() == units
