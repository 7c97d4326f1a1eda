"""Networks of braindecode: its own where it is installed, and everywhere a stand-in of the same signature."""

import importlib.util
import logging
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eeg_gan.config import UserError, from_dict
from eeg_gan.models.eeg import EncoderConfig, build_encoder, load_pretrained

pytest.importorskip("mne", reason="braindecode needs MNE")
FIXED = ("Fz", "Cz", "Pz", "Oz")
REAL = importlib.util.find_spec("braindecode") is not None
real = pytest.mark.skipif(not REAL, reason="braindecode is not installed: pip install 'eeg-gan[zoo]'")


class Plain(nn.Module):
    """The constructor of braindecode's networks; it reads any electrodes."""

    mapping = {"old.weight": "body.weight"}

    def __init__(
        self,
        n_outputs=None,
        n_chans=None,
        chs_info=None,
        n_times=None,
        input_window_seconds=None,
        sfreq=None,
        width=6,
        fail=False,
    ):
        super().__init__()
        if fail:
            raise ValueError("width does not\nfit")
        assert [ch["ch_name"] for ch in chs_info] and len(chs_info) == n_chans and sfreq
        self.names = tuple(ch["ch_name"] for ch in chs_info)
        self.body = nn.Conv1d(n_chans, width, 1, bias=False)
        self.final_layer = nn.Linear(width * n_times, n_outputs)

    def forward(self, x):
        return self.final_layer(torch.tanh(self.body(x)).flatten(1))


class Fixed(Plain):
    """Published for four electrodes."""


class Dense(Plain):
    """One output for each sample."""

    def forward(self, x):
        return self.body(x)


class InterpolatedFixed(Fixed):
    _TARGET_CHS_INFO = [{"ch_name": name, "loc": (0.0, 0.0, 0.0)} for name in FIXED]


@pytest.fixture
def library(monkeypatch):
    module = types.ModuleType("braindecode.models")
    for cls in (Plain, Fixed, Dense, InterpolatedFixed):
        setattr(module, cls.__name__, cls)
    module.BrainModule, module.util = Plain, types
    monkeypatch.setitem(sys.modules, "braindecode", types.ModuleType("braindecode"))
    monkeypatch.setitem(sys.modules, "braindecode.models", module)


def build(names=("Cz", "Oz", "Fz", "Pz"), n_times=16, rate=100.0, **zoo):
    config = from_dict(EncoderConfig, {"name": "zoo", "dim": 5, "zoo": {"model": "Plain", **zoo}}, "here")
    encoder = build_encoder(config, len(names), n_times, names, rate)
    load_pretrained(encoder, config)
    return encoder


def test_a_network_reads_the_electrodes_of_the_data_as_they_are(library):
    torch.manual_seed(0)
    encoder = build(("a", "b"), keys={"width": 3})
    z = encoder(torch.randn(2, 2, 16))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))
    assert encoder.network.names == ("a", "b") and encoder.network.body.out_channels == 3 and encoder.training


@pytest.mark.parametrize("zoo", [{"model": "Fixed"}, {"model": "Plain", "channels": list(FIXED)}])
def test_electrodes_are_sorted_into_the_order_of_the_network(library, zoo):
    torch.manual_seed(0)
    encoder = build(("Cz", "Oz", "C3", "Fz", "Pz"), **zoo)
    x = torch.randn(2, 5, 16)
    assert encoder.network.names == FIXED
    torch.testing.assert_close(encoder(x), nn.functional.normalize(encoder.network(x[:, [3, 0, 4, 1]])))


def test_absent_electrodes_are_refused_or_interpolated_but_never_zero(library, caplog):
    names = ("Cz", "Oz", "Fz", "C3", "C4", "P3", "P4")
    with pytest.raises(UserError, match="the data lack PZ"):
        build(names, model="Fixed")
    with caplog.at_level(logging.WARNING, "eeg_gan"):
        encoder = build(names, model="Fixed", absent="interpolate")
    assert "1 of 4, PZ" in caplog.text
    x = torch.ones(1, 7, 16)
    torch.testing.assert_close(encoder.mixing @ x, torch.ones(1, 4, 16), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="need"):
        build(("Cz", "E2"), model="Fixed", absent="interpolate")


@pytest.mark.parametrize("form", ["safetensors", "pt", "nested"])
def test_published_weights_fill_all_but_another_head(library, tmp_path, form, caplog):
    torch.manual_seed(0)
    weights = {"module.old.weight": torch.randn(6, 4, 1), "module.final_layer.weight": torch.zeros(2, 96)}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3} if form == "nested" else weights, path)
    with caplog.at_level(logging.INFO, "eeg_gan"):
        encoder = build(model="Fixed", weights=str(path), sfreq=100.0)
    assert torch.equal(encoder.network.body.weight, weights["module.old.weight"])
    assert encoder.network.final_layer.weight.abs().sum() > 0 and "1 of 3 tensors loaded" in caplog.text


