"""Low-level likeness of pairs of images, and variety within a condition."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def pixcorr(a: Tensor, b: Tensor) -> np.ndarray:
    """Pearson correlation over all pixels and colours of each pair of uint8 images [N, 3, H, W]; flat images give 0."""
    x, y = (images.flatten(1).double() for images in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp(min=1e-12)).cpu().numpy()


def ssim(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> np.ndarray:
    """Structural similarity of each pair of uint8 images [N, 3, H, W] (Wang et al. 2004), mean over colours and places.

    Gaussian window without padding, data range 255, K1 = 0.01, K2 = 0.03.
    """
    window = min(window, *a.shape[2:])
    offset = torch.arange(window, dtype=torch.double, device=a.device) - (window - 1) / 2
    line = torch.exp(-(offset**2) / (2 * sigma**2))
    line = line / line.sum()

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x.flatten(0, 1).unsqueeze(1), line.view(1, 1, 1, -1))
        return F.conv2d(x, line.view(1, 1, -1, 1)).view(*a.shape[:2], -1)

    x, y = a.double(), b.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2)).cpu().numpy()


def diversity(features: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Mean Euclidean distance between images [N, F] of one condition [N], for each condition with two images or more.

    Zero is a generator that ignores its noise; compare with the value for real images.
    """
    features, conditions = torch.as_tensor(features).cpu(), np.asarray(conditions)
    groups = [features[np.flatnonzero(conditions == name)].double() for name in np.unique(conditions)]
    return np.array([torch.pdist(group).mean().item() for group in groups if len(group) > 1])


def map_distance(maps_a: list[Tensor], maps_b: list[Tensor]) -> Tensor:
    """[B] squared distance of feature maps [B, C, H, W], each place of unit length, mean over places, sum over layers.

    LPIPS without learned weights of channels (Zhang et al. 2018, arXiv 1801.03924).
    """
    unit = [[F.normalize(m.float(), dim=1) for m in maps] for maps in (maps_a, maps_b)]
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(*unit, strict=True)]).sum(0)


def path_lengths(
    ws: Tensor, other: Tensor, synthesise: Callable[[Tensor], Tensor], distance: Callable, epsilon: float = 1e-4
) -> Tensor:
    """[B] of d(g(w), g(w + epsilon (w' - w))) / epsilon^2: squared speed at the start of straight paths in w.

    Perceptual path length at end points (Karras et al. 2020, arXiv 1912.04958): its mean says how smooth w is. `ws` and
    `other` [B, L, D] share their conditions; `distance` is a squared one.
    """
    return distance(synthesise(ws), synthesise(ws.lerp(other, epsilon))) / epsilon**2
