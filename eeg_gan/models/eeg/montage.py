"""Electrodes of the data for a network that was made for others: mapped by name, interpolated by position, or refused.

Splines on the sphere: Perrin et al., Electroenceph. Clin. Neurophysiol. 72 (1989), equations 2a and 3, m = 4.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.special import eval_legendre

from eeg_gan.config import UserError

Absent = Literal["refuse", "interpolate"]
OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
REFERENCES = ("-REF", "-LE", "-AVG", "-AR")
MONTAGES = ("colin27_1005", "standard_1005")  # MNE's newer and older name of one montage
LEAST = 4  # electrodes on the scalp to interpolate from
SCALP = (0.7, 1.4)  # distance from the middle, of the head's mean radius
TERMS, SMOOTHING = 50, 1e-5  # Legendre polynomials; what is added to the diagonal, as MNE does
log = logging.getLogger("eeg_gan")


def mixing(
    data: Sequence[str],
    network: Sequence[str],
    absent: Absent,
    places: Mapping[str, np.ndarray] | None = None,
    key: str = "encoder.zoo.absent",
) -> np.ndarray:
    """[network, data] weights that turn the data's electrodes into the network's; an electrode is never left at zero.

    Names are compared without case, "EEG" before and "-REF" behind, old names as new ones; a pair such as Fp1-F7 is a
    difference. What has no electrode of its name is refused, or interpolated from all electrodes of the data by their
    standard positions. `places` are positions [3] of the network's electrodes in MNE's montage, where it has others;
    `key` is what the user wrote `absent` as.
    """
    known = {name: np.eye(len(data))[column] for name, column in _by_name(data).items()}
    parts = [[plain(name)] if plain(name) in known else plain(name).split("-") for name in network]
    missing = sorted({part for own in parts for part in own} - known.keys(), key=sum(parts, []).index)
    if missing and absent == "refuse":
        raise UserError(
            f"the network reads {len(network)} electrodes, of which the data lack {_some(missing)}; set "
            f"{key}=interpolate to have them from their neighbours, or take a network without fixed "
            f"electrodes. The data have {_some(data)}"
        )
    if missing:
        known |= dict(zip(missing, _interpolation(data, missing, places or {}), strict=True))
        log.warning("interpolated from other electrodes: %d of %d, %s", len(missing), len(network), _some(missing))
    weights = np.stack([known[own[0]] - sum(known[part] for part in own[1:]) for own in parts])
    unread = [name for column, name in enumerate(data) if not weights[:, column].any()]
    if unread:
        log.warning("the network has no place for %d of the data's electrodes: %s", len(unread), _some(unread))
    return weights


def plain(name: str) -> str:
    """FP1 of "EEG Fp1-REF"."""
    word = name.upper().removeprefix("EEG").strip(" .-_")
    word = next((word.removesuffix(end) for end in REFERENCES if word.endswith(end)), word)
    return "-".join(OLD_NAMES.get(part.strip(" ."), part.strip(" .")) for part in word.split("-"))


def positions(names: Sequence[str], places: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Unit vectors from the middle of the head to those electrodes that MNE's montage, or `places`, knows."""
    known = {plain(name): np.asarray(place)[:3] for name, place in {**(places or {}), **_montage()}.items()}
    on_head = np.stack(list(_montage().values()))
    equations = np.hstack([2 * on_head, np.ones((len(on_head), 1))])  # |p|^2 = 2 p c + r^2 - |c|^2 on a sphere
    middle = np.linalg.lstsq(equations, (on_head**2).sum(1), rcond=None)[0][:3]
    radius = np.linalg.norm(on_head - middle, axis=1).mean()
    found = {}
    for name in names:
        outward = known.get(plain(name), middle) - middle
        length = np.linalg.norm(outward) / radius
        if SCALP[0] < length < SCALP[1]:
            found[name] = outward / np.linalg.norm(outward)
    return found


def spline(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[target, source] weights of the spherical spline; both are unit vectors [., 3], each row sums to 1."""
    n = len(source)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = _g(source @ source.T) + SMOOTHING * np.eye(n)
    system[n, n] = 0
    inverse = np.linalg.pinv(system)[:, :n]
    return np.hstack([_g(target @ source.T), np.ones((len(target), 1))]) @ inverse


def _g(cosine: np.ndarray) -> np.ndarray:
    n = np.arange(1, TERMS + 1)
    factors = (2 * n + 1) / (n * (n + 1.0)) ** 4 / (4 * np.pi)
    cosine = np.clip(cosine, -1, 1)
    return sum(factor * eval_legendre(k, cosine) for k, factor in zip(n, factors, strict=True))


def _interpolation(data: Sequence[str], missing: Sequence[str], places: Mapping[str, np.ndarray]) -> np.ndarray:
    found, wanted = positions(data), positions(missing, places)
    nowhere = [name for name in missing if name not in wanted]
    if nowhere:
        raise UserError(f"{_some(nowhere)} of the network have no position on the head, so nothing can stand in for it")
    if len(found) < LEAST:
        raise UserError(
            f"{len(found)} of the data's electrodes ({_some(data)}) have a position in MNE's montage {MONTAGES[0]}, "
            f"but {LEAST} or more are needed to interpolate from; name them by the 10-5 system"
        )
    source = [column for column, name in enumerate(data) if name in found]
    weights = np.zeros((len(missing), len(data)))
    weights[:, source] = spline(np.stack([found[data[c]] for c in source]), np.stack([wanted[m] for m in missing]))
    return weights


def _montage() -> dict[str, np.ndarray]:
    try:
        import mne
    except ImportError:
        raise UserError(
            "interpolating electrodes needs MNE for their positions; pip install 'eeg-gan[zoo]', or set "
            "encoder.zoo.absent=refuse"
        ) from None
    return mne.channels.make_standard_montage(montage_name()).get_positions()["ch_pos"]


def montage_name() -> str:
    import mne

    return next(name for name in MONTAGES if name in mne.channels.get_builtin_montages() or name == MONTAGES[-1])


def _by_name(data: Sequence[str]) -> dict[str, int]:
    known: dict[str, int] = {}
    for column, name in enumerate(data):
        if plain(name) in known:
            raise UserError(f"{data[known[plain(name)]]} and {name} of the data are one electrode; rename one of them")
        known[plain(name)] = column
    return known


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
