"""Every figure of generated held-out pictures, beside real pictures and pictures drawn from shuffled EEG."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_gan.config import UserError, read_yaml
from eeg_gan.data.shards import Shards
from eeg_gan.metrics import generated, perceptual
from eeg_gan.metrics.generated import NEAR, Figure, Seen
from eeg_gan.metrics.statistics import record
from eeg_gan.stages.judging import Judge, cache_folder, class_pairs, look_at_real, path_lengths
from eeg_gan.stages.loading import (
    OF_LABELS,
    load_features,
    load_generator,
    read_generated,
    spread,
    unique_images,
)

PATHS = 1000  # most paths of a perceptual path length
Metrics = dict[str, dict]
log = logging.getLogger("eeg_gan")


def images(context: Any) -> Metrics:
    """`context` is the evaluation's: its config, its data, and how it draws intervals."""
    config, shards = context.config, context.shards
    if config.generated is None:
        return {}
    judge = Judge(config.detector, config.detector_class_names, shards.card.class_names, context.rt.device)
    reader, folder = context.reader(config.split), cache_folder(None, config.run_dir)
    real = train = look_at_real(judge, reader, folder)
    if judge.asks_training(config.metrics):
        train = look_at_real(judge, context.reader("train"), folder)
    first, units = unique_images(shards, config.split)[0], np.array(context.units())
    real.pair_distances = judge.pair_distances(
        lambda i: reader.batch([first[k] for k in i])["image"], class_pairs(real.labels)
    )
    sets = judge.sets(real, train, config.seed)
    seen = generated.ceilings(config.metrics, sets, spread(len(train), 4 * len(real)))
    metrics = _records(context, judge, seen, "_real", None)
    runs = {"": config.generated, "_shuffled_eeg": config.generated_shuffled, "_image2eeg": config.generated_image2eeg}
    for name, run_dir in runs.items():
        if run_dir is None:
            continue
        trials, pictures = _generated(shards, config.split, run_dir)
        sets.fake = _look(context, judge, run_dir, pictures, trials, reader.labels[trials])
        found = generated.figures(config.metrics, sets)
        if sets.accuracy in found:
            context.details[f"generated_predicted{name}"] = torch.from_numpy(sets.predict(sets.fake))
        own = _records(context, judge, found, name, units[trials])
        if name != "_image2eeg" and shards.card.pairing == "trial":
            shown = reader.batch(trials)["image"]
            own[f"generate/pixcorr{name}"] = context.mean(perceptual.pixcorr(pictures, shown), None, units[trials])
            own[f"generate/ssim{name}"] = context.mean(perceptual.ssim(pictures, shown, 7), None, units[trials])
        metrics |= _marked(own, run_dir)
    return metrics


def _marked(metrics: Metrics, run_dir: str) -> Metrics:
    """Figures of pictures that were drawn from classes say so: their class accuracy has no EEG in it."""
    if OF_LABELS not in json.loads((Path(run_dir) / "manifest.json").read_text()).get("conditions_of", ""):
        return metrics
    return {name: {**metric, "told_the_class": True} for name, metric in metrics.items()}


def _look(context: Any, judge: Judge, run_dir: str, pictures: Tensor, trials: np.ndarray, labels: np.ndarray) -> Seen:
    seen = judge.look(lambda i: pictures[i], len(pictures))
    seen.labels, seen.conditions = labels, trials
    seen.pair_distances = judge.pair_distances(lambda i: pictures[i], class_pairs(trials))
    if "ppl" in context.config.metrics:
        seen.path_lengths = _path_lengths(context, judge, run_dir, trials)
    return seen


def _path_lengths(context: Any, judge: Judge, run_dir: str, trials: np.ndarray) -> np.ndarray | None:
    """Of the generator that drew the pictures, under their conditions; None where they cannot be measured."""
    given = Path(run_dir) / "config.yaml"
    made = read_yaml(given) if given.exists() else {}
    if made.get("condition") == "shuffled" or getattr(judge.detector, "only_uint8", False):
        return None
    if not all(Path(made.get(key) or "?").is_dir() for key in ("gan", "features")):
        log.info("%s: its generator or its features are not there any more, so that path lengths are left out", run_dir)
        return None
    generator, _ = load_generator(made["gan"], made.get("ema"), made.get("at"))
    known = load_features(made["features"], context.shards.split_digest, context.config.loader.index)
    keys = context.shards.keys(context.config.split)
    conditions = known.rows([keys[i] for i in trials[spread(len(trials), PATHS)]])
    return path_lengths(judge, generator.to(judge.device), conditions, context.config.seed)


def _records(context: Any, judge: Judge, figures: dict[str, Figure], name: str, units: np.ndarray | None) -> Metrics:
    """Means with intervals over what a new experiment would draw again: trials' pictures, conditions, paths."""
    chances = {**dict.fromkeys(("class_accuracy", "probe_accuracy"), 1 / len(judge.class_names)), "copies": NEAR}
    metrics = {}
    for metric, figure in figures.items():
        key = f"generate/{metric}{name}" if metric == "class_accuracy" else f"generate/{metric}[{judge.name}]{name}"
        if figure.over == "":
            metrics[key] = record(figure.mean, n=figure.n)
        else:
            groups = units if figure.over == "generated" and units is not None else np.arange(len(figure.values))
            metrics[key] = context.mean(figure.values, chances.get(metric), groups)
    return metrics


def _generated(shards: Shards, split: str, run_dir: str) -> tuple[np.ndarray, Tensor]:
    """The trial number and the picture of everything generated."""
    keys, pictures = read_generated(run_dir)
    place = {key: i for i, key in enumerate(shards.keys(split))}
    missing = [key for key in keys if key not in place]
    if missing:
        raise UserError(
            f"{run_dir}: trial {missing[0]} is not in split {split} of these shards; run generate on this split"
        )
    return np.array([place[key] for key in keys]), pictures
