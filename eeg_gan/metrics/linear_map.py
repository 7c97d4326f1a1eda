"""A linear map from EEG features to image embeddings, the baseline that any joint training has to beat.

Closed-form ridge, as Perceptogram and others show that little more is needed for much of what is published.
"""

import numpy as np
from sklearn.linear_model import RidgeCV

STRENGTHS = tuple(10.0**power for power in range(-3, 7))  # of the penalty; chosen by leave-one-out on what is fitted


def ridge_to(
    z_fit: np.ndarray, pictures_fit: np.ndarray, z: np.ndarray, pictures: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] mapped into the space of pictures [M, E], and these, both ready for cosines.

    Fitted on z_fit [F, D] and pictures_fit [F, E] alone. Pictures are unit vectors about the mean of the fitted ones,
    for embeddings of a tower share a large common part.
    """
    target, gallery = _unit(pictures_fit), _unit(pictures)
    mean = target.mean(axis=0)
    model = RidgeCV(STRENGTHS).fit(np.asarray(z_fit, dtype=np.float64), target - mean)
    return model.predict(np.asarray(z, dtype=np.float64)), gallery - mean


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
