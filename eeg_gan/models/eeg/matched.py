"""Each subject's matched filter of the EEG in closed form: what classes evoke passes, noise does not.

Templates drawn from N(0, S) that are seen in noise N(0, K) are told apart by ridge regression on S^1/2 K^-1 x, where
its penalty is the same in all directions. With hundreds of trials and thousands of EEG values neither covariance can be
estimated freely; as products of one factor over electrodes and one over time both can, as the matrix normal
distribution has them (Dutilleul 1999), and the filter is a matrix on either side of the trial. K is each subject's own,
of trials less the mean of their class; S is common to all, what class means have above the noise.
"""

import torch
from torch import Tensor

from eeg_gan.models.eeg.subjects import pooling

# N trial, C electrode, T time sample, later frame of time
ROUNDS = 4  # of alternation between the two factors of the noise
LOADING = 1e-3  # of the mean variance, added to each factor: filters leave some frequencies almost empty
LEAST = 8  # trials of a subject beyond one of each class


class Subject:
    """What the filters need of one subject's trials [N, C, T]: class means, and the factors of noise."""

    def __init__(self, x_NCT: Tensor, label_N: Tensor, loading: float = LOADING):
        x, pool = x_NCT.double(), pooling(x_NCT.shape[2])
        self.mean, x = x.mean(0), x @ pool
        classes, number, self.counts = label_N.unique(return_inverse=True, return_counts=True)
        means = x.new_zeros(len(classes), *x.shape[1:]).index_add_(0, number, x) / self.counts[:, None, None]
        self.evoked = means - x.mean(0)
        self.noise_C, self.noise_T = noise(x - means[number], len(classes), loading)


def noise(rest_NCT: Tensor, lost: int, loading: float) -> tuple[Tensor, Tensor]:
    """Factors [C, C] and [T, T] of the covariance of residuals, `lost` of which are spent on means."""
    (n, n_chans, n_times), over_T = rest_NCT.shape, torch.eye(rest_NCT.shape[2], dtype=rest_NCT.dtype)
    for _ in range(ROUNDS):
        white = rest_NCT @ torch.linalg.cholesky(torch.linalg.inv(over_T))
        over_C = _loaded(torch.tensordot(white, white, ([0, 2], [0, 2])) / (n_times * (n - lost)), loading)
        over_C = over_C * (n_chans / over_C.trace())
        white = torch.linalg.cholesky(torch.linalg.inv(over_C)).T @ rest_NCT
        over_T = _loaded(torch.tensordot(white, white, ([0, 1], [0, 1])) / (n_chans * (n - lost)), loading)
    return over_C, over_T


def evoked(people: list[Subject]) -> tuple[Tensor, Tensor]:
    """Factors [C, C] and [T, T] of the covariance of class means, less what noise leaves in means of so many trials."""
    over_C = over_T = 0
    for own in people:
        n_chans, n_times = own.evoked.shape[1:]
        left = (1 / own.counts).sum() - len(own.counts) / own.counts.sum()  # of noise, in all class means together
        by_C, by_T = torch.linalg.inv(own.noise_C) @ own.evoked, own.evoked @ torch.linalg.inv(own.noise_T)
        over_C = over_C + torch.tensordot(by_T, own.evoked, ([0, 2], [0, 2])) - n_times * left * own.noise_C
        over_T = over_T + torch.tensordot(by_C, own.evoked, ([0, 1], [0, 1])) - n_chans * left * own.noise_T
    return over_C, over_T


def filters(people: list[Subject]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each subject's mean [C, T], and the matrices [C, C] and [F, F] on either side of the frames of a trial less it.

    Noise that is filtered has unit variance, averaged over electrodes and time. Where class means have no more power
    than noise leaves in them, it is whitened and no more. Trials that a filter was fitted on show their classes more
    plainly than others do.
    """
    factors = evoked(people)
    shown = min(factor.trace() for factor in factors) > 0
    found = [_root(factor) if shown else torch.eye(len(factor), dtype=factor.dtype) for factor in factors]
    every = []
    for own in people:
        over_C, over_T = found[0] @ torch.linalg.inv(own.noise_C), torch.linalg.inv(own.noise_T) @ found[1]
        power = (over_C @ own.noise_C @ over_C.T).trace() * (over_T.T @ own.noise_T @ over_T).trace()
        size = over_C.shape[0] * over_T.shape[0]
        every.append(tuple(part.float() for part in (own.mean, over_C * (size / power).sqrt(), over_T)))
    return every


def _loaded(covariance: Tensor, loading: float) -> Tensor:
    return covariance + loading * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of the positive part."""
    values, axes = torch.linalg.eigh(covariance)
    return (axes * values.clamp(min=0).sqrt()) @ axes.T
