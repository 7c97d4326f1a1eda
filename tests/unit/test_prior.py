"""What a trial's noisy feature most likely was: posterior means that can be computed otherwise."""

import pytest
import torch
import torch.nn.functional as F

from eeg_gan.stages.generate_prior import PriorConfig, expected


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


def test_a_temperature_is_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        PriorConfig(temperature=0.0)
