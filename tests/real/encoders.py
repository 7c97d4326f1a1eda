"""Every encoder on real recordings, on splits without leaks: does it beat chance where an LDA does?

    python tests/real/encoders.py OUT [--data FOLDER] [--sets p300 ssvep muse] [--encoders lstm cnn ...] [--json FILE]

FOLDER (default: the environment variable EEG_GAN_REAL_DATA) holds the recordings. Each set is prepared once, each
encoder trained by `encode` and read by `embed`; the same command again continues. p300: one person held out, targets
against other flashes; ssvep: one person held out, four frequencies; muse: whole recordings held out, faces against
houses. Nothing is selected on the test split: encoders are taken as they are after a fixed number of trials.

A score is that of shrinkage LDA with equal priors, fitted on the training split's features: the area under the ROC
curve for two classes, else balanced accuracy. p is how often labels do as well that are shifted in a circle within
each recording (2,000 times), which keeps the order of stimuli and the overlap of windows; chance is their mean.
Intervals are bootstrapped over stretches of 60 trials. Beside it stands the balanced accuracy of 5 nearest training
features. The LDA to compare with reads means over 20 stretches of time, or of ssvep the log spectrum: a flicker has a
rhythm but no fixed phase, so that nothing linear in the EEG tells it. About 10 minutes of one core.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from eeg_gan import cli
from eeg_gan.data import features
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.metrics.embedding import decimate, knn_predict
from eeg_gan.models.eeg import ENCODERS
from eeg_gan.stages.loading import open_shards

SHIFTS, DRAWS, STRETCH = 2000, 1000, 60
SSVEP = {
    "preprocess": {
        "highpass_hz": 6.0,
        "lowpass_hz": 40.0,
        "resample_hz": 125.0,
        "crop_s": [0.0, 1.0],
        "scale": "robust",
    },
    "split": {"by": "given"},
}
SETS = {  # maker, its own prepare.yaml or what stands for it, keys of encode
    "p300": ("make_p300", None, {"total_images": 30_000, "mix": 1.0}),
    "ssvep": ("make_ssvep_cifar", SSVEP, {"total_images": 30_000, "augment": {"shift": 6, "scale": 0.3}}),
    "muse": ("make_muse", None, {"total_images": 30_000, "mix": 1.0}),
}
ENCODE = {
    "loss": "supervised_contrastive",
    "optim": {"lr": 1.0e-3, "schedule": "cosine", "weight_decay": 0.01},
    "classes_per_batch": 4,
    "trials_per_class": 32,
}
NETWORKS = {  # small ones, as the sets are
    "lstm": {"hidden": 64, "layers": 1, "remember": True},  # else its loss stays that of a constant feature
    "cnn": {"widths": [16, 32, 64, 128]},
}
OWN = {  # what some encoders need to learn a set at all, chosen on the validation split
    ("p300", "lstm"): {
        "optim": {"lr": 5.0e-3, "schedule": "cosine", "weight_decay": 0.01, "clip_norm": 1.0},
        "total_images": 150_000,
    },
    ("ssvep", "lstm"): {
        "optim": {"lr": 5.0e-3, "schedule": "cosine", "weight_decay": 0.01, "clip_norm": 1.0},
        "augment": {},
        "total_images": 80_000,
    },
    ("ssvep", "tsconv"): {
        "loss": "triplet",
        "triplet": {"mining": "semi_hard"},
        "total_images": 120_000,
        "encoder": {"dropout": 0.25},
    },
}
log = logging.getLogger("encoders")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--data", default=os.environ.get("EEG_GAN_REAL_DATA"), help="default: $EEG_GAN_REAL_DATA")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--subjects", action="store_true", help="with a layer for each person")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args(argv)
    rows = []
    for name in words.sets:
        index = prepared(name, words.out / name, words.data)
        rows.append(judged(name, index, lda_inputs(name, index), "lda"))
        for encoder in words.encoders:
            run_dir = encoded(name, encoder, index, words.out / name, words.subjects)
            rows.append(judged(name, index, embedded(index, run_dir), encoder))
            rows[-1]["seconds"] = round(json.loads((run_dir / "run.json").read_text())["seconds"])
            if words.json:
                words.json.write_text(json.dumps(rows, indent=1) + "\n")
    log.info("%s", table(rows))


def table(rows: list[dict]) -> str:
    """Markdown: a row for each encoder, a column for each set."""
    sets, who = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "who"))
    found = {(row["set"], row["who"]): row for row in rows}
    lines = [f"| | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for one in who:
        lines.append(f"| {one} | " + " | ".join(cell(found.get((name, one))) for name in sets) + " |")
    chance = (next(row["chance"] for row in rows if row["set"] == name) for name in sets)
    return "\n".join([*lines, "| chance | " + " | ".join(f"{value:.3f}" for value in chance) + " |"])


def cell(row: dict | None) -> str:
    if row is None:
        return ""
    said = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], p {row['p']:.4f}"
    return said if row["who"] == "lda" else f"{said}; kNN {row['knn']:.3f}"


def prepared(name: str, folder: Path, data: str | None) -> Path:
    """The index of a set's shards, made where they are missing."""
    maker, stands, _ = SETS[name]
    index = folder / "shards" / "index.json"
    if index.exists():
        return index
    script(maker).main([str(folder), "--data", data or ""])
    if stands is not None:
        own = {"run_dir": str(folder / "shards"), "source": {"name": "folder", "path": str(folder)}, **stands}
        (folder / "prepare.yaml").write_text(yaml.safe_dump(own))
    call("prepare", folder / "prepare.yaml")
    return index


