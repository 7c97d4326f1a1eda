"""Sections of the report that are drawn: maps of features, confusion matrices, bars with intervals, curves."""

from collections import defaultdict

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from eeg_gan.config import UserError
from eeg_gan.metrics.statistics import bootstrap_mean, record
from eeg_gan.stages import figures
from eeg_gan.stages.report_runs import Runs
from eeg_gan.training.log import read_stats

MAP_POINTS = 800  # as many as a map can show; t-SNE takes ten seconds for each thousand
MAPS = (
    ("embed_triplet", "the EEG feature of stage 1 (triplet loss)"),
    ("embed", "the EEG feature after alignment with images (stage 2)"),
)
BARS = (  # title, metrics: the figure is left out where none of them is there
    (
        "Is the class in the EEG?",
        {
            "encode/knn_accuracy": "kNN on the feature",
            "encode/svm_accuracy": "linear SVM on the feature",
            "encode/svm_rbf_accuracy": "RBF SVM on the feature",
            "encode/logistic_accuracy": "linear probe on the feature",
            "encode/finetuned_accuracy": "fine-tuned encoder",
            "encode/kmeans_accuracy": "k-means of the feature",
            "lda/accuracy": "LDA on the EEG itself",
        },
    ),
    (
        "Is the seen picture found?",
        {
            "align/retrieval_top1": "top 1",
            "align/retrieval_top5": "top 5",
            "align/retrieval_top10": "top 10",
            "align/linear_map_top1": "top 1 by a linear map of stage 1",
            "align/image_to_eeg_top1": "top 1 from picture to EEG",
            "align/retrieval_top1_within_class": "top 1 within its class",
            "align/class_top1": "class of the top 1",
        },
    ),
    (
        "Do generated pictures show the class?",
        {
            "generate/class_accuracy": "from EEG",
            "generate/class_accuracy_shuffled_eeg": "from shuffled EEG",
            "generate/class_accuracy_image2eeg": "from image2eeg",
            "generate/class_accuracy_real": "real pictures",
        },
    ),
)


def maps(runs: Runs) -> list[dict]:
    blocks = []
    for stage, said in MAPS:
        if (runs.folder / stage / "features.json").exists():
            z, metas = _shown(runs, stage)
            blocks.append(
                {
                    "kind": "figure",
                    "src": _map(runs, neighbours(z, runs.seed), metas),
                    "alt": f"t-SNE of {said}",
                    "caption": (
                        f"t-SNE of {said}, {len(z)} held-out trials; near points have similar features. Groups of "
                        "one class are what "
                        "training aims at. Groups of one subject or of one time would mean that something else "
                        "is encoded."
                    ),
                }
            )
            points, share = axes(z, runs.seed)
            blocks.append(
                {
                    "kind": "figure",
                    "src": _map(runs, points, metas),
                    "alt": f"PCA of {said}",
                    "caption": (
                        f"The first two principal components of the same features, with {100 * share:.0f} % of their "
                        "variance: distances are true here, but two axes hide what the others tell."
                    ),
                }
            )
    if not blocks:
        raise UserError("embed_triplet and embed are missing; the stage embed makes them")
    return blocks


def _shown(runs: Runs, stage: str) -> tuple[np.ndarray, list[dict]]:
    """Features [N, D] and metas of at most `MAP_POINTS` held-out trials."""
    known = runs.features(stage)
    keys = [key for key, split in zip(known.keys, known.meta["splits"], strict=True) if split == runs.split]
    if len(keys) < 5:
        raise UserError(f"{stage} holds {len(keys)} features of split {runs.split}, too few for a map")
    if len(keys) > MAP_POINTS:
        keys = sorted(np.random.default_rng(runs.seed).choice(keys, MAP_POINTS, replace=False))
    return known.rows(keys).numpy(), [runs.metas[runs.place[key]] for key in keys]


def _map(runs: Runs, points: np.ndarray, metas: list[dict]) -> str:
    return figures.scatter_maps(points, [_by_class(runs, metas), _by_subject(metas), _by_time(metas)])


def neighbours(z: np.ndarray, seed: int) -> np.ndarray:
    tsne = TSNE(2, perplexity=min(30, (len(z) - 1) / 3), metric="cosine", init="random", random_state=seed)
    with threadpool_limits(1):  # its threads wait for one another in loops, for minutes on a machine that is busy
        return tsne.fit_transform(z)


