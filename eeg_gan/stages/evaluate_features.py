"""How much of the class an encoder's features show, when, where and in which rhythm the EEG shows it.

Classifiers are fitted on the training split and judged on the held-out one. Where the held-out split holds classes that
training has not seen, they are fitted on the other folds of that split itself, pictures kept together, as the paper
does for its six unseen classes: the encoder is what has to generalise there.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.metrics import ablation, embedding, probes
from eeg_gan.metrics.statistics import bootstrap_mean, p_value, record, shuffled_labels
from eeg_gan.stages.loading import (
    OF_LABELS,
    class_logits,
    encode_split,
    load_classifier,
    load_encoder,
    same_encoder,
    spread,
)

Metrics = dict[str, dict]
log = logging.getLogger("eeg_gan")


@dataclass
class Sides:
    """Classes of both splits, and what chance moves among the judged trials."""

    y_train: np.ndarray
    y: np.ndarray
    units: np.ndarray  # what intervals are drawn over
    subjects: np.ndarray
    onset: np.ndarray  # seconds in the recording, or the number of the trial
    folds: np.ndarray | None  # of the judged split, where its classes are new

    def predicted(self, probe: str, z_train: np.ndarray, z: np.ndarray) -> np.ndarray:
        if self.folds is not None:
            return probes.predicted_in_folds(probe, z, self.y, self.folds)
        return probes.predicted(probe, z_train, self.y_train, z)

    @property
    def chance(self) -> float:
        return float(np.bincount(self.y).max() / len(self.y))


def sides(context: Any) -> Sides:
    """`context` is the evaluation's: its config, its data, and how it draws intervals."""
    config, shards = context.config, context.shards
    metas, y_train, y = shards.metas(config.split), shards.labels("train"), shards.labels(config.split)
    units = np.array(context.units())
    onset = np.array([i if m["onset_s"] is None else m["onset_s"] for i, m in enumerate(metas)], dtype=np.float64)
    new = set(y.tolist()) - set(y_train.tolist())
    unseen = new == set(y.tolist())
    folds = probes.folds_of(units, y, config.folds, config.seed) if unseen else None
    if unseen:
        log.info("no class of %s is in train: classifiers are fitted in %d folds of it", config.split, config.folds)
    elif new:
        log.warning("%d classes of %s are not in train, so no classifier can know them", len(new), config.split)
    return Sides(y_train, y, units, np.array([m["subject"] or "" for m in metas]), onset, folds)


def stage1(context: Any) -> Metrics:
    """Clustering and every probe of the feature, pooled; of each subject in subjects.json."""
    config = context.config
    if config.features is None:
        return {}
    own, of = _rows(context, config.features), sides(context)
    right = _right(context, of, *own)
    if config.finetuned is not None:
        right["finetuned_accuracy"] = _finetuned(context, of)
    metrics = {f"encode/{name}": _accuracy(context, of, *found) for name, found in right.items()}
    found = right["kmeans_accuracy"][1]
    nmi, ari = embedding.nmi_ari(found, of.y)
    metrics |= {"encode/nmi": record(nmi, chance=0.0, n=len(of.y)), "encode/ari": record(ari, chance=0.0, n=len(of.y))}
    if "knn_accuracy" in right:
        balanced = embedding.balanced_accuracy(right["knn_accuracy"][0], of.y)
        metrics["encode/knn_balanced_accuracy"] = record(balanced, chance=1 / len(set(of.y.tolist())), n=len(of.y))
        context.details["knn_predicted"] = torch.from_numpy(right["knn_accuracy"][1])
        context.details["labels"] = torch.from_numpy(of.y)
    context.subjects |= {f"encode/{name}": _each_subject(context, of, values) for name, (values, _) in right.items()}
    if config.against is not None:
        other = _right(context, of, *_rows(context, config.against))
        for name in right.keys() & other.keys():
            gain = right[name][0].astype(float) - other[name][0].astype(float)
            metrics[f"encode/{name}_gain"] = context.mean(gain, 0.0)
    return metrics | ({} if config.encoder is None else ablated(context, of, *own))


