"""The EEG before the stimulus, freed of what a zero-phase filter carries there from after it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eeg_gan.data import preprocess
from eeg_gan.data.card import Card

# C electrode, T time sample, P time sample before the stimulus, R kept direction

CARRIED = 0.003  # amplitude from after the stimulus that a kept direction may hold, per unit of white noise
OWN = 0.1  # amplitude of the baseline's own noise that a kept direction must hold at least


@dataclass(frozen=True)
class Quiet:
    """Directions of the samples before the stimulus that hold the baseline's own EEG alone."""

    directions: np.ndarray | None  # [P, R] orthonormal; None: there is nothing to look at
    reason: str  # why there is nothing, or what was left out

    def __call__(self, eeg: np.ndarray) -> np.ndarray:
        """EEG [N, C, T] -> [N, C, R]."""
        return eeg[:, :, : len(self.directions)] @ self.directions


def quiet(preprocessing: dict[str, Any], card: Card, n_times: int) -> Quiet:
    """Which part of the prepared baseline is free of the response, from the filter that index.json records.

    A filter run forwards and backwards over the onset smears the response into the baseline, where a decoder finds it.
    The recorded filter is linear, so impulses through it tell what each baseline sample takes from each later one; the
    directions in which that gain is above 0.3 % are projected out. A filter that ran before prepare is not known here.
    """
    config, _ = preprocess.from_description(preprocessing)
    sfreq, tmin_s = preprocessing["sfreq"], preprocessing["tmin_s"]
    n_before = min(round(-tmin_s * sfreq), n_times)
    if n_before < 2:
        return Quiet(None, f"trials start at {tmin_s:g} s, so nothing precedes the stimulus")
    if config.scale == "legacy_max":
        return Quiet(None, "scale=legacy_max divides by the maximum of the whole trial, which the response reaches")
    raw = preprocessing.get("raw_samples")
    if raw is None and config.crop_s is not None:
        return Quiet(None, "trials were cropped after the filter, and index.json does not say how long they were")
    gain = _gain(config, card, raw or round(n_times * card.sfreq / sfreq))
    onset = round(-card.tmin_s * card.sfreq)
    own, carried = gain[:n_before, :onset], gain[:n_before, onset:]
    left, sizes, _ = np.linalg.svd(carried)
    free = left[:, (sizes > CARRIED).sum() :]
    kept, strength, _ = np.linalg.svd(free.T @ own, full_matrices=False)
    directions = free @ kept[:, strength > OWN]
    if directions.shape[1] == 0:
        return Quiet(None, "the filter carries the response into every part of the baseline")
    if not (sizes > CARRIED).any():
        return Quiet(directions, "no filter of prepare reached over the onset")
    said = (
        f"{directions.shape[1]} of {n_before} dimensions of the baseline, which the filter keeps free of the response"
    )
    return Quiet(directions, said)


def _gain(config: preprocess.PreprocessConfig, card: Card, n_raw: int) -> np.ndarray:
    """[T, raw T] what each stored sample takes from each recorded one; each impulse is a channel of its own."""
    alone = replace(config, reference="none")
    return preprocess.filter_trial(np.eye(n_raw), card.sfreq, card.tmin_s, alone, card)[0].T