def encoded(name: str, encoder: str, index: Path, folder: Path, subjects: bool) -> Path:
    own = {**ENCODE, **SETS[name][2], **OWN.get((name, encoder), {})}
    run_dir = folder / f"encode-{encoder}{'-subjects' * subjects}"
    network = {"name": encoder, "dim": 64, "subjects": subjects, **NETWORKS.get(encoder, {}), **own.pop("encoder", {})}
    keys = {"run_dir": str(run_dir), "loader": {"index": str(index)}, "encoder": network, **own}
    keys |= {"evaluate_every": own["total_images"], "checkpoint_every": own["total_images"]}
    path = folder / f"{run_dir.name}.yaml"
    path.write_text(yaml.safe_dump(keys))
    call("encode", path)
    return run_dir


def embedded(index: Path, run_dir: Path) -> dict[str, np.ndarray]:
    """Features [N, D] of both splits."""
    keys = {"run_dir": f"{run_dir}-features", "loader": {"index": str(index)}, "encoder": str(run_dir)}
    path = Path(f"{run_dir}-features.yaml")
    path.write_text(yaml.safe_dump({**keys, "splits": ["train", "test"]}))
    call("embed", path)
    known = features.load(f"{run_dir}-features")
    own = np.array(known.meta["splits"])
    return {split: known.features.numpy()[own == split] for split in ("train", "test")}


def lda_inputs(name: str, index: Path) -> dict[str, np.ndarray]:
    shards = open_shards(LoaderConfig(index=str(index)), ("train", "test"))
    eeg = {split: Reader(shards, split).eeg_all().numpy() for split in ("train", "test")}
    if name == "ssvep":
        return {split: np.log(np.abs(np.fft.rfft(x)) + 1e-3).reshape(len(x), -1) for split, x in eeg.items()}
    return {split: decimate(x, 20).reshape(len(x), -1) for split, x in eeg.items()}


def judged(name: str, index: Path, x: dict[str, np.ndarray], who: str) -> dict:
    """Score, interval, p and chance of one representation of a set, and the balanced accuracy of its neighbours."""
    shards = open_shards(LoaderConfig(index=str(index)), ("train", "test"))
    y, classes = shards.labels("test"), len(shards.card.class_names)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    lda.fit(x["train"], shards.labels("train"))
    said = lda.decision_function(x["test"]) if classes == 2 else lda.predict(x["test"])
    score = roc_auc_score if classes == 2 else balanced_accuracy_score
    order, starts = in_time(shards)
    y, said = y[order], said[order]
    value = score(y, said)
    low, high = interval(score, y, said, starts)
    p, chance = shifted_p(score, y, said, starts)
    near = knn_predict(x["train"], shards.labels("train"), x["test"][order])
    knn = float(balanced_accuracy_score(y, near))
    row = {"set": name, "who": who, "value": value, "low": low, "high": high, "p": p, "chance": chance, "knn": knn}
    log.info("%-6s %-8s %.3f [%.3f, %.3f] p %.4f, kNN %.3f (n %d)", name, who, value, low, high, p, knn, len(y))
    return row | {"n": len(y), "classes": classes}


def in_time(shards) -> tuple[np.ndarray, np.ndarray]:
    """The test trials in order of recording and onset, and where each recording starts."""
    metas = shards.metas("test")
    recordings = [f"{meta['subject']}/{meta['recording']}" for meta in metas]
    order = np.array(sorted(range(len(metas)), key=lambda i: (recordings[i], metas[i]["onset_s"] or 0.0)))
    names = np.array(recordings)[order]
    return order, np.flatnonzero(np.r_[True, names[1:] != names[:-1]])


def shifted_p(score: Callable, y: np.ndarray, said: np.ndarray, starts: np.ndarray) -> tuple[float, float]:
    """How often labels that are shifted within each recording do as well, and their mean score."""
    rng, value = np.random.default_rng(0), score(y, said)
    parts = np.split(y, starts[1:])
    null = [
        score(np.concatenate([np.roll(part, rng.integers(1, max(len(part), 2))) for part in parts]), said)
        for _ in range(SHIFTS)
    ]
    return (1 + sum(other >= value for other in null)) / (1 + SHIFTS), float(np.mean(null))


def interval(score: Callable, y: np.ndarray, said: np.ndarray, starts: np.ndarray) -> tuple[float, float]:
    """95 %, over stretches of consecutive trials of one recording."""
    rng, edges = np.random.default_rng(0), np.append(starts, len(y))
    stretches = [
        np.arange(at, min(at + STRETCH, end))
        for begin, end in zip(edges[:-1], edges[1:], strict=True)
        for at in range(begin, end, STRETCH)
    ]
    drawn = (
        np.concatenate([stretches[k] for k in rng.integers(len(stretches), size=len(stretches))]) for _ in range(DRAWS)
    )
    values = [score(y[own], said[own]) for own in drawn if len(set(y[own].tolist())) == len(set(y.tolist()))]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def call(verb: str, *words: object) -> None:
    if cli.main([verb, *map(str, words)]) != 0:
        sys.exit(f"{verb} failed")


def script(name: str):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
