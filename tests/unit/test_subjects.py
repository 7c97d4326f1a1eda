"""Layers of subjects before an encoder, and what a new subject gets."""

import logging

import pytest
import torch
from torch import nn

from eeg_gan.config import UserError
from eeg_gan.models.eeg import ENCODERS, EncoderConfig, SubjectEncoder, build_encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build_encoder(
        EncoderConfig(name="lstm", hidden=8, layers=1, dim=4, subjects=True), 3, 16, subjects=["a", "b"]
    )


def given_layers(encoder):
    for layer in encoder.mixing:
        nn.init.normal_(layer)
    return encoder


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_layers_change_nothing_at_the_start(name, readout):
    torch.manual_seed(0)
    config = EncoderConfig(name=name, dim=8, widths=(4, 4, 4, 4), subjects=True, readout=readout)
    encoder = build_encoder(config, 3, 32, subjects=["a", "b"]).eval()
    x = torch.randn(4, 3, 32)
    torch.testing.assert_close(encoder(x, torch.tensor([0, 1, -1, 0])), encoder.encoder(x))


def test_each_trial_goes_through_the_layer_of_its_subject(encoder):
    given_layers(encoder)
    x = torch.randn(3, 3, 16)
    a, b = encoder.mixing
    mixed = torch.stack([x[0] + a @ x[0], x[1] + b @ x[1], x[2] + (a + b) / 2 @ x[2]])
    torch.testing.assert_close(encoder(x, torch.tensor([0, 1, -1])), encoder.encoder(mixed))
    torch.testing.assert_close(encoder(x[2:]), encoder(x, torch.tensor([0, 1, -1]))[2:])


def test_each_trial_is_read_by_the_map_of_its_subject():
    torch.manual_seed(0)
    config = EncoderConfig(name="lstm", hidden=8, layers=1, dim=4, subjects=True, readout=True)
    encoder = build_encoder(config, 3, 64, subjects=["a", "b"]).eval()
    for layer in encoder.readout:
        nn.init.normal_(layer)
    x = torch.randn(3, 3, 64)
    frames = x.unflatten(2, (32, 2)).mean(3).flatten(1)
    a, b = encoder.readout
    own = torch.stack([frames[0] @ a, frames[1] @ b, frames[2] @ (a + b) / 2])
    wanted = nn.functional.normalize(encoder.encoder(x) + own, dim=1)
    torch.testing.assert_close(encoder(x, torch.tensor([0, 1, -1])), wanted)


def test_a_map_needs_subjects():
    with pytest.raises(ValueError, match="encoder.subjects=true"):
        EncoderConfig(readout=True)


def test_unknown_subjects_are_said_once(encoder, caplog):
    with caplog.at_level(logging.WARNING, "eeg_gan"):
        assert encoder.numbers(["a", "b"]).tolist() == [0, 1] and not caplog.records
        assert encoder.numbers(["b", "z", "a"]).tolist() == [1, -1, 0]
        assert encoder.numbers(["z"]).tolist() == [-1]
    assert len(caplog.records) == 1 and "z: the mean layer of 2 subjects" in caplog.text


def test_only_the_named_layers_learn_and_the_rest_stays_as_in_evaluation(encoder):
    given_layers(encoder)
    encoder.encoder.add_module("dropout", nn.Dropout(0.5))
    encoder.freeze_all_but(["b"])
    encoder.train()
    assert encoder.training and not encoder.encoder.dropout.training
    encoder(torch.randn(4, 3, 16), torch.tensor([0, 1, 1, 0])).square()[:, 0].sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == ["mixing.1"]
    assert encoder.mixing[1].grad.abs().sum() > 0


@pytest.mark.parametrize("names", [[], ["a", ""]])
def test_trials_without_a_subject_are_refused(names):
    with pytest.raises(UserError, match="encoder.subjects=false"):
        SubjectEncoder(nn.Identity(), 3, names)
