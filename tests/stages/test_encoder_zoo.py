"""encode through the front door: a network of the zoo with weights of a file, and the other encoders and losses."""

import sys
import types

import pytest
import torch
from conftest import commands, debug
from safetensors.torch import load_file, save_file
from torch import nn

from eeg_gan import cli
from eeg_gan.training import checkpoint


class Small(nn.Module):
    """With the constructor of braindecode's networks."""

    def __init__(
        self, n_outputs=None, n_chans=None, chs_info=None, n_times=None, input_window_seconds=None, sfreq=None
    ):
        super().__init__()
        self.body = nn.Conv1d(n_chans, 4, 3, bias=False)
        self.final_layer = nn.Linear(4, n_outputs)

    def forward(self, x):
        return self.final_layer(self.body(x).square().mean(2))


@pytest.fixture
def library(monkeypatch):
    pytest.importorskip("mne")
    module = types.ModuleType("braindecode.models")
    module.Small = Small
    monkeypatch.setitem(sys.modules, "braindecode", types.ModuleType("braindecode"))
    monkeypatch.setitem(sys.modules, "braindecode.models", module)


def encode(runs, run_dir, *words):
    return cli.main(["encode", debug("encode"), *commands(runs)["encode"], f"run_dir={run_dir}", *words])


def test_published_weights_are_read_once_and_the_run_needs_them_no_more(runs, library, tmp_path):
    from eeg_gan.data.shards import Shards

    shards = Shards(runs / "prepare" / "index.json")
    names, weights = list(shards.card.ch_names), tmp_path / "w.safetensors"
    torch.manual_seed(0)
    save_file({"body.weight": torch.randn(4, len(names), 3)}, weights)
    zoo = (
        f"{{model: Small, weights: {weights}, sfreq: {shards.preprocessing['sfreq']}, channels: [{', '.join(names)}]}}"
    )
    words = ["encoder.name=zoo", f"encoder.zoo={zoo}", "optim.lr=1e-6"]
    assert encode(runs, tmp_path / "e", *words, "stop_after=64") == 75
    began = checkpoint.newest(tmp_path / "e").tensors["encoder"]["network.body.weight"]
    torch.testing.assert_close(began, load_file(weights)["body.weight"], rtol=1e-3, atol=1e-3)
    weights.unlink()
    assert encode(runs, tmp_path / "e", *words) == 0
    index = commands(runs)["embed"][0]
    assert cli.main(["embed", debug("embed"), index, f"encoder={tmp_path}/e", f"run_dir={tmp_path}/f"]) == 0


@pytest.mark.parametrize(
    "name, loss", [("eegnet", "supervised_contrastive"), ("atm", "triplet"), ("linear", "cross_entropy")]
)
def test_encoders_train_by_each_loss_and_are_read_back(runs, tmp_path, name, loss):
    words = [f"encoder.name={name}", f"loss={loss}", "total_images=32", "evaluate_every=32"]
    assert encode(runs, tmp_path / "e", *words) == 0
    index = commands(runs)["embed"][0]
    assert cli.main(["embed", debug("embed"), index, f"encoder={tmp_path}/e", f"run_dir={tmp_path}/f"]) == 0
