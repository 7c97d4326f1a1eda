"""Losses of the game on tensors whose answers are known."""

import math

import pytest
import torch

from eeg_gan.losses import adversarial


def test_logistic_losses():
    zero, sure = torch.zeros(4), torch.full((4,), 50.0)
    assert adversarial.discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert adversarial.discriminator_loss(sure, -sure).item() == pytest.approx(0, abs=1e-6)
    assert adversarial.generator_loss(-sure).item() == pytest.approx(50)


def test_r1_of_a_linear_and_a_quadratic_critic():
    x = torch.randn(5, 3, 2, 2, requires_grad=True)
    a = torch.randn(3, 2, 2, requires_grad=True)
    penalty = adversarial.r1_penalty(x, (x * a).sum(dim=(1, 2, 3)))
    torch.testing.assert_close(penalty, a.square().sum())
    penalty.backward()
    torch.testing.assert_close(a.grad, 2 * a)
    penalty = adversarial.r1_penalty(x, x.square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(penalty, 4 * x.square().sum() / 5)


def test_path_length_of_a_linear_generator():
    n, layers, width = 4, 3, 6
    jacobian = torch.randn(width, 3 * 2 * 2)
    ws = torch.randn(n, layers, width, requires_grad=True)
    images = (ws.sum(dim=1) @ jacobian).view(n, 3, 2, 2)
    noise = torch.randn(n, 3, 2, 2)
    lengths = adversarial.path_length(images, ws, noise)
    torch.testing.assert_close(lengths, (noise.flatten(1) @ jacobian.T / 2).norm(dim=1))
