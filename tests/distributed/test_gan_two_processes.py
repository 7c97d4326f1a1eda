"""Two processes with half the batch each train the same generator as one, to rounding."""

import sys
from pathlib import Path

import pytest
import torch
from test_two_processes import on_two_ranks

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_gan_steps import PROJECTED, TRANSITION, config_of, trained  # noqa: E402


@pytest.mark.parametrize(
    "changes, steps",
    [({}, 20), ({**TRANSITION, "micro_batch": 2}, 20), ({**PROJECTED, "micro_batch": 2}, 6)],
    ids=["concat", "transitional, micro", "projected, micro"],
)
def test_two_processes_give_the_weights_of_one(tmp_path, changes, steps):
    whole = trained(config_of(**changes), steps)
    for half in on_two_ranks(trained, tmp_path, config_of(**changes), steps):
        torch.testing.assert_close(half, whole, rtol=1e-6, atol=1e-9)
