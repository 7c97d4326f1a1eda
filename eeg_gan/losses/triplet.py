"""Triplet losses over the whole batch: the one the paper describes, and the one its published code trains with.

Both are exact without listing the triplets: sorting each anchor's distances tells how many triplets a pair is in.
Anchors go in chunks, so the memory beside the [B, B] distances is O(chunk x B). Losses see the global batch: the
caller gathers embeddings and labels over ranks first. Distances are products in float64: d^2 = 2 - 2 s of near
neighbours keeps its digits there, and takes less time than differences in float32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # anchors at a time
NEAREST = 1e-7  # closer embeddings count as equal: the square root has no gradient at zero


@dataclass(frozen=True)
class TripletConfig:
    mining: Literal["mined", "semi_hard"] = "mined"  # mined is what the paper's code runs, semi_hard what its text says
    margin: float | None = None  # null is 0.05 (mined, Euclidean) or 1.0 (semi_hard, squared Euclidean)
    epsilon: float = 0.1  # mined: cosine slack of the multi-similarity miner

    def __post_init__(self):
        if self.margin is not None and self.margin <= 0:
            raise ValueError(f"margin is a distance between unit vectors, so it must be positive; got {self.margin}")
        if self.epsilon < 0:
            raise ValueError(f"epsilon is a slack in cosine, so it must be 0 or more; got {self.epsilon}")


def triplet(z: Tensor, labels: Tensor, config: TripletConfig) -> Tensor:
    """The configured loss of embeddings z [B, D] with integer labels [B]."""
    if config.mining == "semi_hard":
        return semi_hard_triplet(z, labels, 1.0 if config.margin is None else config.margin)
    return mined_triplet(z, labels, config.epsilon, 0.05 if config.margin is None else config.margin)


def semi_hard_triplet(z: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """FaceNet's semi-hard loss on unit vectors: sum over ordered positive pairs of relu(margin + d_ap - d_an) / pairs.

    d is the squared Euclidean distance; n is the closest negative further away than p, or the furthest negative where
    no negative is further than p. Anchors without negatives add nothing. (Schroff et al. 2015, as in TF-addons.)
    """
    with torch.autocast(z.device.type, enabled=False):
        z, total, pairs = F.normalize(z.double(), dim=-1), 0.0, 0
        for rows in _chunks(len(z)):
            d_ab = (2 - 2 * z[rows] @ z.T).clamp(min=0)
            positive, negative = _masks(labels, rows)
            chosen = _semi_hard_negative(d_ab.detach(), negative)
            usable = positive & negative.any(1, keepdim=True)
            total = total + (F.relu(margin + d_ab - d_ab.gather(1, chosen)) * usable).sum()
            pairs = pairs + positive.sum()
        return (total / pairs.clamp(min=1)).float()


def mined_triplet(z: Tensor, labels: Tensor, epsilon: float = 0.1, margin: float = 0.05) -> Tensor:
    """Mean over the non-zero relu(d_ap - d_an + margin) of all mined (a, p, n); d is Euclidean between unit vectors.

    Multi-similarity mining: p is kept when s_ap - epsilon < max_n s_an, and n when s_an + epsilon > min_p s_ap, with s
    the cosine (Wang et al. 2019).
    """
    with torch.autocast(z.device.type, enabled=False):
        z, total, terms = F.normalize(z.double(), dim=-1), 0.0, 0
        for rows in _chunks(len(z)):
            s_ab = z[rows] @ z.T
            d_ab = (2 - 2 * s_ab).clamp(min=NEAREST**2).sqrt()
            with torch.no_grad():
                positive, negative = _mine(s_ab, *_masks(labels, rows), epsilon)
                count = _signed_counts(d_ab, positive, negative, margin)
                active = count.clamp(min=0).sum()
            # Sum of (d_ap - d_an + margin) over the active triplets, by the number of triplets that each pair is in.
            total = total + (d_ab * count).sum() + margin * active
            terms = terms + active
        return (total / terms.clamp(min=1)).float()


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The supervised comparison: mean cross-entropy of logits [B, K] in float32."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def _chunks(total: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]


def _masks(labels: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Which pairs (anchor of `rows`, item of the batch) share a label without being the same item, and which do not."""
    same = labels[rows, None] == labels[None]
    item = torch.arange(len(labels), device=labels.device)
    return same & (item[rows, None] != item[None]), ~same


def _semi_hard_negative(d_ab: Tensor, negative: Tensor) -> Tensor:
    """For each pair (a, p) the index [A, B] of the negative to push away."""
    ascending, order = d_ab.masked_fill(~negative, torch.inf).sort(dim=1)
    further = torch.searchsorted(ascending, d_ab.contiguous(), right=True)
    furthest = negative.sum(1, keepdim=True) - 1
    return order.gather(1, torch.minimum(further, furthest).clamp(min=0))


def _mine(s_ab: Tensor, positive: Tensor, negative: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    nearest_negative = s_ab.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    furthest_positive = s_ab.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    return positive & (s_ab - epsilon < nearest_negative), negative & (s_ab + epsilon > furthest_positive)


def _signed_counts(d_ab: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """In how many triplets with d_an < d_ap + margin each pair takes part; below zero for the negatives."""
    d_an = d_ab.masked_fill(~negative, torch.inf).sort(dim=1).values
    d_ap = (d_ab + margin).masked_fill(~positive, -torch.inf)
    as_positive = torch.searchsorted(d_an, d_ap.contiguous()) * positive
    above = d_ap.shape[1] - torch.searchsorted(d_ap.sort(dim=1).values, d_ab.contiguous(), right=True)
    return (as_positive - above * negative).to(d_ab)
