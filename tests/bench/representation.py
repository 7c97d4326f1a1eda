"""Stage 1 on simulated EEG: what the shipped settings of each encoder reach on held-out pictures, by training trials.

    python tests/bench/representation.py OUT [--encoders lstm cnn tsconv] [--seeds 0 1 2] [--sizes 60] [--json FILE]
                                             [--set KEY=VALUE ...]

Each run is `prepare configs/prepare/simulated.yaml`, `encode configs/encode/simulated-ENCODER.yaml`, `embed` and
`evaluate`, under OUT; the same command again goes on. A size is the number of different pictures of each class, a seed
that of the encoder's training; --set changes keys of encode, and the JSON of such runs is added to what is there.
"""

import argparse
import json
from pathlib import Path

from cifar_collapse import interval, machine

from eeg_gan import cli

ROOT = Path(__file__).parents[2] / "configs"
ALONE = ("align=null", "aligned_features=null", "generated=null", "detector=null")  # stage 1, and what it has to beat
ALONE += ("time_resolved=false", "permutations=0")
FIGURES = ("encode/kmeans_accuracy", "encode/knn_accuracy", "encode/svm_accuracy", "lda/accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoders", nargs="+", default=["lstm", "cnn", "tsconv"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sizes", nargs="+", type=int, default=[60])
    parser.add_argument("--set", nargs="*", default=[], help="keys of encode, such as ridge=null")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    rows = json.loads(words.json.read_text())["runs"] if words.json and words.json.exists() else []
    for size in words.sizes:
        index = prepared(words.out, size)
        for encoder in words.encoders:
            for seed in words.seeds:
                about = {"encoder": encoder, "size": size, "seed": seed, "set": words.set}
                rows = [row for row in rows if not about.items() <= row.items()]
                rows.append(about | judged(words.out, index, encoder, size, seed, words.set))
                print(json.dumps(rows[-1]), flush=True)
                if words.json:
                    words.json.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")


def prepared(out: Path, size: int) -> Path:
    folder = out / f"prepare-{size}"
    config = ROOT / "prepare" / "simulated.yaml"
    run("prepare", config, f"run_dir={folder}", f"source.simulated.images_per_class={size}")
    return folder / "index.json"


def judged(out: Path, index: Path, encoder: str, size: int, seed: int, changed: list[str]) -> dict:
    folder = out / "-".join([encoder, str(size), str(seed), *changed]).replace("=", "-")
    data, encode = f"loader.index={index}", f"{folder}/encode"
    config = ROOT / "encode" / f"simulated-{encoder}.yaml"
    run("encode", config, data, f"run_dir={encode}", f"seed={seed}", *changed)
    run("embed", ROOT / "embed" / "debug.yaml", data, f"encoder={encode}", f"run_dir={folder}/embed")
    words = [f"features={folder}/embed", f"run_dir={folder}/evaluate", "probes=[knn, svm]", *ALONE]
    run("evaluate", ROOT / "evaluate" / "debug.yaml", data, *words)
    record = json.loads((folder / "encode" / "run.json").read_text())
    metrics = json.loads((folder / "evaluate" / "metrics.json").read_text())
    about = {"minutes": round(record["seconds"] / 60, 1), "validation": record["metrics"]}
    return about | {name: interval(metrics[name]) for name in FIGURES}


def run(verb: str, *words: str | Path) -> None:
    if code := cli.main([verb, *map(str, words)]):
        raise SystemExit(code)


if __name__ == "__main__":
    main()
