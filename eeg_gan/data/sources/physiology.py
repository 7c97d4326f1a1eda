"""A simulated head: electrodes, dipoles, event-related components, and what differs between people."""

import math

import numpy as np

from eeg_gan.data.sources.rendering import stream

# C electrode, T time sample, S dipole, K component, F feature, W wave
DIPOLES = np.array(  # S: x to the right, y to the nose, radius 1 at the level of the ears
    [(-0.3, -0.85), (0.3, -0.85), (0, -0.9), (-0.65, -0.65), (0.65, -0.65), (-0.9, -0.3), (0.9, -0.3)]
    + [(0, -0.5), (-0.4, -0.45), (0.4, -0.45), (0, 0), (0, 0.5)]
)
OCCIPITAL, TEMPORAL, PARIETAL, FRONTAL = [0, 1, 2, 3, 4], [3, 4, 5, 6], [7, 8, 9], [10, 11]
LEFT, RIGHT = [0, 3, 5, 8], [1, 4, 6, 9]
COMPONENTS = {  # K: peak in s, width in s, cycles per s, dipoles
    "C1": (0.075, 0.016, 6.0, OCCIPITAL),
    "P1": (0.105, 0.020, 5.0, OCCIPITAL),
    "N1": (0.150, 0.024, 4.0, OCCIPITAL + TEMPORAL),
    "N170": (0.180, 0.024, 4.0, TEMPORAL),
    "P2": (0.230, 0.034, 3.0, OCCIPITAL + PARIETAL),
    "N300": (0.310, 0.048, 2.0, TEMPORAL + PARIETAL),
    "P3": (0.420, 0.075, 0.0, PARIETAL + FRONTAL),
    "late": (0.560, 0.100, 0.0, PARIETAL + TEMPORAL),
}
FAMILIES = {  # start of a feature's name: (strength, strength per component)
    "place": (2.0, (1.2, 1.5, 1.0, 0.4, 0.5, 0.3, 0.2, 0.1)),
    "size": (1.8, (1.0, 1.3, 1.0, 0.4, 0.6, 0.3, 0.3, 0.2)),
    "ground": (1.2, (1.0, 1.2, 0.6, 0.2, 0.6, 0.3, 0.2, 0.1)),
    "hue": (1.0, (0.3, 0.6, 1.0, 0.5, 1.0, 0.7, 0.4, 0.4)),
    "texture": (0.8, (0.6, 0.8, 1.0, 0.5, 0.8, 0.5, 0.3, 0.2)),
    "outline": (1.0, (0.1, 0.4, 0.8, 1.3, 0.7, 1.0, 0.7, 0.6)),
    "pixels": (1.1, (1.0, 1.2, 0.8, 0.3, 0.6, 0.3, 0.2, 0.1)),
}
OUTLINE = ("corners", "valley", "softness", "aspect", "roundness", "rotation")
LINE_HZ = 50
PREFERRED = tuple(  # the first n make a sensible cap of n electrodes
    "Oz O1 O2 P7 P8 Pz Cz Fz P3 P4 PO3 PO4 C3 C4 F3 F4 T7 T8 Fp1 Fp2 POz CP5 CP6 CP1 CP2 FC5 FC6 FC1 FC2 F7 F8 "
    "CPz PO7 PO8 P5 P6 P1 P2 TP7 TP8 CP3 CP4 C5 C6 C1 C2 FT7 FT8 FC3 FC4 FCz F5 F6 F1 F2 AF7 AF8 AF3 AF4 "
    "AFz Fpz Iz P9 P10".split()
)
ROWS = {  # row: height of its midline electrode, angle of its outermost electrodes in degrees, names from left to right
    "AF": (0.75, 54, "AF7 AF3 AFz AF4 AF8", (-1, -0.5, 0, 0.5, 1)),
    "F": (0.5, 36, "F7 F5 F3 F1 Fz F2 F4 F6 F8", np.linspace(-1, 1, 9)),
    "FC": (0.25, 18, "FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8", np.linspace(-1, 1, 9)),
    "C": (0.0, 0, "T7 C5 C3 C1 Cz C2 C4 C6 T8", np.linspace(-1, 1, 9)),
    "CP": (-0.25, -18, "TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8", np.linspace(-1, 1, 9)),
    "P": (-0.5, -36, "P9 P7 P5 P3 P1 Pz P2 P4 P6 P8 P10", (-1.25, *np.linspace(-1, 1, 9), 1.25)),
    "PO": (-0.75, -54, "PO7 PO3 POz PO4 PO8", (-1, -0.5, 0, 0.5, 1)),
}


