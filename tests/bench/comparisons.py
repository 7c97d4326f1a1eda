"""What the comparisons on simulated data come to, seed by seed, as JSON.

    eeg-gan pipeline configs/pipeline/unseen-simulated.yaml seeds=3     (and the others of FIGURES)
    python tests/bench/comparisons.py [--runs runs] [--json FILE]

Everything is read from the metrics.json of the evaluations, which lie in the run directory and its seed-1, seed-2 ...
"""

import argparse
import json
from pathlib import Path

from cifar_collapse import machine

RETRIEVAL = ("align/retrieval_top1", "align/retrieval_top5")
MAPPED = ("align/linear_map_top1", "align/linear_map_top5", "align/linear_map_top1_gain")
FIGURES = {  # folder and config of the pipeline -> evaluation -> metrics
    "unseen-simulated": {
        "evaluate": ("encode/knn_accuracy", "encode/logistic_accuracy", "encode/kmeans_accuracy", "lda/accuracy")
    },
    "joint-simulated": {
        "evaluate": ("encode/kmeans_accuracy", *RETRIEVAL, *MAPPED),
        "evaluate_map": RETRIEVAL,
        "evaluate_joint": ("encode/kmeans_accuracy",),
        "evaluate_scratch": ("encode/kmeans_accuracy", *RETRIEVAL),
    },
    "features-simulated": {
        "evaluate": ("encode/knn_accuracy", "encode/svm_accuracy", "encode/kmeans_accuracy")
        + ("encode/finetuned_accuracy", "lda/accuracy")
    },
    "transfer-simulated": {"evaluate": ("encode/logistic_accuracy", "encode/logistic_accuracy_gain", "lda/accuracy")},
    "triplet-against-supervised": {
        "evaluate": ("encode/svm_accuracy", "encode/svm_accuracy_gain", "lda/accuracy"),
        "evaluate_supervised": ("encode/svm_accuracy",),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    found = {name: seeds_of(words.runs / name, wanted) for name, wanted in FIGURES.items()}
    for name, seeds in found.items():
        for stage, metrics in seeds[0].items():
            for metric in metrics:
                print(name, stage, metric, *(said(own[stage][metric]) for own in seeds))
    if words.json:
        words.json.write_text(json.dumps({"machine": machine(), "pipelines": found}, indent=1) + "\n")


def seeds_of(folder: Path, wanted: dict) -> list[dict]:
    """Of each seed, in order: evaluation -> metric -> its record."""
    seeds = [folder, *sorted(folder.glob("seed-*"), key=lambda path: int(path.name[5:]))]
    return [{stage: read(seed / stage, names) for stage, names in wanted.items()} for seed in seeds]


def read(stage: Path, names: tuple[str, ...]) -> dict:
    metrics = json.loads((stage / "metrics.json").read_text())
    return {name: {key: metrics[name].get(key) for key in ("value", "low", "high", "chance", "n")} for name in names}


def said(metric: dict) -> str:
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


if __name__ == "__main__":
    main()
