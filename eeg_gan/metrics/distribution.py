"""Distances between a set of real and a set of generated images, in some detector's feature space [N, F]."""

import numpy as np
import torch

from eeg_gan.config import UserError

CHUNK = 2048  # rows of a distance matrix at a time


def frechet(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Frechet distance of the two Gaussians: |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^1/2); never negative.

    With S = R^T R the last trace is the sum of the singular values of R_a R_b^T, which stays real and exact where fewer
    samples than features make S singular and a matrix square root fails.
    """
    a, b = _double(features_a, 2), _double(features_b, 2)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(0.0, distance.item())


def kid(
    features_a: np.ndarray, features_b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared MMD with kernel (x.y / F + 1)^3 (KID).

    Unbiased for few samples too, unlike the Frechet distance; it may come out slightly negative.
    """
    a, b = _double(features_a, 2), _double(features_b, 2)
    rng, values = np.random.default_rng(seed), []
    size_a, size_b = min(size, len(a)), min(size, len(b))
    for _ in range(subsets):
        own_a, own_b = rng.choice(len(a), size_a, replace=False), rng.choice(len(b), size_b, replace=False)
        values.append(_squared_mmd(a[own_a], b[own_b]))
    return float(np.mean(values)), float(np.std(values))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Share of fakes within reach of the real manifold, and of reals within reach of the fake one.

    The manifold is the union of balls to each sample's k-th neighbour (Kynkaanniemi et al. 2019).
    """
    real, fake = _double(real, k + 1), _double(fake, k + 1)
    return _covered(fake, real, k).any(0).double().mean().item(), _covered(real, fake, k).any(0).double().mean().item()


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Mean number of real balls that hold a fake, over k; the share of real balls that hold one (Naeem et al. 2020)."""
    real, fake = _double(real, k + 1), _double(fake, 1)
    inside = _covered(fake, real, k)
    return inside.sum().item() / (k * len(fake)), inside.any(1).double().mean().item()


def _double(features: np.ndarray, least: int) -> torch.Tensor:
    x = torch.as_tensor(features).detach().cpu().double()
    if len(x) < least:
        raise UserError(f"this distance needs {least} samples or more on each side, got {len(x)}; give more images")
    if not torch.isfinite(x).all():
        raise UserError("some features are not finite; the generator or the detector has diverged")
    return x


def _covariance_root(x: torch.Tensor) -> torch.Tensor:
    """R [min(N, F), F] with R^T R the unbiased covariance of x [N, F]."""
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    if len(x) <= x.shape[1]:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return vectors.T * values.clamp(min=0).sqrt().unsqueeze(1)


def _squared_mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    n, m = len(a), len(b)
    k_aa, k_bb, k_ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (k_aa.sum() - k_aa.trace()) / (n * (n - 1)) + (k_bb.sum() - k_bb.trace()) / (m * (m - 1))
    return (within - 2 * k_ab.mean()).item()


def _covered(points: torch.Tensor, centres: torch.Tensor, k: int) -> torch.Tensor:
    """[centres, points]: whether a point lies in the ball that reaches from a centre to its k-th neighbour."""
    rows = []
    for part in centres.split(CHUNK):
        radius = torch.cdist(part, centres).kthvalue(k + 1, dim=1, keepdim=True).values  # the nearest is itself
        rows.append(torch.cdist(part, points) <= radius)
    return torch.cat(rows)