class Person:
    """What differs between subjects: mixing matrix, latencies, rhythms and the slow weather of the recording."""

    def __init__(self, seed: int, number: int, positions: np.ndarray, names: tuple[str, ...]):
        rng = stream(seed, "person", number)
        self.mixing = _mixing(seed, rng, positions)  # [C, S]
        shared = _weights(stream(seed, "weights"), names)
        own = _weights(rng, names)
        self.loads = np.einsum("cs,skf->ckf", self.mixing, math.sqrt(0.7) * shared + math.sqrt(0.3) * own)
        self.loads *= np.exp(0.15 * rng.standard_normal())
        self.common = self.mixing @ _weights(stream(seed, "common"), ("size", "hue")).sum(axis=2)  # [C, K]
        self.latency = 0.02 * rng.standard_normal() + 0.005 * rng.standard_normal((len(COMPONENTS), 1))
        self.background = _background(rng, positions)
        posterior = np.exp(-((positions - np.array([0, -0.75])) ** 2).sum(axis=1) / 0.4)
        frequency = rng.uniform(9, 11.5)
        power = np.exp(0.3 * rng.standard_normal()) / math.sqrt(3)
        sources = self.mixing[:, [0, 1, 7]] / (np.abs(self.mixing[:, [0, 1, 7]]).max(axis=0) + 1e-9)
        self.alpha = Waves(rng, posterior[:, None] * sources * power, frequency + 0.5 * rng.standard_normal(6))
        self.arousal = Waves(rng, np.ones((1, 1)), 1 / rng.uniform(60, 600, 6))
        self.drift = Waves(rng, self.background, 1 / np.geomspace(8, 900, 8))
        self.line = Waves(rng, np.exp(0.5 * rng.standard_normal((len(positions), 1))), np.array([float(LINE_HZ)]))
        self.blink = np.exp(-((positions - np.array([0, 1.1])) ** 2).sum(axis=1) / 0.35)


class Waves:
    """Sums of sinusoids mixed to electrodes: a pure function of recording time, so trials agree with one another."""

    def __init__(self, rng: np.random.Generator, mixing: np.ndarray, freqs: np.ndarray):
        self.mixing = mixing  # [C, sources]
        self.freqs = freqs  # [W] in Hz
        self.phases = rng.uniform(0, 2 * np.pi, (mixing.shape[1], len(freqs)))

    def at(self, time: np.ndarray) -> np.ndarray:
        """[C, T] at `time` [T] in s; a source has unit variance over time."""
        turns = 2 * np.pi * np.outer(self.freqs, time)  # sin(a + b) by its two parts: few sines for many sources
        sources = np.sin(self.phases) @ np.cos(turns) + np.cos(self.phases) @ np.sin(turns)
        return self.mixing @ sources * math.sqrt(2 / len(self.freqs))


def sensor_positions() -> dict[str, tuple[float, float]]:
    """(x to the right, y to the nose) of each electrode from front to back; radius 1 through Fpz, T7, T8 and Oz."""
    positions = {"Fp1": _on_ring(108), "Fpz": _on_ring(90), "Fp2": _on_ring(72)}
    for height, angle, names, steps in ROWS.values():
        x, y = _on_ring(angle)
        for name, step in zip(names.split(), steps, strict=True):
            positions[name] = (x * step, height + (y - height) * step**2)
    return positions | {"O1": _on_ring(252), "Oz": _on_ring(270), "O2": _on_ring(288), "Iz": (0.0, -1.25)}


def _on_ring(degrees: float) -> tuple[float, float]:
    return float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))


def _mixing(seed: int, rng: np.random.Generator, positions: np.ndarray) -> np.ndarray:
    """[C, S] dipole-like topographies; a subject's dipoles lie and point elsewhere than the average's."""
    average = stream(seed, "dipoles")
    place = DIPOLES + 0.08 * rng.standard_normal(DIPOLES.shape)
    towards = average.standard_normal(DIPOLES.shape) + 0.5 * rng.standard_normal(DIPOLES.shape)
    away = (positions[:, None] - place) / 0.4
    return np.exp(-0.5 * (away**2).sum(axis=2)) * (1 + (away * towards).sum(axis=2))


def _weights(rng: np.random.Generator, names: tuple[str, ...]) -> np.ndarray:
    """[S, K, F] how a feature drives each component at its dipoles; left and right places drive opposite sides."""
    weights = rng.standard_normal((len(DIPOLES), len(COMPONENTS), len(names)))
    for k, (*_, dipoles) in enumerate(COMPONENTS.values()):
        weights[[s for s in range(len(DIPOLES)) if s not in dipoles], k] = 0
    for f, name in enumerate(names):
        strength, per_component = FAMILIES[_family(name)]
        weights[:, :, f] *= strength * np.array(per_component)
        if name == "place_x":
            weights[LEFT, :, f] = np.abs(weights[LEFT, :, f])
            weights[RIGHT, :, f] = -np.abs(weights[RIGHT, :, f])
    return weights


def _family(name: str) -> str:
    if name in OUTLINE:
        return "outline"
    return next((family for family in FAMILIES if name.startswith(family)), "pixels")


def _background(rng: np.random.Generator, positions: np.ndarray) -> np.ndarray:
    """[C, C] mixes independent noise to noise that neighbouring electrodes share."""
    distance = np.linalg.norm(positions[:, None] - positions, axis=2)
    factor = np.linalg.cholesky(np.exp(-0.5 * (distance / 0.45) ** 2) + 0.15 * np.eye(len(positions)))
    return factor / math.sqrt(1.15) * np.exp(0.2 * rng.standard_normal(len(positions)))[:, None]
