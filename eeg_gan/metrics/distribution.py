"""Distances between a set of real and a set of generated images, in some detector's feature space [N, F]."""

import math

import numpy as np
import torch

from eeg_gan.config import UserError

CHUNK = 4096  # samples that are in double precision at a time
ENTRIES = 2**23  # of a distance matrix at a time: 64 MB


def frechet(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Frechet distance of the two Gaussians: |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^1/2); never negative.

    With S = R^T R the last trace is the sum of the singular values of R_a R_b^T, which stays real and exact where fewer
    samples than features make S singular and a matrix square root fails.
    """
    a, b = _checked(features_a, 2), _checked(features_b, 2)
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(0.0, distance.item())


def frechet_by_class(real: np.ndarray, fake: np.ndarray, y_real: np.ndarray, y_fake: np.ndarray) -> dict[int, float]:
    """The Frechet distance within each class that has two samples or more on both sides (intra-class FID)."""
    pairs = {int(y): (real[y_real == y], fake[y_fake == y]) for y in np.unique(y_real)}
    return {y: frechet(a, b) for y, (a, b) in pairs.items() if min(len(a), len(b)) > 1}


def kid(
    features_a: np.ndarray, features_b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared MMD with kernel (x.y / F + 1)^3 (KID).

    Unbiased for few samples too, unlike the Frechet distance; it may come out slightly negative.
    """
    a, b = _checked(features_a, 2), _checked(features_b, 2)
    rng, values = np.random.default_rng(seed), []
    size_a, size_b = min(size, len(a)), min(size, len(b))
    if (size_a, size_b) == (len(a), len(b)):  # every subset is the whole
        return _squared_mmd(a.double(), b.double()), 0.0
    for _ in range(subsets):
        own_a, own_b = rng.choice(len(a), size_a, replace=False), rng.choice(len(b), size_b, replace=False)
        values.append(_squared_mmd(a[own_a].double(), b[own_b].double()))
    return float(np.mean(values)), float(np.std(values))


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over parts of exp(E KL(p(y|x) | p(y))): 1 is no variety, the number of classes most.

    Salimans et al. 2016 (arXiv 1606.03498); parts are consecutive, so the order of [N, K] should be random.
    """
    x = _checked(logits, 1)
    scores = []
    for part in x.tensor_split(min(splits, len(x))):
        log_p = part.double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - math.log(len(part))
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def inside(points: np.ndarray, centres: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """In how many balls each point lies [points], and how many points each ball holds [centres].

    A ball reaches from a centre to its k-th neighbour among the centres; its own place does not count.
    """
    points, centres = _checked(points, 1), _checked(centres, k + 1)
    per_point, per_centre = torch.zeros(len(points), dtype=torch.long), []
    for part in centres.split(max(1, ENTRIES // max(len(points), len(centres)))):
        radius = _distances(part, centres).kthvalue(k + 1, dim=1, keepdim=True).values  # the nearest is itself
        held = _distances(part, points) <= radius
        per_point += held.sum(0)
        per_centre.append(held.sum(1))
    return per_point.numpy(), torch.cat(per_centre).numpy()


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Share of fakes within reach of the real manifold, and of reals within reach of the fake one.

    The manifold is the union of balls to each sample's k-th neighbour (Kynkaanniemi et al. 2019, arXiv 1904.06991).
    """
    return float((inside(fake, real, k)[0] > 0).mean()), float((inside(real, fake, k)[0] > 0).mean())


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Mean number of real balls that hold a fake, over k; the share of real balls that hold one (Naeem et al. 2020)."""
    per_fake, per_real = inside(fake, real, k)
    return float(per_fake.mean() / k), float((per_real > 0).mean())


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance from each point to the nearest of the others [points]; of generated to training: memorisation."""
    points, others = _checked(points, 1), _checked(others, 1)
    parts = points.split(max(1, ENTRIES // len(others)))
    return torch.cat([_distances(part, others).min(1).values for part in parts]).numpy()


def _checked(features: np.ndarray, least: int) -> torch.Tensor:
    x = torch.as_tensor(features).detach().cpu()
    if len(x) < least:
        raise UserError(f"this distance needs {least} samples or more on each side, got {len(x)}; give more images")
    if not torch.isfinite(x).all():
        raise UserError("some features are not finite; the generator or the detector has diverged")
    return x


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [F], and R [min(N, F), F] with R^T R the unbiased covariance of x [N, F]."""
    mean = torch.stack([part.double().sum(0) for part in x.split(CHUNK)]).sum(0) / len(x)
    if len(x) <= x.shape[1]:
        return mean, (x.double() - mean) / (len(x) - 1) ** 0.5
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.double)
    for part in x.split(CHUNK):
        centred = part.double() - mean
        covariance += centred.T @ centred / (len(x) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, vectors.T * values.clamp(min=0).sqrt().unsqueeze(1)


def _squared_mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    n, m = len(a), len(b)
    k_aa, k_bb, k_ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (k_aa.sum() - k_aa.trace()) / (n * (n - 1)) + (k_bb.sum() - k_bb.trace()) / (m * (m - 1))
    return (within - 2 * k_ab.mean()).item()


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[a, b] in double precision, of which only a part of b is made at a time."""
    return torch.cat([torch.cdist(a.double(), part.double()) for part in b.split(CHUNK)], 1)