def lda(context: Any) -> Metrics:
    """Shrinkage LDA on the EEG itself, on the same split: over the whole trial, and window by window."""
    config = context.config
    if not config.lda:
        return {}
    of, (x_train, x) = sides(context), (context.reader(s).eeg_all().numpy() for s in ("train", config.split))
    right = _in_turn(of, x_train, x, lambda *parts: embedding.lda_baseline(*parts)[None])[0]
    balanced = embedding.balanced_accuracy(right, of.y)
    if config.time_resolved:
        _over_time(context, of, x_train, x)
    return {
        "lda/accuracy": context.mean(right.astype(float), of.chance),
        "lda/balanced_accuracy": record(balanced, chance=1 / len(set(of.y.tolist())), n=len(of.y)),
    }


def ablated(context: Any, of: Sides, z_train: np.ndarray, z: np.ndarray) -> Metrics:
    """The linear probe on features of EEG from which a band, or an electrode, was taken at test time."""
    config, shards = context.config, context.shards
    loaded = load_encoder(config.encoder, shards)
    same_encoder(context.features(config.features), loaded.digest, config.features, config.encoder)
    if of.folds is not None:
        fit, y_fit, trials = z[of.folds > 0], of.y[of.folds > 0], np.flatnonzero(of.folds == 0)
    else:
        fit, y_fit, trials = z_train, of.y_train, np.flatnonzero(np.isin(of.y, of.y_train))
    trials = trials[spread(len(trials), config.ablation_trials)]
    probe, reader = probes.logistic_model(fit, y_fit), context.reader(config.split)
    x, sfreq = reader.batch(trials)["eeg"].numpy(), shards.preprocessing["sfreq"]
    column = np.searchsorted(probe.classes_, of.y[trials])
    encoder = loaded.module.to(context.rt.device)

    def sureness(eeg: np.ndarray) -> np.ndarray:
        """The probability [N] of the true class."""
        context.rt.check_stop()
        z = encode_split(encoder, Held(eeg, trials, reader), context.rt.device).numpy()
        said = probe.predict_proba(z)
        return said[np.arange(len(trials)), column], said.argmax(axis=1) == column

    metrics = {"bands/all": _mean(context, sureness(x)[1], trials)}
    for band in ablation.bands(sfreq):
        for name, change in (("removed", ablation.band_removed), ("alone", ablation.band_alone)):
            metrics[f"bands/{band}_{name}"] = _mean(context, sureness(change(x, sfreq, band))[1], trials)
    partner = ablation.swapped_partner(of.subjects[trials], config.seed)
    lost = ablation.importance(lambda eeg: sureness(eeg)[0], x, partner)
    context.details["channel_importance"] = torch.from_numpy(lost)
    return metrics


@dataclass
class Held:
    """EEG in place of a reader's, for its trials."""

    eeg: np.ndarray  # [N, C, T]
    trials: np.ndarray  # [N] their numbers in the split
    reader: Any

    def __post_init__(self):
        self.shards, self.split, self.n = self.reader.shards, self.reader.split, len(self.eeg)

    def batch(self, indices: Any) -> dict:
        return {"eeg": torch.from_numpy(self.eeg[indices]), "index": torch.from_numpy(self.trials[indices])}


