"""The paper's ablation on simulated data, as JSON and as a table: what the generator is told, and what comes of it.

    eeg-gan demo
    eeg-gan pipeline configs/pipeline/ablation-simulated.yaml
    python tests/bench/ablation_simulated.py [--run runs/ablation-simulated] [--json FILE]

Everything is read from the metrics.json of the three evaluations.
"""

import argparse
import json
from pathlib import Path

from cifar_collapse import interval, machine, ranged

TOLD = {  # stage -> what the generator is told
    "classes": "the class (one-hot, a label: a ceiling)",
    "triplet": "triplet feature of the EEG",
    "aligned": "aligned feature of the EEG",
}
JUDGE = "[demo-classifier]"
FIGURES = {
    "class_accuracy": "generate/class_accuracy",
    "shuffled": "generate/class_accuracy_shuffled_eeg",
    "fid": f"generate/fid{JUDGE}",
    "kid": f"generate/kid{JUDGE}",
    "diversity": f"generate/diversity{JUDGE}",
    "copies": f"generate/copies{JUDGE}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/ablation-simulated"))
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    found = {name: read(words.run, name) for name in TOLD}
    metrics = json.loads((words.run / "evaluate_classes" / "metrics.json").read_text())
    real = {key: interval(metrics.get(f"{name}_real")) for key, name in FIGURES.items()}
    real = {key: value for key, value in real.items() if value is not None}
    if words.json:
        words.json.write_text(json.dumps({"machine": machine(), "told": found, "real": real}, indent=1) + "\n")
    print(table(found, real))


def read(run: Path, name: str) -> dict:
    metrics = json.loads((run / f"evaluate_{name}" / "metrics.json").read_text())
    record = json.loads((run / f"gan_{name}" / "run.json").read_text())
    about = {"what": TOLD[name], "told_the_class": metrics["generate/class_accuracy"].get("told_the_class", False)}
    about |= {"total_images": record["done"]["total_images"], "minutes": round(record["seconds"] / 60, 1)}
    return about | {key: interval(metrics.get(metric)) for key, metric in FIGURES.items()}


def table(found: dict, real: dict) -> str:
    lines = [
        "| the generator is told | class accuracy | shuffled | FID | KID | diversity in a condition | copies |",
        "|---" * 7 + "|",
    ]
    for own in found.values():
        lines.append(f"| {own['what']} | " + " | ".join(cells(own)) + " |")
    return "\n".join([*lines, "| real held-out pictures | " + " | ".join(cells(real)) + " |"])


def cells(own: dict) -> list[str]:
    digits = {"class_accuracy": 3, "shuffled": 3, "fid": 2, "kid": 4, "diversity": 2, "copies": 3}
    return ["" if own.get(key) is None else ranged(own[key], n) for key, n in digits.items()]


if __name__ == "__main__":
    main()
