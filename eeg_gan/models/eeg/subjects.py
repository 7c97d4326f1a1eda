"""A layer of each subject's own in front of a shared encoder: people differ in heads and caps more than in responses.

The subject layer of Defossez et al., "Decoding speech perception from non-invasive brain recordings" (Nature Machine
Intelligence 2023), kept near the identity; MindEye2 and ENIGMA adapt to a new person by such a layer alone.
"""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError

ABSENT = -1e4  # the log of a probability that is zero in float32
UNKNOWN = -1  # the number of a subject without a layer
FRAMES = 32  # means over time that a subject's linear map reads of each electrode
log = logging.getLogger("eeg_gan")


class SubjectEncoder(nn.Module):
    """x [B, C, T] of subjects [B] -> encoder(x + M_s x), M_s [C, C] of subject s, zero at the start.

    With `matched` = T a fixed filter of each subject comes before all that, L_s P(x - m_s) R_s spread over time again:
    P pools to frames, which alone pass. L_s and R_s are identities until `set_filter`.

    With `readout` = (T, D) each subject also has a linear map R_s of the EEG, pooled to frames, zero at the start, and
    the feature is the direction of encoder(x + M_s x) + R_s x: brains differ in how they respond, not in heads alone.

    With `posterior` that map ends in the classes' probabilities, each with a direction of its own.

    Subject -1, or no subject, has the mean of the layers. As weights are the difference from the identity, weight
    decay pulls each subject towards having no layer.
    """

    def __init__(
        self,
        encoder: nn.Module,
        n_chans: int,
        names: Sequence[str],
        readout: tuple[int, int] | None = None,
        dropout: float = 0.2,
        matched: int | None = None,
        posterior: bool = False,
    ):
        super().__init__()
        if not names or not all(names):
            raise UserError(
                "encoder.subjects gives each subject a layer, but there are trials without one; "
                "write the subject into the data, or set encoder.subjects=false"
            )
        self.encoder, self.names, self.frozen = encoder, tuple(names), False
        self._told: set[str] = set()
        self.mixing = nn.ParameterList(torch.zeros(n_chans, n_chans) for _ in names)
        self.filters = None
        if matched is not None:  # centre, over electrodes, over frames
            pool = pooling(matched)
            start = torch.zeros(n_chans, matched), torch.eye(n_chans), torch.eye(pool.shape[1])
            self.filters = nn.ModuleList(_fixed(each, len(names)) for each in start)
            self.register_buffer("spread", torch.linalg.pinv(pool).float(), persistent=False)
        self.readout, self.dropout = None, nn.Dropout(dropout)
        if readout is not None:
            n_times, dim = readout
            width = n_chans * min(FRAMES, n_times)
            self.readout = nn.ParameterList(torch.zeros(width, dim) for _ in names)
        self.posterior = Posterior(readout[1]) if posterior else None

    # B batch, C electrode, T time sample, S subject, P pooled EEG, D feature
    def forward(self, x_BCT: Tensor, subject: Tensor | None = None) -> Tensor:
        if subject is None:
            subject = torch.full((len(x_BCT),), UNKNOWN, device=x_BCT.device)
        x_BCT = self.filtered(x_BCT, subject)
        z_BD = self.encoder(torch.baddbmm(x_BCT, _with_mean(self.mixing)[subject], x_BCT))
        if self.readout is None:
            return z_BD
        frames_BP = self.dropout(frames(x_BCT))
        own_BSD = torch.einsum("bp,spd->bsd", frames_BP, _with_mean(self.readout))
        own_BD = own_BSD[torch.arange(len(x_BCT), device=x_BCT.device), subject]
        return F.normalize(z_BD + (own_BD if self.posterior is None else self.posterior(own_BD)), dim=-1)

    def filtered(self, x_BCT: Tensor, subject: Tensor) -> Tensor:
        """What encoder and maps read: EEG through its subject's filter, where there are filters."""
        if self.filters is None:
            return x_BCT
        centre, over_chans, over_frames = (_with_mean(each)[subject] for each in self.filters)
        pooled_BCF = F.adaptive_avg_pool1d(x_BCT - centre, over_frames.shape[-1])
        return over_chans @ pooled_BCF @ over_frames @ self.spread

    def set_filter(self, name: str, centre: Tensor, over_chans: Tensor, over_frames: Tensor) -> None:
        with torch.no_grad():
            for each, value in zip(self.filters, (centre, over_chans, over_frames), strict=True):
                each[self.names.index(name)].copy_(value)

    def numbers(self, names: Sequence[str]) -> Tensor:
        """The number of the layer of each named subject; -1 where there is none, which is said once."""
        unknown = sorted(name or "(no subject)" for name in set(names) - set(self.names) - self._told)
        self._told |= set(names)
        if unknown:
            log.warning(
                "no layer was trained for %s: the mean layer of %d subjects serves (encode with adapt= trains one)",
                ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
                len(self.names),
            )
        places = {name: place for place, name in enumerate(self.names)}
        return torch.tensor([places.get(name, UNKNOWN) for name in names])

    def add_to_readout(self, name: str, weights: Tensor) -> None:
        """Adds [P, D] to the map of one subject."""
        with torch.no_grad():
            self.readout[self.names.index(name)].add_(weights)

    def freeze_all_but(self, names: Sequence[str]) -> None:
        """Nothing but the layers of `names` learns; what is frozen stays in evaluation mode."""
        self.requires_grad_(False)
        for layers in (self.mixing, self.readout or ()):
            for name, layer in zip(self.names, layers, strict=False):
                layer.requires_grad_(name in names)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "SubjectEncoder":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


class Posterior(nn.Module):
    """Features [B, D] of linear maps -> the mean of the classes' codes [D] by their probabilities, times a length.

    Fixed, and nothing until `set`: up to D classes, as spheres of one size around their means (linear discriminant).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.means, self.codes = (nn.Parameter(torch.zeros(dim, dim), requires_grad=False) for _ in range(2))
        self.offset = nn.Parameter(torch.zeros(dim), requires_grad=False)

    # B batch, K class, up to D of them, D feature
    def forward(self, z_BD: Tensor) -> Tensor:
        return torch.softmax(z_BD @ self.means.T + self.offset, dim=1) @ self.codes

    def set(self, means_KD: Tensor, codes_KD: Tensor) -> None:
        n = len(means_KD)
        with torch.no_grad():
            self.offset.fill_(ABSENT)[:n] = -0.5 * means_KD.square().sum(1)
            self.means.zero_()[:n], self.codes.zero_()[:n] = means_KD, codes_KD


def frames(x_BCT: Tensor) -> Tensor:
    """[B, P] what a subject's linear map reads: means over time of each electrode."""
    return F.adaptive_avg_pool1d(x_BCT, min(FRAMES, x_BCT.shape[2])).flatten(1)


def pooling(n_times: int) -> Tensor:
    """[T, F] in float64, with which a product makes the same frames of T samples."""
    return F.adaptive_avg_pool1d(torch.eye(n_times, dtype=torch.float64), min(FRAMES, n_times))


def _fixed(start: Tensor, n: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(start.clone(), requires_grad=False) for _ in range(n))


def _with_mean(layers: nn.ParameterList) -> Tensor:
    """[S + 1, ...] of which the last one, -1, is the mean."""
    stacked = torch.stack(list(layers))
    return torch.cat([stacked, stacked.mean(0, keepdim=True)])