def test_weights_that_do_not_fit_are_refused(library, tmp_path):
    save_file({"body.weight": torch.randn(6, 9, 1), "more.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "code.pt")
    weights = {"model": "Fixed", "sfreq": 100.0, "weights": str(tmp_path / "w.safetensors")}
    for zoo, said in {
        (): r"body.weight is \[6, 9, 1\] there and \[6, 4, 1\] here; more.weight is not in this network",
        (("model", "Plain"),): "as encoder.zoo.channels",
        (("sfreq", 250.0),): "preprocess.resample_hz=250",
        (("sfreq", None),): "at a rate that their file does not tell",
        (("weights", str(tmp_path / "bad.pt")),): "cannot be read as weights",
        (("weights", str(tmp_path / "code.pt")),): "cannot be read as weights",
        (
            ("weights", str(tmp_path / "none.pt")),
        ): "no such file; .* get model.safetensors .*braindecode.models.Fixed.html gives to from_pretrained",
    }.items():
        with pytest.raises(UserError, match=said):
            build(**{**weights, **dict(zoo)})


def test_mistakes_are_named(library):
    for zoo, said in {
        (("model", "Plane"),): "no network Plane; did you mean Plain",
        (("model", "torch.nn.Linear"),): "no network torch.nn.Linear",
        (("model", "BrainModule"),): "licence of BrainModule",
        (("model", "Dense"),): r"Dense gives \[6, 16\] for a trial, not 5 numbers",
        (("model", None),): "belong together",
    }.items():
        with pytest.raises(UserError, match=said):
            build(**dict(zoo))
    with pytest.raises(UserError, match="width does not fit"):
        build(keys={"fail": True})
    with pytest.raises(UserError, match="n_times follow from the data"):
        build(keys={"n_times": 3})
    with pytest.raises(UserError, match="belong together"):
        from_dict(EncoderConfig, {"zoo": {"model": "Plain"}}, "here")
    with pytest.raises(UserError, match="names of the electrodes"):
        build_encoder(from_dict(EncoderConfig, {"name": "zoo", "zoo": {"model": "Plain"}}, "here"), 3, 16)


@pytest.mark.skipif(REAL, reason="braindecode is installed")
def test_without_braindecode_the_cure_is_said():
    with pytest.raises(UserError, match=r"pip install 'eeg-gan\[zoo\]'"):
        build()


@real
@pytest.mark.parametrize("name", ["EEGConformer", "EEGNet", "ShallowFBCSPNet", "CTNet", "BIOT"])
def test_networks_of_braindecode_learn(name):
    torch.manual_seed(0)
    names = [f"E{i}" for i in range(7)] + ["Cz"]
    zoo = {"model": name} | ({"channels": names} if name == "BIOT" else {})
    encoder = build(names, n_times=256, rate=128.0, **zoo)
    encoder(torch.randn(4, 8, 256)).square()[:, 0].sum().backward()
    with torch.no_grad():
        z = encoder.eval()(torch.randn(3, 8, 256))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    moved = [p for p in encoder.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) > 0.8 * len(list(encoder.parameters()))


@real
def test_labram_keeps_its_electrodes_and_weights(tmp_path):
    from braindecode.models import Labram
    from braindecode.models.labram import LABRAM_CHANNEL_ORDER

    small = {"embed_dim": 40, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    saved = Labram(n_outputs=3, n_chans=128, n_times=400, sfreq=200.0, **small)
    save_file({k: v.contiguous().clone() for k, v in saved.state_dict().items()}, tmp_path / "labram.safetensors")
    zoo = {"model": "Labram", "keys": small, "weights": str(tmp_path / "labram.safetensors"), "sfreq": 200.0}
    names = ["Fz", "Cz", "Pz", "Oz", "C3", "C4", "T3", "T4"]
    with pytest.raises(UserError, match="the data lack FP1"):
        build(names, 400, 200.0, **zoo)
    encoder = build(names, 400, 200.0, **zoo, absent="interpolate")
    assert encoder.mixing.shape == (128, 8)
    assert encoder.mixing[LABRAM_CHANNEL_ORDER.index("T7")].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert (encoder.mixing.abs().sum(1) > 0).all()
    own = encoder.network.state_dict()
    assert all(torch.equal(own[k], v) for k, v in saved.state_dict().items() if "final_layer" not in k)