def axes(z: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Points [N, 2], and the share of the variance that they keep."""
    pca = PCA(2, random_state=seed).fit(z)
    return pca.transform(z), float(pca.explained_variance_ratio_.sum())


def _by_class(runs: Runs, metas: list[dict]) -> dict:
    return {
        "title": "by class",
        "values": np.array([m["label"] for m in metas]),
        "names": runs.names,
        "colours": runs.colours,
    }


def _by_subject(metas: list[dict]) -> dict:
    names = sorted({str(m["subject"]) for m in metas if m["subject"] is not None})
    if not names:
        return {"title": "by subject", "missing": "subjects are unknown"}
    values = np.array([names.index(str(m["subject"])) if m["subject"] is not None else -1 for m in metas])
    return {"title": "by subject", "values": values, "names": names, "colours": figures.class_colours(len(names))}


def _by_time(metas: list[dict]) -> dict:
    if any(m["onset_s"] is None for m in metas):
        return {"title": "by time", "missing": "onsets are unknown"}
    return {
        "title": "by time",
        "values": np.array([m["onset_s"] for m in metas]) / 60,
        "unit": "onset in its recording, minutes",
    }


def confusions(runs: Runs) -> list[dict]:
    blocks = []
    if {"labels", "knn_predicted"} <= runs.details.keys():
        labels, predicted = runs.detail("labels", "knn_predicted")
        blocks.append(
            _confusion(runs, labels, predicted, "kNN on the EEG feature", "Which class the EEG is taken for.")
        )
    if "generated_predicted" in runs.details and runs.has("generate"):
        trials, _ = runs.generated("generate")
        if len(trials) != len(runs.details["generated_predicted"]):
            raise UserError("evaluate judged other pictures than those in generate; run evaluate again")
        labels = np.array([runs.metas[t]["label"] for t in trials])
        said = "Which class the judge network sees in the picture made from the EEG."
        blocks.append(_confusion(runs, labels, runs.details["generated_predicted"], "Generated pictures", said))
    if not blocks:
        raise UserError("evaluate/details.safetensors holds no predictions; the stage evaluate writes them")
    return [{"kind": "figures", "figures": blocks}]


def _confusion(runs: Runs, labels: np.ndarray, predicted: np.ndarray, title: str, said: str) -> dict:
    return {
        "src": figures.confusion(labels, predicted, runs.names),
        "alt": f"confusion matrix, {title}",
        "title": title,
        "caption": f"{said} Rows are true classes and add to 100 %; a perfect method fills the diagonal. n = "
        f"{len(labels)}.",
    }


def bars(runs: Runs) -> list[dict]:
    panels = []
    for title, wanted in BARS:
        own = [
            (said, runs.metrics[name], None)
            for name, said in wanted.items()
            if runs.metrics.get(name, {}).get("value") is not None
        ]
        panels += [{"title": title, "bars": own}] if own else []
    subjects = _per_subject(runs)
    panels += [{"title": "kNN accuracy of each subject", "bars": subjects}] if subjects else []
    if not panels:
        raise UserError("evaluate/metrics.json holds none of the main metrics")
    return [
        {
            "kind": "figure",
            "src": figures.bars(panels),
            "alt": "bars of the main metrics",
            "caption": (
                "Bars are values on held-out trials, dark lines 95 % intervals (bootstrap over pictures), red "
                "dashes chance. "
                "An interval that reaches the red dashes is no evidence of an effect."
            ),
        }
    ]


def _per_subject(runs: Runs) -> list[tuple]:
    if "knn_predicted" not in runs.details:
        return []
    labels, predicted = runs.detail("labels", "knn_predicted")
    trials, rows = runs.labelled_trials(), defaultdict(list)
    for i, trial in enumerate(trials):
        rows[runs.metas[trial]["subject"]].append(i)
    names = sorted(name for name in rows if name is not None)
    colours, found = figures.class_colours(len(names)), []
    for name, colour in zip(names, colours, strict=True):
        own = np.array(rows[name])
        groups = [runs.stimulus(trials[i]) for i in own]
        value, low, high = bootstrap_mean((labels[own] == predicted[own]).astype(float), groups, seed=runs.seed)
        found.append((str(name), record(value, low, high, np.bincount(labels[own]).max() / len(own), len(own)), colour))
    return found


def curves(runs: Runs) -> list[dict]:
    known = ("encode", "align", "image2eeg", "gan")
    others = sorted(p.parent.name for p in runs.folder.glob("*/stats.jsonl") if p.parent.name not in known)
    blocks = []
    for stage in (*known, *others):
        groups = _groups(read_stats(runs.folder / stage))
        if groups:
            blocks.append(
                {"kind": "figure", "title": stage, "alt": f"curves of {stage}", "src": figures.curves(groups)}
            )
    if not blocks:
        raise UserError("no stage has a stats.jsonl; encode, align, image2eeg and gan write one")
    blocks[-1]["caption"] = (
        "Everything is counted in thousands of training images; val is measured on the validation split. For "
        "the GAN, augment/p is the "
        "strength of the adaptive augmentation, and sign/real the mean sign of the discriminator on real "
        "pictures: near 1, it has "
        "learnt them by heart, and p rises."
    )
    return blocks


def _groups(rows: list[dict]) -> list[dict]:
    """One panel per kind and unit of tag: `loss/D (nats)` and `loss/G (nats)` share one."""
    found: dict[tuple[str, str], dict] = {}
    for row in rows if any(row["images"] for row in rows) else ():  # stages that do not train log one point at 0
        for tag, value in row.items():
            machine = tag.startswith(("speed/", "memory/"))  # for TensorBoard; the gallery's size is no curve
            if tag == "images" or machine or "/gallery" in tag or not np.isfinite(value):
                continue
            name, _, unit = tag.partition(" (")
            kind, _, part = name.rpartition("/")
            lines = found.setdefault((kind or name, unit), {})
            images, values = lines.setdefault(part, ([], []))
            images.append(row["images"])
            values.append(value)
    return [
        {
            "title": kind if len(lines) > 1 or kind in lines else f"{kind}/{next(iter(lines))}",
            "unit": "" if unit == "1)" else unit.removesuffix(")"),
            "lines": lines,
        }
        for (kind, unit), lines in found.items()
    ]
