"""Retrieval of pictures from EEG and back, and what image2eeg predicts, judged by the EEG of unseen pictures."""

from typing import Any

import numpy as np
import torch

from eeg_gan.config import UserError
from eeg_gan.data.features import Features
from eeg_gan.metrics import embedding, linear_map, retrieval
from eeg_gan.stages.loading import (
    OF_IMAGES,
    LoadedAligner,
    layers_of,
    load_aligner,
    same_encoder,
    unique_images,
)
from eeg_gan.stages.tower_cache import pictures_of
from eeg_gan.training.inference import evaluating, over_all

TOPS = (1, 5, 10)
WAYS = (2, 10, 50, 200)  # sizes of smaller galleries
Metrics = dict[str, dict]

# N trial, M distinct picture, D feature, E embedding


def aligned(context: Any) -> Metrics:
    """`context` is the evaluation's: its config, its data, and how it draws intervals."""
    config, shards = context.config, context.shards
    if config.align is None or shards.card.pairing != "trial":  # pairs by class have no true picture to find
        return {}
    loaded, reader = load_aligner(config.align, shards), context.reader(config.split)
    known = context.features(config.aligned_features)
    same_encoder(known, loaded.encoder.digest, config.aligned_features, config.align)
    first, _ = unique_images(shards, config.split)
    embeddings, numbers = pictures_of(loaded.tower, reader, config.run_dir, context.rt.device)
    with torch.no_grad():
        gallery = loaded.projection.eval()(embeddings).numpy()
    query, target = known.rows(shards.keys(config.split)).numpy(), numbers.numpy()
    labels = reader.labels[first]
    nearest = (torch.from_numpy(query) @ torch.from_numpy(gallery).T).topk(min(5, len(gallery))).indices
    rank = retrieval.ranks(query, gallery, target)
    context.details |= {
        "gallery_trials": torch.tensor(first),
        "retrieval_ranks": torch.from_numpy(rank),
        "retrieval_top5": nearest,
    }
    return {
        **_top(context, "align/retrieval", rank, len(gallery)),
        **_within_class(context, query, gallery, target, labels),
        **_classes(context, "align/class", query, gallery, reader.labels, labels),
        **_ways(context, rank, len(gallery)),
        **_back(context, query, gallery, target, labels, reader.labels),
        **_averaged(context, loaded, reader, query, gallery, target),
        **_mapped(context, loaded, embeddings, target, rank),
    }


