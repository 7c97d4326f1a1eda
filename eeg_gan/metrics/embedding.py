"""How much of the labels an embedding shows. Accuracies come per sample, so that they can be bootstrapped by group."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from eeg_gan.config import UserError

LDA_POINTS = 20  # time points that the LDA baseline sees per electrode


def clusters(z: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The k-means cluster [N] of each row of z [N, D]."""
    if len(z) < k:
        raise UserError(f"k-means into {k} clusters needs {k} samples or more, got {len(z)}; evaluate a larger split")
    return KMeans(k, n_init=10, random_state=seed).fit_predict(z)


def kmeans_accuracy(z: np.ndarray, labels: np.ndarray, k: int, seed: int = 0) -> tuple[float, np.ndarray]:
    """The paper's measure: accuracy of k-means clusters under the best one-to-one naming, and who is right [N].

    The naming is found on the labels that are scored, as in the literature: chance lies above 1 / k.
    """
    return matched_accuracy(clusters(z, k, seed), labels)


def matched_accuracy(found: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Accuracy of clusters [N] under the best one-to-one naming (Hungarian), and who is right [N]."""
    classes, labels = np.unique(labels, return_inverse=True)
    k = int(found.max()) + 1
    counts = np.bincount(found * len(classes) + labels, minlength=k * len(classes)).reshape(k, len(classes))
    name = np.full(len(counts), -1)
    rows, columns = linear_sum_assignment(-counts)
    name[rows] = columns
    correct = name[found] == labels
    return float(correct.mean()), correct


def nmi_ari(found: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Normalised mutual information and adjusted Rand index of clusters [N]; both need no naming."""
    return float(normalized_mutual_info_score(labels, found)), float(adjusted_rand_score(labels, found))


def knn_predict(train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, k: int = 5) -> np.ndarray:
    """The label [N] that the k nearest training samples (cosine) vote for."""
    model = KNeighborsClassifier(min(k, len(train_z)), metric="cosine", algorithm="brute").fit(train_z, train_y)
    return model.predict(test_z)


def knn_accuracy(
    train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, test_y: np.ndarray, k: int = 5
) -> np.ndarray:
    """Who of the test split is right [N] by the vote of the k nearest training samples (cosine)."""
    return knn_predict(train_z, train_y, test_z, k) == np.asarray(test_y)


def linear_svm(
    train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, test_y: np.ndarray, c: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Who of the test split is right [N] by a linear support vector machine fitted on the training split."""
    check_classes(train_y)
    model = LinearSVC(C=c, dual="auto", max_iter=10000, random_state=seed).fit(train_z, train_y)
    return model.predict(test_z) == np.asarray(test_y)


def lda_baseline(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, points: int = LDA_POINTS
) -> np.ndarray:
    """Who is right [N] by shrinkage LDA on raw EEG [N, C, T]: what a network has to beat."""
    check_classes(train_y)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(decimate(train_x, points).reshape(len(train_x), -1), train_y)
    return model.predict(decimate(test_x, points).reshape(len(test_x), -1)) == np.asarray(test_y)


def check_classes(train_y: np.ndarray) -> None:
    """Refuses what no classifier can be fitted on."""
    if len(np.unique(train_y)) < 2:
        raise UserError("the training split holds one class only, so no classifier can be fitted; give more classes")


def decimate(x: np.ndarray, points: int) -> np.ndarray:
    """EEG [N, C, T] as means over `points` equal stretches of time [N, C, min(points, T)]."""
    edges = np.linspace(0, x.shape[2], min(points, x.shape[2]) + 1).astype(int)
    return np.add.reduceat(x, edges[:-1], axis=2, dtype=np.float64) / np.diff(edges)


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the share of their samples that is right; a constant guess scores 1 / classes."""
    _, labels = np.unique(labels, return_inverse=True)
    return float((np.bincount(labels, correct) / np.bincount(labels)).mean())
