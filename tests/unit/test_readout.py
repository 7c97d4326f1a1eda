"""Ridge regression in closed form: weights and leave-one-out errors that plain least squares finds the long way."""

import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.models.eeg import EncoderConfig, build_encoder
from eeg_gan.models.eeg.readout import STRENGTHS, discriminant, fitted, ridge
from eeg_gan.models.eeg.subjects import frames
from eeg_gan.stages.readout import class_codes


def noisy(n, noise, seed=0):
    """EEG [n, 12] of very unequal scales, and targets [n, 3] that are linear in it but for noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator) * torch.logspace(-2, 2, 12) + 5
    true = torch.randn(12, 3, generator=generator) / torch.logspace(-2, 2, 12)[:, None]
    return x, x @ true + noise * torch.randn(n, 3, generator=generator), true


def test_left_out_trials_are_predicted_as_a_second_fit_without_them_would():
    x, t, _ = noisy(40, noise=2.0)
    weights, unseen, strength = ridge(x, t)
    x, t = x.double() / x.double().std(0), t.double()
    penalty = len(x) * strength * torch.eye(12, dtype=torch.float64)

    def fit(rows):
        inner, outer = x[rows] - x[rows].mean(0), t[rows] - t[rows].mean(0)
        return torch.linalg.solve(inner.T @ inner + penalty, inner.T @ outer)

    for i in (0, 17, 39):
        others = torch.arange(40) != i
        predicted = t[others].mean(0) + (x[i] - x[others].mean(0)) @ fit(others)
        torch.testing.assert_close(unseen[i].double() + t.mean(0), predicted, atol=1e-4, rtol=1e-4)
    scale = noisy(40, noise=2.0)[0].double().std(0)[:, None]
    torch.testing.assert_close(weights.double() * scale, fit(torch.arange(40) >= 0), atol=1e-4, rtol=1e-4)


def test_fewer_trials_than_values_explain_nothing_where_there_is_nothing():
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(60, 200, generator=generator), torch.randn(60, 3, generator=generator)
    assert fitted(x, t, "S1")[2] < 0.05


def test_more_noise_is_met_by_more_strength():
    clean, loud = (ridge(*noisy(60, noise)[:2])[2] for noise in (0.01, 8.0))
    assert clean == STRENGTHS[0] < loud


def test_explained_variance_is_of_unseen_trials():
    x, t, true = noisy(400, noise=1.0)
    weights, unseen, explained, _ = fitted(x, t, "S1")
    new, target, _ = noisy(4000, noise=1.0, seed=0)
    predicted = (new - x.mean(0)) @ weights
    assert predicted.square().sum(1).mean().sqrt() == pytest.approx(
        float(unseen.square().sum(1).mean().sqrt()), rel=0.15
    )
    of_signal = (x @ true).var(0).sum() / t.var(0).sum()
    assert explained == pytest.approx(float(of_signal), abs=0.05)
    chance = fitted(x, torch.randn(400, 3, generator=torch.Generator().manual_seed(1)), "S1")[2]
    assert abs(chance) < 0.05 < explained
    with pytest.raises(UserError, match="S1 has 3"):
        fitted(x[:3], t[:3], "S1")


def test_a_discriminant_makes_classes_spheres_in_their_own_axes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 3
    codes = torch.linalg.qr(torch.randn(8, 3, generator=generator))[0].T
    noise = torch.randn(3000, 3, generator=generator) @ torch.tensor([[3.0, 0, 0], [1, 0.5, 0], [0, 0, 0.2]])
    z = (torch.eye(3)[labels] + noise) @ codes
    to, means = discriminant(z, labels)
    new = z @ to @ codes.T
    torch.testing.assert_close(new[labels == 1].mean(0), means[1] @ codes.T, atol=1e-4, rtol=1e-4)
    around = torch.cat([new[labels == k] - new[labels == k].mean(0) for k in range(3)])
    torch.testing.assert_close(around.T @ around / 3000, torch.eye(3), atol=1e-3, rtol=1e-3)


def test_a_subject_layer_adds_the_map_of_its_subject():
    config = EncoderConfig(name="linear", dim=8, subjects=True, readout=True)
    encoder = build_encoder(config, 4, 64, subjects=["a", "b"]).eval()
    weights = 100 * torch.randn(4 * 32, 8, generator=torch.Generator().manual_seed(0))
    encoder.add_to_readout("b", weights)
    x = torch.randn(5, 4, 64)
    a, b = (encoder(x, torch.full((5,), number)) for number in (0, 1))
    assert torch.nn.functional.cosine_similarity(b, frames(x) @ weights).min() > 0.99 > a.mul(b).sum(1).max()


def test_codes_of_classes_are_orthonormal_while_there_is_room():
    codes = class_codes(torch.tensor([0, 1, 2, 2]), 3, 8, seed=0)
    torch.testing.assert_close(codes @ codes.T, torch.eye(4)[[0, 1, 2, 2]] @ torch.eye(4)[[0, 1, 2, 2]].T)
    many = class_codes(torch.arange(300), 300, 8, seed=0)
    assert len(many.unique(dim=0)) == 300 and many.square().sum(1).mean() == pytest.approx(1, abs=0.2)
