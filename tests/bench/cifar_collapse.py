"""The collapse table: figures of the three CIFAR-10 runs as JSON, as a table and as a picture.

    eeg-gan pipeline configs/pipeline/cifar-all.yaml                  (and cifar-40, cifar-40-transitional)
    python tests/bench/cifar_collapse.py [--runs runs] [--json FILE] [--figure FILE]

Everything is read from what the runs wrote: metrics.json of their evaluations on test pictures, stats.jsonl of the
training, and generated pictures. Minutes are those of the gan stage by the clock, on cores that others may share.
"""

import argparse
import json
import os
import platform
import re
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from eeg_gan.data.features import load as load_features
from eeg_gan.training.log import read_stats

RUNS = {  # folder -> what it is
    "cifar-all": "all pictures",
    "cifar-40": "40 per class",
    "cifar-40-transitional": "40 per class, transition",
}
FIGURES = {  # key -> metric
    "kid_test": "generate/kid[squeezenet]",
    "kid_train": "generate/kid_train[squeezenet]",
    "class_accuracy": "generate/class_accuracy",
    "diversity": "generate/diversity[squeezenet]",
    "recall": "generate/recall[squeezenet]",
    "precision": "generate/precision[squeezenet]",
    "coverage": "generate/coverage[squeezenet]",
    "nearest_train": "generate/nearest_train[squeezenet]",
    "copies": "generate/copies[squeezenet]",
    "inception_score": "generate/inception_score[resnet56]",
}
TRAINING = {  # key -> tag of stats.jsonl
    "sign_real": "sign/real (-1 to 1)",
    "augment_p": "augment/p (0 to 1)",
    "condition_weight": "condition/weight (0 to 1)",
    "val_kid": "val/kid[squeezenet] (1)",
}
COLOURS = ("#1b7837", "#c51b7d", "#2166ac")
PER_CLASS = 7  # pictures in a row of the grids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the three runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    words = parser.parse_args()
    found = {name: read_run(words.runs / name) for name in RUNS}
    if words.json:
        words.json.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n")
    print(table(found))
    if words.figure:
        draw(found, words.runs, words.figure)


def machine() -> dict:
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", cpu)
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read_run(folder: Path) -> dict:
    """Points over training, real pictures' figures, the course of training, and what the run was."""
    record = json.loads((folder / "gan" / "run.json").read_text())
    points, real = [], {}
    for manifest in sorted(folder.glob("generate_*/manifest.json")):
        drawn = json.loads(manifest.read_text())
        mark = manifest.parent.name.removeprefix("generate_")
        metrics = {}
        for kind in ("evaluate", "classes"):
            metrics |= json.loads((folder / f"{kind}_{mark}" / "metrics.json").read_text())
        point = {"images": drawn["gan_images"], "generated": len(drawn["images"]), "drawn": manifest.parent.name}
        points.append(point | {key: interval(metrics.get(name)) for key, name in FIGURES.items()})
        real = {key: interval(metrics.get(f"{name}_real")) for key, name in FIGURES.items()}
    rows = read_stats(folder / "gan")
    course = [{"images": row["images"], **{k: row[t] for k, t in TRAINING.items() if t in row}} for row in rows]
    given = record["done"]
    return {
        "what": RUNS[folder.name],
        "training_pictures": json.loads((folder / "prepare" / "run.json").read_text())["counts"]["train"],
        "minutes": round(record["seconds"] / 60, 1),
        "total_images": given["total_images"],
        "batch": given["batch"],
        "transition": given["condition"]["transition"],
        "points": sorted(points, key=lambda point: point["images"]),
        "real": {key: value for key, value in real.items() if value is not None},
        "course": course,
    }


def interval(metric: dict | None) -> dict | None:
    return None if metric is None else {key: metric[key] for key in ("value", "low", "high", "n")}


def table(found: dict) -> str:
    """Markdown: the last point of each run, and real held-out pictures."""
    heads = ["pictures", "KID to test, thousands", "to training", "gap", "class accuracy", "distance in a class"]
    heads += ["copies"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for run in found.values():
        last = run["points"][-1]
        test, train = value(last, "kid_test") / 1000, value(last, "kid_train") / 1000
        cells = [f"{run['training_pictures']:,}", f"{test:.2f}", f"{train:.2f}", f"{test - train:+.2f}"]
        cells += [ranged(last["class_accuracy"]), ranged(last["diversity"], 0), ranged(last["copies"])]
        lines.append(f"| {run['what']} | " + " | ".join(cells) + " |")
    real = next(iter(found.values()))["real"]
    cells = ["", f"{real['kid_test']['value'] / 1000:.2f}", "", "", ranged(real["class_accuracy"])]
    cells += [ranged(real["diversity"], 0), "0.05 by definition"]
    return "\n".join([*lines, "| real pictures | " + " | ".join(cells) + " |"])


def value(point: dict, key: str) -> float:
    return float("nan") if point.get(key) is None else point[key]["value"]


def ranged(metric: dict, digits: int = 3) -> str:
    low, high = metric["low"], metric["high"]
    around = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{metric['value']:.{digits}f}{around}"


PANELS = {  # title -> value at a point, and what real pictures have
    "KID[squeezenet] to test, thousands": (lambda p: value(p, "kid_test") / 1000, lambda real: 0.0),
    "KID to test less to training": (lambda p: value(p, "kid_test") - value(p, "kid_train"), lambda real: 0.0),
    "class accuracy (ResNet-56)": (lambda p: value(p, "class_accuracy"), lambda real: value(real, "class_accuracy")),
    "distance within a class": (lambda p: value(p, "diversity"), lambda real: value(real, "diversity")),
    "copies: share near to training": (lambda p: value(p, "copies"), lambda real: 0.05),
}


def draw(found: dict, runs: Path, path: Path) -> None:
    """Curves above, with real pictures in grey; grids of the last pictures below, a class a row."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(12.5, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    real = next(iter(found.values()))["real"]
    for axis, (title, (of, of_real)) in zip(above.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for run, colour in zip(found.values(), COLOURS, strict=True):
            images = [point["images"] / 1000 for point in run["points"]]
            axis.plot(images, [of(point) for point in run["points"]], "o-", color=colour, label=run["what"], ms=4)
        axis.axhline(of_real(real), color="0.6", linewidth=1, zorder=0)
        axis.set_title(title, fontsize=8.5)
        axis.set_xlabel("thousand images", fontsize=8)
        axis.tick_params(labelsize=7.5)
    above.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    for (name, run), axis in zip(found.items(), below.subplots(1, len(found)), strict=True):
        axis.imshow(generated_grid(runs / name, run["points"][-1]["drawn"]), interpolation="nearest")
        axis.set_title(run["what"], fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def generated_grid(run: Path, drawn: str) -> np.ndarray:
    """[H, W, 3]: the first pictures drawn for each class, which is the one that their condition names."""
    known = load_features(run / "embed")
    classes = dict(zip(known.keys, known.features.argmax(1).tolist(), strict=True))
    rows: dict[int, list[np.ndarray]] = {}
    for row in json.loads((run / drawn / "manifest.json").read_text())["images"]:
        own = rows.setdefault(classes[row["key"]], [])
        if len(own) < PER_CLASS:
            own.append(np.asarray(Image.open(run / drawn / row["file"]).convert("RGB")))
    return np.concatenate([np.concatenate(rows[k], axis=1) for k in sorted(rows)], axis=0)


if __name__ == "__main__":
    main()
