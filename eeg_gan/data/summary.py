"""One pass over a split's EEG: what controls decode from, and the averages that the audit's page shows."""

from dataclasses import dataclass, field

import numpy as np
from scipy import signal

from eeg_gan.data.baseline import Quiet

# N trial, C electrode, T time sample, F frequency, D feature

POINTS = 20  # time points of the ridge baseline per electrode
BANDS_HZ = ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45))
SLOW_HZ = 2.0


def whole(eeg: np.ndarray, freqs: np.ndarray, density: np.ndarray) -> np.ndarray:
    """EEG [N, C, T] and its `spectrum` -> [N, D]: means over 20 stretches of time, log power in five bands."""
    bands = [(freqs >= low) & (freqs < high) for low, high in BANDS_HZ]
    power = [np.log(density[:, :, band].sum(axis=2) + 1e-12) for band in bands if band.any()]
    return np.concatenate([_flat(stretches(eeg, POINTS)), *power], axis=1).astype(np.float32)


def before(eeg: np.ndarray, quiet: Quiet) -> np.ndarray:
    """EEG [N, C, T] -> [N, D]: the baseline's free part in 20 stretches of time, and its log power by electrode."""
    free = quiet(eeg)
    power = np.log((free**2).mean(axis=2) + 1e-12)
    return np.concatenate([_flat(stretches(free @ quiet.directions.T, POINTS)), power], axis=1).astype(np.float32)


def slow(eeg: np.ndarray, sfreq: float) -> np.ndarray:
    """EEG [N, C, T] -> [N, D]: what is below 2 Hz (Butterworth, zero phase), at 4 points a second."""
    sos = signal.butter(4, SLOW_HZ, "lowpass", fs=sfreq, output="sos")
    low = signal.sosfiltfilt(sos, eeg, axis=2, padtype="even", padlen=eeg.shape[2] - 1)
    return _flat(stretches(low, max(2, round(4 * eeg.shape[2] / sfreq)))).astype(np.float32)


def stretches(x: np.ndarray, points: int) -> np.ndarray:
    """[N, C, T] as means over `points` equal stretches of time [N, C, min(points, T)]."""
    edges = np.linspace(0, x.shape[2], min(points, x.shape[2]) + 1).astype(int)
    return np.add.reduceat(x, edges[:-1], axis=2, dtype=np.float64) / np.diff(edges)


def spectrum(eeg: np.ndarray, sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [F] in Hz, and power densities [N, C, F] of EEG [N, C, T], Hann window, mean removed."""
    window = np.hanning(eeg.shape[2] + 2)[1:-1].astype(np.float32)
    spectra = np.fft.rfft((eeg - eeg.mean(axis=2, keepdims=True)) * window, axis=2)
    density = (spectra.real**2 + spectra.imag**2) * (2 / (sfreq * float((window**2).sum())))
    return np.fft.rfftfreq(eeg.shape[2], 1 / sfreq), density


@dataclass
class Means:
    """Running means by group."""

    sums: dict[int, np.ndarray] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, groups: np.ndarray, values: np.ndarray) -> None:
        """Values [N, ...] of the groups [N]."""
        for group in np.unique(groups).tolist():
            own = values[groups == group].sum(axis=0, dtype=np.float64)
            self.sums[group] = self.sums.get(group, 0) + own
            self.counts[group] = self.counts.get(group, 0) + int((groups == group).sum())

    def means(self) -> dict[int, np.ndarray]:
        return {group: self.sums[group] / self.counts[group] for group in sorted(self.sums)}


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