def predicted(context: Any) -> Metrics:
    """Features that image2eeg predicts for unseen pictures: found by the measured ones? clustered by class?"""
    config, shards = context.config, context.shards
    if config.image2eeg_features is None:
        return {}
    guess = context.features(config.image2eeg_features)
    if guess.meta.get("of") != OF_IMAGES:
        raise UserError(f"{config.image2eeg_features} is not of images; give the run_dir of embed with image2eeg=")
    measured = _learned_from(context, guess)
    first, numbers = unique_images(shards, config.split)
    keys, labels = shards.keys(config.split), shards.labels(config.split)
    z, target = measured.rows(keys).numpy(), numbers.numpy()
    gallery = guess.rows([keys[trial] for trial in first]).numpy()
    own, classes = labels[first], len(set(labels[first].tolist()))
    z_train, y_train = measured.rows(shards.keys("train")).numpy(), shards.labels("train")
    metas, chance = shards.metas(config.split), float(np.bincount(own).max() / len(own))
    units = [metas[trial]["image_sha256"] for trial in first]
    clusters = embedding.clusters(gallery, classes, config.seed)
    right = embedding.knn_accuracy(z_train, y_train, gallery, own).astype(float)
    cosine = (z * gallery[target]).sum(1)
    other = (z * gallery[(target + 1 + len(gallery) // 2) % len(gallery)]).sum(1)  # of a picture half the split away
    return {
        **_top(context, "image2eeg/retrieval", retrieval.ranks(z, gallery, target), len(gallery)),
        **_classes(context, "image2eeg/class", z, gallery, labels, own),
        "image2eeg/kmeans_accuracy": context.mean(
            embedding.matched_accuracy(clusters, own)[1].astype(float), chance, units
        ),
        "image2eeg/knn_accuracy": context.mean(right, chance, units),
        "image2eeg/cosine": context.mean(cosine, float(other.mean())),
    }


def _learned_from(context: Any, guess: Features) -> Features:
    """The measured features that the regressor was trained to predict, among those that are judged."""
    config, wanted = context.config, guess.meta.get("target_digest")
    for run_dir in (config.features, config.aligned_features):
        if run_dir and (known := context.features(run_dir)).meta["encoder_digest"] == wanted:
            return known
    raise UserError(
        f"{config.image2eeg_features} predicts features of an encoder that is not judged here; give the run_dir of "
        "embed that image2eeg learned from as features or aligned_features (features made by an older version do not "
        "say which: run image2eeg and embed again)"
    )


def _top(context: Any, name: str, rank: np.ndarray, size: int, groups=None, tops=TOPS) -> Metrics:
    return {
        f"{name}_top{k}": context.mean(retrieval.top_k(rank, k).astype(float), min(k / size, 1.0), groups) for k in tops
    }


def _within_class(context: Any, query, gallery, target, labels) -> Metrics:
    rank, size = retrieval.within_class_ranks(query, gallery, target, labels)
    return {
        f"align/retrieval_top{k}_within_class": context.mean(
            retrieval.top_k(rank, k).astype(float), float(retrieval.chance_top_k(size, k).mean())
        )
        for k in (1, 5)
    }


def _classes(context: Any, name: str, query, gallery, own, labels, groups=None) -> Metrics:
    """Classes ranked by their nearest item: whether the true one is the first, or among the first 5 or 10."""
    rank, classes = retrieval.class_ranks(query, gallery, own, labels)
    return _top(context, name, rank, classes, groups, [k for k in TOPS if k == 1 or k < classes])


def _ways(context: Any, rank: np.ndarray, size: int) -> Metrics:
    """The same among k pictures: exact expectations over the distractors."""
    return {
        f"align/retrieval_{k}way_top{top}": context.mean(retrieval.k_way(rank, size, k, top), top / k)
        for k in WAYS
        if k < size
        for top in (1, 5)
        if top < k
    }


def _back(context: Any, query, gallery, target, labels, own) -> Metrics:
    """From the picture to the EEG: each trial among those of all other pictures; and the class of the nearest."""
    rank, size = retrieval.ranks_of_answers(gallery, query, target)
    metas = context.shards.metas(context.config.split)
    trials, _ = unique_images(context.shards, context.config.split)
    units = [metas[trial]["image_sha256"] for trial in trials]
    found = {
        f"align/image_to_eeg_top{k}": context.mean(
            retrieval.top_k(rank, k).astype(float), float(retrieval.chance_top_k(size, k).mean())
        )
        for k in TOPS
    }
    return found | _classes(context, "align/image_to_eeg_class", gallery, query, labels, own, units)


def _averaged(context: Any, loaded: LoadedAligner, reader, query, gallery, target) -> Metrics:
    """By number of averaged repetitions: features of any trials of a picture, and EEG of one person's trials of it."""
    metas, found = context.shards.metas(context.config.split), {}

    def judged(name: str, groups: list[np.ndarray], z: np.ndarray) -> None:
        shown = np.array([target[own[0]] for own in groups])
        rank = retrieval.ranks(z, gallery, shown)
        found.update({f"align/{name}_top{k}": m for k, m in _tops(context, rank, len(gallery), shown).items()})

    for count, groups in _by_count(target, context.config.seed):
        judged(f"retrieval_mean_of_{count}", groups, np.stack([_unit(query[own]).mean(0) for own in groups]))
    by_person = [f"{meta['subject']}/{shown}" for meta, shown in zip(metas, target, strict=True)]
    for count, groups in _by_count(by_person, context.config.seed):
        judged(f"retrieval_eeg_mean_of_{count}", groups, _encoded_means(context, loaded, reader, groups))
    return found


def _tops(context: Any, rank: np.ndarray, size: int, shown: np.ndarray) -> dict[int, dict]:
    return {k: context.mean(retrieval.top_k(rank, k).astype(float), min(k / size, 1.0), shown.tolist()) for k in (1, 5)}


def _by_count(names, seed: int):
    """(2, groups), (4, groups) ... below the most repetitions of a name, and (all, whole names)."""
    whole = retrieval.repetitions(names, None, seed)
    most, count = max(map(len, whole), default=0), 2
    while count < most:
        yield count, retrieval.repetitions(names, count, seed)
        count *= 2
    if whole:
        yield "all", whole


def _encoded_means(context: Any, loaded: LoadedAligner, reader, groups: list[np.ndarray]) -> np.ndarray:
    """Features [G, D] of the mean EEG of each group of trials of one person."""
    encoder, device = loaded.encoder.module.to(context.rt.device), context.rt.device
    layers, sizes = layers_of(encoder, context.shards, context.config.split), [len(own) for own in groups]

    def fetch(picked: list[int]) -> dict:
        eeg = reader.batch(np.concatenate([groups[i] for i in picked]))["eeg"]
        means = torch.stack([part.mean(0) for part in eeg.split([sizes[i] for i in picked])])
        return {"eeg": means, "first": torch.tensor([int(groups[i][0]) for i in picked])}

    def forward(b: dict) -> torch.Tensor:
        eeg = b["eeg"].to(device)
        return net(eeg) if layers is None else net(eeg, layers[b["first"]].to(device))

    with evaluating(encoder) as net:
        return over_all(forward, fetch, len(groups), max(1, 512 // max(sizes))).numpy()


def _mapped(
    context: Any, loaded: LoadedAligner, embeddings: torch.Tensor, target: np.ndarray, rank: np.ndarray
) -> Metrics:
    """A ridge from the stage-1 feature to the tower's embedding, fitted on training trials: the score to beat.

    By how much `rank` [N], of alignment, is better: trial by trial.
    """
    config, shards = context.config, context.shards
    if config.features is None:
        return {}
    known, train = context.features(config.features), context.reader("train")
    pictures, numbers = pictures_of(loaded.tower, train, config.run_dir, context.rt.device)
    z_train, z = (known.rows(shards.keys(split)).numpy() for split in ("train", config.split))
    query, gallery = linear_map.ridge_to(z_train, pictures[numbers].numpy(), z, embeddings.numpy())
    mapped = retrieval.ranks(query, gallery, target)
    gain = retrieval.top_k(rank, 1).astype(float) - retrieval.top_k(mapped, 1).astype(float)
    return {
        **_top(context, "align/linear_map", mapped, len(gallery)),
        "align/linear_map_top1_gain": context.mean(gain, 0.0),
    }


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
