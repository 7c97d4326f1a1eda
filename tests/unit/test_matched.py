"""Matched filters: factors of noise that was made from known ones, and classes that stand out after them."""

import pytest
import torch

from eeg_gan.models.eeg import EncoderConfig, build_encoder, matched
from eeg_gan.models.eeg.readout import ridge
from eeg_gan.models.eeg.subjects import pooling

C, T, K = 6, 20, 4


def factors(seed):
    """Roots of noise over electrodes and over time, far from white."""
    generator = torch.Generator().manual_seed(seed)
    over_C = torch.eye(C) + 0.5 * torch.randn(C, C, generator=generator)
    over_T = torch.tril(0.9 ** (torch.arange(T)[:, None] - torch.arange(T)).clamp(min=0))
    return over_C, over_T


def trials(n, evoked=1.0, seed=0):
    """EEG [n, C, T] with a mean, templates of K classes in one electrode, coloured noise; and labels [n]."""
    generator = torch.Generator().manual_seed(seed + 10)
    left, right = factors(seed)
    labels = torch.arange(n) % K
    template = torch.zeros(K, C, T)
    template[:, 2] = torch.sin(torch.arange(T) * torch.arange(1, K + 1)[:, None])  # the same for every seed
    noise = left @ torch.randn(n, C, T, generator=generator) @ right.T
    return 7 + evoked * template[labels] + noise, labels


def test_factors_of_noise_are_found():
    own = matched.Subject(*trials(2000), loading=0)
    left, right = factors(0)
    truth = torch.kron(left @ left.T, right @ right.T).double()
    assert (torch.kron(own.noise_C, own.noise_T) - truth).norm() / truth.norm() < 0.03


def test_classes_stand_out_of_filtered_eeg():
    people = [matched.Subject(*trials(120, seed=seed)) for seed in (0, 1)]
    found = matched.filters(people)
    for seed, (centre, over_C, over_T) in enumerate(found):
        x, labels = trials(120, seed=seed)
        targets = torch.eye(K)[labels]
        new = over_C @ (x - centre) @ over_T
        error = [
            (targets - targets.mean(0) - ridge(e.flatten(1), targets, each)[1]).square().sum()
            for e, each in ((x, True), (new, False))
        ]
        assert error[1] < 0.8 * error[0]
        left, right = factors(seed)
        noise = (over_C @ left).square().sum() * (right.T @ over_T).square().sum() / (C * T)
        assert noise == pytest.approx(1, rel=0.2), "noise has unit variance"


def test_chance_has_no_evoked_power():
    """Without a bias, that is: over many orders of the labels, as one order leaves a fifth of it now and then."""
    x, labels = trials(400, evoked=0.0)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(400, generator=generator) for _ in range(20)]
    chance = [[f.trace() for f in matched.evoked([matched.Subject(x, labels[order])])] for order in orders]
    loud = torch.stack([f.trace() for f in matched.evoked([matched.Subject(*trials(400))])])
    assert (torch.tensor(chance).mean(0).abs() < 0.05 * loud).all()


@pytest.mark.parametrize("n_times", [24, 100])
def test_an_encoder_reads_filtered_eeg(n_times):
    """Fewer samples than frames are filtered as they are; of more, frames pass."""
    config = EncoderConfig(name="linear", dim=8, subjects=True, matched=True)
    encoder = build_encoder(config, C, n_times, subjects=["a", "b"]).eval()
    x, own, pool = torch.randn(5, C, n_times), torch.ones(5, dtype=torch.long), pooling(n_times).float()
    n_frames = pool.shape[1]
    assert n_frames == min(n_times, 32)
    before = encoder(x, own)
    centre, over_C, over_F = torch.randn(C, n_times), torch.randn(C, C), torch.randn(n_frames, n_frames)
    encoder.set_filter("b", centre, over_C, over_F)
    new = over_C @ (x - centre) @ pool @ over_F @ torch.linalg.pinv(pool)
    torch.testing.assert_close(encoder.filtered(x, own), new, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(new, 0 * own), encoder(x, own), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(x, 0 * own), before)
    assert not any(each.requires_grad for each in encoder.filters.parameters())
    with pytest.raises(ValueError, match="encoder.subjects=true"):
        EncoderConfig(matched=True)
