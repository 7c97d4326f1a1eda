"""Each subject's linear map of the EEG in closed form: ridge regression, its strength by leave-one-out.

Few trials of a person, hundreds of correlated EEG values and a weak response: least squares with a penalty (Hoerl and
Kennard 1970) finds in seconds what gradient descent over ill-conditioned noise needs hours for. The strength is that of
the least leave-one-out error, which ridge regression has without a second fit (Golub, Heath and Wahba 1979).
"""

import torch
from torch import Tensor

from eeg_gan.config import UserError

STRENGTHS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)  # added to the unit variance of each standardised value
LEAST = 8  # trials of a subject

# N trial, P pooled EEG, D target


def ridge(x_NP: Tensor, target_ND: Tensor, each: bool = True) -> tuple[Tensor, Tensor, float]:
    """Weights [P, D] from EEG to targets, the targets less their mean as predicted leave-one-out [N, D], the strength.

    Values and targets are centred, values scaled to unit variance for the penalty, `each` by itself or all alike; the
    weights are for unscaled EEG, without an intercept: as directions of features, what all trials share says nothing.
    Means count as fitted: left out without that, a centred trial is minus the sum of the others, which says its target.
    """
    x, t = x_NP.double(), target_ND.double()
    spread = x.std(0).clamp(min=1e-6) if each else x.var(0).mean().sqrt().clamp(min=1e-6).expand(x.shape[1])
    x, t = (x - x.mean(0)) / spread, t - t.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    along, shared = x @ axes, axes.T @ (x.T @ t) / len(x)
    found = []
    for strength in STRENGTHS:
        gain = 1 / (variance.clamp(min=0) + strength)
        leverage = (1 / len(x) + along.square() @ gain / len(x)).clamp(max=1 - 1e-6)  # 1 / N is the mean's
        left = (t - along @ (gain[:, None] * shared)) / (1 - leverage)[:, None]
        found.append((float(left.square().mean()), strength, gain, left))
    _, strength, gain, left = min(found, key=lambda each: each[0])
    weights = axes @ (gain[:, None] * shared) / spread[:, None]
    return weights.float(), (t - left).float(), strength


def fitted(frames_NP: Tensor, target_ND: Tensor, name: str, each: bool = True) -> tuple[Tensor, Tensor, float, float]:
    """One subject's map [P, D], what it says of unseen trials [N, D], its R^2 on them, and the strength.

    Raises UserError where the subject has too few trials.
    """
    if len(frames_NP) < LEAST:
        raise UserError(
            f"ridge needs {LEAST} training trials of each subject or more, but {name} has {len(frames_NP)}; "
            "write ridge=null, or leave that subject out"
        )
    weights, unseen, strength = ridge(frames_NP, target_ND, each)
    spread = (target_ND - target_ND.mean(0)).square().sum(1).mean()
    left = (target_ND - target_ND.mean(0) - unseen).square().sum(1).mean()
    return weights, unseen, float(1 - left / spread.clamp(min=1e-12)), strength


def discriminant(unseen_ND: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """[D, D] after which unseen trials lie around the mean of their class as a unit sphere, and these means [K, D].

    Ridge regression pulls classes that the EEG tells apart badly towards one another; distances then count them less.
    """
    z = unseen_ND.double()
    classes, number = label_N.unique(return_inverse=True)
    means = z.new_zeros(len(classes), z.shape[1]).index_add_(0, number, z) / number.bincount()[:, None]
    around = z - means[number]
    variance, axes = torch.linalg.eigh(around.T @ around / len(z))
    kept = variance > 1e-4 * variance[-1]  # there are fewer classes than axes
    to = (axes[:, kept] / variance[kept].sqrt()) @ axes[:, kept].T
    return to.float(), (means @ to).float()
