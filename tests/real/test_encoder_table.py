"""The recorded table of encoders: complete, above chance where LDA is, and what the README says."""

import json
from pathlib import Path

import pytest

from eeg_gan.models.eeg import ENCODERS

ROWS = json.loads((Path(__file__).parent / "results" / "encoders.json").read_text())
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", ["p300", "ssvep"])
def test_every_encoder_beats_chance_where_lda_does(name):
    p = {row["who"]: row["p"] for row in ROWS if row["set"] == name}
    assert p.keys() == {"lda", *ENCODERS} and max(p.values()) < 0.01, p


@pytest.mark.parametrize("name", ENCODERS)
def test_the_readme_has_the_recorded_figures(name):
    rows = [row for row in ROWS if row["who"] == name and row["set"] in ("p300", "ssvep")]
    cells = [" ".join(f"{row[key]:.3f}"[1:] for key in ("value", "low", "high")) for row in rows]
    cells = [f"{value} [{low}, {high}]" for value, low, high in (cell.split() for cell in cells)]
    assert f"| {name} | {' | '.join(cells)} |" in README
