import re
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eeg_gan.config import UserError, from_dict
from eeg_gan.models.eeg import ENCODERS, OPTIONS, EncoderConfig, build_encoder
from eeg_gan.models.eeg.cnn import CNNEncoder
from eeg_gan.models.heads import ClassifierHead, ProjectionHead
from eeg_gan.models.image_to_eeg import ImageToEEG, ImageToEEGConfig


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("n_chans, n_times", [(1, 16), (1, 257), (3, 17), (8, 64), (14, 32), (2, 250), (63, 100)])
def test_encoder_gives_unit_vectors_that_depend_on_each_sample_alone(name, n_chans, n_times):
    torch.manual_seed(0)
    config = EncoderConfig(name=name, dim=16, widths=(8, 8, 8, 8))
    encoder = build_encoder(config, n_chans, n_times).eval()
    x = torch.randn(3, n_chans, n_times)
    z = encoder(x)
    assert z.shape == (3, 16)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(encoder(x[1:2]), z[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_weight_of_an_encoder_receives_a_gradient(name):
    torch.manual_seed(0)
    encoder = ENCODERS[name](n_chans=4, n_times=32, dim=8)
    (encoder(torch.randn(5, 4, 32)) * torch.randn(8)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_every_encoder_has_its_options_and_the_config_knows_them():
    assert OPTIONS.keys() == ENCODERS.keys()
    for name in ENCODERS:
        assert from_dict(EncoderConfig, {"name": name}, "here").name == name
        assert all(hasattr(EncoderConfig(), option) for option in OPTIONS[name])


def test_parameter_counts_are_those_of_the_paper():
    counts = [parameters(build_encoder(EncoderConfig(), n_chans, 440)) for n_chans in (128, 124, 14)]
    assert counts == [544768, 542720, 486400]
    cnn = build_encoder(EncoderConfig(name="cnn"), 128, 440)
    assert parameters(cnn) == 6325376
    assert cnn.map_size == (28, 8)


def test_lstm_forgets_the_start_of_a_window_and_remember_keeps_it():
    felt = {}
    for remember in (False, True):
        torch.manual_seed(0)
        x = torch.randn(4, 3, 128, requires_grad=True)
        encoder = build_encoder(EncoderConfig(name="lstm", hidden=16, layers=2, dim=8, remember=remember), 3, 128)
        (encoder(x) * torch.randn(8)).sum().backward()
        size = x.grad.abs().mean((0, 1))
        felt[remember] = float(size[32:64].mean() / size[-8:].mean())
    assert felt[False] < 1e-6 and felt[True] > 1e-3, felt


def test_cnn_without_keep_time_has_the_strides_of_the_paper():
    for (n_chans, n_times), size in {(14, 32): (2, 1), (124, 32): (2, 8), (128, 440): (28, 8)}.items():
        assert CNNEncoder(n_chans, n_times, 8, (4, 4, 4, 4), keep_time=False).map_size == size
    for (n_chans, n_times), size in {(14, 32): (4, 4), (124, 32): (4, 8), (128, 440): (28, 8), (2, 64): (4, 2)}.items():
        encoder = CNNEncoder(n_chans, n_times, 8, (4, 4, 4, 4))
        assert encoder.map_size == size
        assert encoder.blocks(torch.randn(1, 1, n_times, n_chans)).shape[2:] == size


@pytest.mark.parametrize("keep_time, least, most", [(False, 0.35, 0.65), (True, 0.95, 1.0)])
def test_cnn_collapses_on_short_windows_without_keep_time_and_learns_with_it(keep_time, least, most):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    encoder = CNNEncoder(14, 32, 16, widths=(16, 32, 64, 64), dropout=0, keep_time=keep_time)
    head = nn.Linear(64, 2)
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 3e-3)
    for _ in range(40):
        x, y = two_rhythms(64, generator)
        loss = F.cross_entropy(head(encoder.pooled(x)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, y = two_rhythms(256, generator)
    assert least <= (head(encoder.pooled(x)).argmax(1) == y).float().mean() <= most


def two_rhythms(n, generator):
    y = torch.arange(n) % 2
    rate = torch.where(y == 0, 2.0, 5.0)[:, None, None]
    phase = 2 * torch.pi * torch.rand(n, 14, 1, generator=generator)
    wave = torch.sin(2 * torch.pi * rate * torch.arange(32) / 32 + phase)
    return wave + 0.5 * torch.randn(n, 14, 32, generator=generator), y


def test_tsconv_pools_before_it_filters_to_the_same_result():
    torch.manual_seed(0)
    encoder = ENCODERS["tsconv"](n_chans=3, n_times=250, dim=8)
    x = torch.randn(2, 1, 3, 250)
    slow = F.avg_pool2d(F.conv2d(x, encoder.temporal.weight, encoder.temporal.bias), (1, 51), (1, 5))
    fast = encoder.temporal(F.avg_pool2d(x, (1, encoder.pool), 1))
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert fast.shape == (2, 40, 3, 36)


def test_config_refuses_what_cannot_be_built():
    with pytest.raises(UserError, match="dropout is a probability"):
        from_dict(EncoderConfig, {"dropout": 1.5}, "here")
    with pytest.raises(UserError, match="widths"):
        from_dict(EncoderConfig, {"widths": []}, "here")
    with pytest.raises(ValueError, match="16 samples or more"):
        build_encoder(EncoderConfig(name="tsconv"), 4, 8)
    assert from_dict(EncoderConfig, {"widths": [8, 16]}, "here").widths == (8, 16)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_an_encoder_says_of_itself_names_its_source(name):
    said = (sys.modules[ENCODERS[name].__module__].__doc__ + ENCODERS[name].__doc__).replace("\n", " ")
    assert re.search(r"(19|20)\d\d", said), "a paper has a year"


def test_eegnet_has_the_size_of_its_paper_and_bounded_weights():
    """EEGNet-8,2 at 64 electrodes and 128 samples, without norms and classifier: table 2 of Lawhern et al."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name="eegnet", dim=4), 64, 128)
    weights = {name: p.numel() for name, p in encoder.named_parameters() if "norm" not in name and "linear" not in name}
    assert sum(weights.values()) == 64 * 8 + 64 * 8 * 2 + 16 * 16 + 16 * 16
    assert encoder.linear.in_features == 16 * (128 // 32)
    x, before = torch.randn(2, 64, 128), None
    for scale in (1e3, 1e4):  # past their bound, weights have a direction only
        with torch.no_grad():
            encoder.spatial.weight *= scale
        before, z = encoder.eval()(x), before
    torch.testing.assert_close(before, z, rtol=1e-3, atol=1e-4)


def test_linear_is_one_map_of_the_standardised_trial():
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name="linear", dim=8), 4, 32)
    x = torch.randn(3, 4, 32)
    assert parameters(encoder) == 4 * 32 * 8
    torch.testing.assert_close(encoder(5 * x + 2), encoder(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encoder(-x), -encoder(x))


def test_atm_lets_electrodes_attend_to_one_another_and_knows_them_apart():
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name="atm", dim=8), 4, 300).eval()
    assert (
        encoder.embed.out_features == 256 and build_encoder(EncoderConfig(name="atm"), 4, 30).embed.out_features == 32
    )
    x = torch.randn(2, 4, 300)
    tokens = encoder.attention(encoder.embed(x) + encoder.electrode)
    x[:, 3] += 1
    moved = encoder.attention(encoder.embed(x) + encoder.electrode) - tokens
    assert (moved.abs().amax(2) > 1e-6).all(), "every electrode's token sees the one that changed"
    assert (encoder(x) - encoder(x.flip(1))).abs().max() > 1e-3


def test_heads_shapes():
    z = torch.randn(4, 16)
    assert ClassifierHead(16, 5)(z).shape == (4, 5)
    torch.testing.assert_close(ProjectionHead(16, 8)(z).norm(dim=1), torch.ones(4))


def test_image_to_eeg_knows_subjects_and_takes_their_mean_for_an_unknown_one():
    torch.manual_seed(0)
    model = ImageToEEG(32, 16, ImageToEEGConfig(hidden=24, subjects=True), n_subjects=3).eval()
    nn.init.normal_(model.subjects.weight)
    e = torch.randn(4, 32)
    z = model(e, torch.tensor([0, 1, 2, -1]))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(z[3:], model(e)[3:])
    assert (z[:3] - model(e)[:3]).abs().max() > 1e-3
    plain = ImageToEEG(32, 16, ImageToEEGConfig(hidden=24)).eval()
    torch.testing.assert_close(plain(e, torch.tensor([0, 1, 2, 1])), plain(3 * e))
