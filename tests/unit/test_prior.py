"""What a trial's noisy feature most likely was: posterior means that can be computed otherwise."""

import pytest
import torch
import torch.nn.functional as F

from eeg_gan.stages.generate_prior import Prior, PriorConfig, whitening_of


def expected(noisy, prior, temperature, whitening=None):
    whitening = torch.eye(prior.shape[1]) if whitening is None else whitening
    return Prior(prior, whitening, temperature).expected(noisy)


def test_limits_are_the_nearest_row_and_the_mean_of_all():
    generator = torch.Generator().manual_seed(0)
    prior, noisy = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (7, 3000))
    nearest = prior[(noisy @ prior.T).argmax(1)]
    torch.testing.assert_close(expected(noisy, prior, 1e-6), nearest)
    mean = F.normalize(prior.mean(0), dim=0).expand_as(noisy)
    torch.testing.assert_close(expected(noisy, prior, 1e6), mean, atol=1e-4, rtol=0)


def test_it_is_the_posterior_mean_and_nearer_to_the_truth_than_the_trial():
    generator = torch.Generator().manual_seed(1)
    prior = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    truth = prior[torch.randint(4, (2000,), generator=generator)]
    sigma = 0.5
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator)
    length = noisy.norm(dim=1, keepdim=True)
    posterior = (-(noisy[:, None] - prior).square().sum(2) / (2 * sigma**2)).softmax(1)  # Bayes, Gaussian noise
    found = torch.cat([expected(n[None], prior, sigma**2 / float(k)) for n, k in zip(noisy, length, strict=True)])
    torch.testing.assert_close(found, F.normalize(posterior @ prior, dim=1), atol=1e-4, rtol=1e-4)
    nearer = (found * truth).sum(1) > (F.normalize(noisy, dim=1) * truth).sum(1)
    assert nearer.float().mean() > 0.9


def test_noise_along_few_axes_counts_for_less_there():
    generator = torch.Generator().manual_seed(2)
    prior = F.normalize(torch.randn(40, 16, generator=generator), dim=1)
    spread = torch.cat([torch.full((4,), 0.6), torch.full((12,), 0.05)])
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]

    def draw(n):
        truth = prior[torch.randint(40, (n,), generator=generator)]
        noise = (torch.randn(n, 16, generator=generator) * spread) @ turn
        return truth, F.normalize(truth + noise, dim=1), noise

    whitening = whitening_of(draw(5000)[2])
    covariance = torch.cov((draw(5000)[2] @ whitening).T)
    loud = covariance.diagonal().sort().values[-4:]
    assert ((0.5 < loud) & (loud < 1.5)).all() and covariance.diagonal().max() < 1.5
    truth, noisy, _ = draw(1000)
    alike = max(float((expected(noisy, prior, t) * truth).sum(1).mean()) for t in (0.01, 0.03, 0.1, 0.3))
    assert float((expected(noisy, prior, 1.0, whitening) * truth).sum(1).mean()) > alike + 0.05


def test_measured_needs_features():
    with pytest.raises(ValueError, match="prior.features"):
        PriorConfig(measured="runs/embed")


def test_a_temperature_is_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        PriorConfig(temperature=0.0)
