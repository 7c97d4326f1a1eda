"""A linear decoder that is fitted once and then asked about many labellings of the same trials."""

import numpy as np

# N fitted trial, M scored trial, K class, D feature, Q component

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the penalty, in units of the mean eigenvalue
MOST = 2500  # fitted trials of one ridge
LEAST = 20  # fitted trials that a recording needs for a decoder of its own


class Decoder:
    """Ridge regression on one-hot labels: one over all recordings plus one within each, their scores added.

    Recordings differ in drift and in heads, so what is common to all and what is peculiar to one both have a say.
    Features are centred and scaled within each recording without labels. `predict` says the class whose score is
    highest in units of its prior, so that rare classes have an equal say.
    """

    def __init__(self, fit: np.ndarray, score: np.ndarray, y_fit: np.ndarray, fit_place: np.ndarray, place: np.ndarray):
        """Features [N, D] and [M, D]; y_fit [N] chooses the penalty; places number the recordings."""
        fit, score = _standardised(fit, score, fit_place, place)
        self.n_score, self.n_classes = len(score), 0
        everything = np.arange(len(fit))[:: -(-len(fit) // MOST)]
        self.parts = [(np.arange(len(score)), everything, _hat(fit[everything], score, y_fit[everything]))]
        for own in np.unique(place) if len(np.unique(fit_place)) > 1 else ():
            rows, columns = np.flatnonzero(place == own), np.flatnonzero(fit_place == own)[:MOST]
            if len(columns) >= LEAST and len(np.unique(y_fit[columns])) > 1:
                self.parts.append((rows, columns, _hat(fit[columns], score[rows], y_fit[columns])))

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """[M] classes of the scored trials when the fitted ones have these labels [N]."""
        total = np.zeros((self.n_score, int(labels.max()) + 1))
        for rows, columns, hat in self.parts:
            targets = _one_hot(labels[columns], total.shape[1])
            prior = targets.mean(axis=0)
            total[rows] += np.where(prior > 0, hat @ (targets - prior) / prior.clip(1e-9), -1)
        return total.argmax(axis=1)


def _hat(fit: np.ndarray, score: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[M, N] what the ridge's scores take from each fitted target; the penalty has the least leave-one-out error."""
    targets = _one_hot(labels, int(labels.max()) + 1)
    targets -= targets.mean(axis=0)
    mean = fit.mean(axis=0)
    fit, score = fit - mean, score - mean
    if len(fit) <= fit.shape[1]:
        values, u_NQ = np.linalg.eigh(fit @ fit.T)
        u_NQ, values = u_NQ[:, _large(values)], values[_large(values)]
        to_score = score @ (fit.T @ u_NQ) / values  # [M, Q]
    else:
        values, v_DQ = np.linalg.eigh(fit.T @ fit)
        v_DQ, values = v_DQ[:, _large(values)], values[_large(values)]
        u_NQ, to_score = fit @ v_DQ / np.sqrt(values), score @ v_DQ / np.sqrt(values)
    if not values.size:
        return np.zeros((len(score), len(labels)))
    penalties = [strength * values.mean() for strength in STRENGTHS]
    penalty = min(penalties, key=lambda penalty: _left_out(u_NQ, values / (values + penalty), targets))
    return (to_score * (values / (values + penalty))) @ u_NQ.T


def _large(values: np.ndarray) -> np.ndarray:
    return values > max(values[-1] * 1e-8, 1e-12)


def _left_out(u_NQ: np.ndarray, shrink: np.ndarray, targets: np.ndarray) -> float:
    """Squared error of each target predicted from the others."""
    error = targets - (u_NQ * shrink) @ (u_NQ.T @ targets)
    return float(((error / (1 - (u_NQ**2) @ shrink).clip(1e-6)[:, None]) ** 2).mean())


def _standardised(fit: np.ndarray, score: np.ndarray, fit_place: np.ndarray, place: np.ndarray) -> list[np.ndarray]:
    joint, places = np.concatenate([fit, score]).astype(np.float64), np.concatenate([fit_place, place])
    for own in np.unique(places):
        rows = places == own
        x = joint[rows] - joint[rows].mean(axis=0)
        joint[rows] = (x / np.maximum(x.std(axis=0), 1e-9)).clip(-5, 5)
    return [joint[: len(fit)], joint[len(fit) :]]


def _one_hot(labels: np.ndarray, n: int) -> np.ndarray:
    return np.eye(n)[labels]
