"""What holds for every source: a config that is read, with a paragraph on where the data come from."""

import re

import pytest
from conftest import ROOT

from eeg_gan.config import load
from eeg_gan.data.sources import SOURCES
from eeg_gan.stages import prepare

CONFIGS = ROOT / "configs" / "prepare"


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_a_config_that_says_where_the_data_come_from_and_what_may_be_done(name):
    path = CONFIGS / f"{name}.yaml"
    paragraph = " ".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
    assert load(prepare.Config, path, []).source.name == name
    assert len(paragraph) > 150 and re.search(r"What may be done|CC BY", paragraph), paragraph


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_read(path):
    assert load(prepare.Config, path, []).run_dir
