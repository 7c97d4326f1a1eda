"""When, where and in which rhythm the EEG tells the classes: pure functions of arrays."""

from collections.abc import Callable

import numpy as np
from scipy.fft import dct, idct
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from eeg_gan.metrics.embedding import check_classes

# N trial, C electrode, T time sample, W window of time, K class

BANDS_HZ = {  # every frequency is in exactly one of them
    "delta": (0.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "gamma": (30.0, np.inf),
}


def bands(sfreq: float) -> list[str]:
    """Names of the bands that EEG at this rate can hold."""
    return [name for name, (low, _) in BANDS_HZ.items() if low < sfreq / 2]


def band_alone(x: np.ndarray, sfreq: float, band: str) -> np.ndarray:
    """What EEG [..., T] holds of one band. The bands of a trial add up to it.

    Frequencies are those of the cosine transform, which mirrors a trial at its ends, so that slow drifts do not spread
    over all bands.
    """
    low, high = BANDS_HZ[band]
    freqs = np.arange(x.shape[-1]) * sfreq / (2 * x.shape[-1])
    kept = (freqs >= low) & (freqs < high)
    return idct(dct(x, norm="ortho") * kept, norm="ortho").astype(x.dtype)


def band_removed(x: np.ndarray, sfreq: float, band: str) -> np.ndarray:
    """EEG [..., T] without one band."""
    return x - band_alone(x, sfreq, band)


def windows(n_times: int, sfreq: float, width_s: float = 0.05, most: int = 40) -> list[slice]:
    """Stretches of `width_s` that cover a trial, half overlapping; of long trials `most`, evenly spread."""
    width = min(n_times, max(1, round(width_s * sfreq)))
    last, step = n_times - width, max(1, width // 2)
    count = min(most, last // step + 1)
    starts = np.unique(np.linspace(0, last, count).round().astype(int))
    return [slice(start, start + width) for start in starts.tolist()]


def decoded_over_time(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, places: list[slice]
) -> np.ndarray:
    """Who is right [W, N] by shrinkage LDA with equal priors on the means of EEG [N, C, T] over each window."""
    check_classes(train_y)
    n_classes, right = len(np.unique(train_y)), []
    for place in places:
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(n_classes, 1 / n_classes))
        model.fit(train_x[:, :, place].mean(axis=2, dtype=np.float64), train_y)
        right.append(model.predict(test_x[:, :, place].mean(axis=2, dtype=np.float64)) == test_y)
    return np.stack(right)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """[N] with mean 1, under which each class counts the same: a weighted mean is then the balanced accuracy."""
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / (len(counts) * counts[of])


def swapped_partner(groups: np.ndarray, seed: int) -> np.ndarray:
    """For each sample [N] another one of its group, drawn by seed; itself where it is alone."""
    rng, partner = np.random.default_rng(seed), np.arange(len(groups))
    for group in np.unique(groups):
        own = rng.permutation(np.flatnonzero(groups == group))
        partner[own] = np.roll(own, 1)
    return partner


def importance(sureness: Callable[[np.ndarray], np.ndarray], x: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """[C] how much `sureness` [N] of EEG x [N, C, T] falls when one electrode is that of trial `partner` [N]."""
    whole, lost = sureness(x), []
    for c in range(x.shape[1]):
        changed = x.copy()
        changed[:, c] = x[partner, c]
        lost.append(float((whole - sureness(changed)).mean()))
    return np.array(lost)