def _rows(context: Any, run_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of the training and of the judged split."""
    known: Features = context.features(run_dir)
    if known.meta.get("of") == OF_LABELS:
        raise UserError(
            f"{run_dir} holds one-hot vectors of the classes that stage 1 is asked for; give the features "
            "of an encoder, or leave features out and judge what was generated"
        )
    return tuple(known.rows(context.shards.keys(split)).numpy() for split in ("train", context.config.split))


def _right(context: Any, of: Sides, z_train: np.ndarray, z: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each measure who is right [N] and what was said [N]."""
    k = len(set((of.y_train if of.folds is None else of.y).tolist()))
    found = embedding.clusters(z, k, context.config.seed)
    right = {"kmeans_accuracy": (embedding.matched_accuracy(found, of.y)[1], found)}
    for probe in context.config.probes:
        said = of.predicted(probe, z_train, z)
        right[f"{probe}_accuracy"] = (said == of.y, said)
        context.rt.check_stop()
    return right


def _finetuned(context: Any, of: Sides) -> tuple[np.ndarray, np.ndarray]:
    config = context.config
    if of.folds is not None:
        raise UserError("the classifier of finetuned knows the classes of train, and others are judged; leave it out")
    encoder, head = load_classifier(config.finetuned, context.shards)
    z = encode_split(encoder.to(context.rt.device), context.reader(config.split), context.rt.device)
    said = class_logits(head, z).argmax(1).numpy()
    return said == of.y, said


def _accuracy(context: Any, of: Sides, right: np.ndarray, said: np.ndarray) -> dict:
    """The share that is right: interval over stimuli, interval over subjects, p of shuffled labels."""
    config, values = context.config, right.astype(float)
    found = context.mean(values, of.chance)
    if len(set(of.subjects.tolist())) > 1:
        _, low, high = bootstrap_mean(values, of.subjects, seed=config.seed)
        found |= {"low_subjects": low, "high_subjects": high}
    if config.permutations:
        chance = shuffled_labels(of.y, of.units, of.onset, config.permutations, config.seed)
        found["p"] = p_value(_score_of(said, right, of.y), of.y, chance)
    return found


def _score_of(said: np.ndarray, right: np.ndarray, y: np.ndarray):
    """Accuracy as a function of labels; of clusters, which are named anew for all labels alike."""
    if ((said == y) == right).all():
        return lambda labels: float((said == labels).mean())
    return lambda labels: embedding.matched_accuracy(said, labels)[0]


def _each_subject(context: Any, of: Sides, right: np.ndarray) -> dict[str, dict]:
    found = {}
    for name in sorted(set(of.subjects.tolist())):
        own = of.subjects == name
        value, low, high = bootstrap_mean(right[own].astype(float), of.units[own], seed=context.config.seed)
        found[name] = record(value, low, high, float(np.bincount(of.y[own]).max() / own.sum()), int(own.sum()))
    return found


def _in_turn(of: Sides, x_train: np.ndarray, x: np.ndarray, judge) -> np.ndarray:
    """`judge(fitted x, its y, judged x, its y)` [W, N] on train against the judged split, or fold by fold."""
    if of.folds is None:
        return judge(x_train, of.y_train, x, of.y)
    parts = [(of.folds == fold) for fold in np.unique(of.folds)]
    found = [judge(x[~own], of.y[~own], x[own], of.y[own]) for own in parts]
    right = np.empty((len(found[0]), len(x)), dtype=bool)
    for own, values in zip(parts, found, strict=True):
        right[:, own] = values
    return right


def _over_time(context: Any, of: Sides, x_train: np.ndarray, x: np.ndarray) -> None:
    """Balanced accuracy in each window of time, a detail for the report: the best window would be chosen on test."""
    config, shards = context.config, context.shards
    sfreq, tmin = shards.preprocessing["sfreq"], shards.metas(config.split)[0]["tmin_s"] or 0.0
    places = ablation.windows(x.shape[2], sfreq)
    right = _in_turn(of, x_train, x, lambda *parts: ablation.decoded_over_time(*parts, places))
    weights = ablation.class_weights(of.y)
    curve = [context.mean(weights * own, 1 / len(set(of.y.tolist()))) for own in right]
    context.details["time_s"] = torch.tensor([tmin + (p.start + p.stop - 1) / 2 / sfreq for p in places])
    context.details["time_accuracy"] = torch.tensor([[m["value"], m["low"], m["high"]] for m in curve])


def _mean(context: Any, right: np.ndarray, trials: np.ndarray) -> dict:
    y = context.shards.labels(context.config.split)[trials]
    units = np.array(context.units())[trials]
    return context.mean(right.astype(float), float(np.bincount(y).max() / len(y)), units)
