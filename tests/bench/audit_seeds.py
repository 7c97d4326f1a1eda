"""Is the audit right? `python tests/bench/audit_seeds.py SEEDS [key=value ...]` audits as many simulated data sets of
random order and of block design, and prints their verdicts; words after SEEDS go to prepare.

Random order must be clean and blocks confounded, for every seed, and by the controls alone: the last column is what
they would have said, had the card kept the design secret.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from eeg_gan import cli
from eeg_gan.data.controls import ALPHA, DECIDING

CONFIGS = Path(__file__).parents[2] / "configs"
DESIGNS = {"event-randomised": ("simulated", "clean"), "block": ("simulated-block", "confounded")}
SHOWN = ("time", "pre_stimulus", "between_blocks", "below_2hz", "shuffled_eeg", "ridge")


def audited(folder: str, design: str, seed: int, words: list[str]) -> tuple[dict, float]:
    """audit.json of one simulated data set, and the seconds that the audit took."""
    name, _ = DESIGNS[design]
    index = f"{folder}/{design}-{seed}/index.json"
    prepare = [str(CONFIGS / "prepare" / f"{name}.yaml"), f"run_dir={Path(index).parent}"]
    assert cli.main(["prepare", *prepare, f"source.simulated.seed={seed}", *words]) == 0
    began, run_dir = time.monotonic(), f"{folder}/audit-{design}-{seed}"
    assert (
        cli.main(["audit", str(CONFIGS / "audit" / "default.yaml"), f"loader.index={index}", f"run_dir={run_dir}"]) == 0
    )
    return json.loads((Path(run_dir) / "audit.json").read_text()), time.monotonic() - began


def alarms(found: dict) -> list[str]:
    """The deciding controls that are significant, whatever the card says of the design."""
    return [n for n in DECIDING if (found["controls"][n]["p"] or 1) < ALPHA / len(DECIDING)]


def line(design: str, seed: int, found: dict, seconds: float) -> str:
    controls = [found["controls"][name] for name in SHOWN]
    scores = " ".join("     -      " if c["value"] is None else f"{c['value']:.3f} {c['p']:.4f}" for c in controls)
    return f"{design:<17}{seed:>4}  {found['verdict']:<11}{scores} {seconds:6.1f}  {', '.join(alarms(found)) or 'none'}"


def main(seeds: int, words: list[str]) -> int:
    right = {design: 0 for design in DESIGNS}
    print(
        f"{'design':<17}seed  verdict    " + " ".join(f"{name:<12}" for name in SHOWN) + "      s  significant",
        flush=True,
    )
    for seed in range(seeds):
        for design, (_, expected) in DESIGNS.items():
            with tempfile.TemporaryDirectory() as folder:
                found, seconds = audited(folder, design, seed, words)
            right[design] += found["verdict"] == expected and bool(alarms(found)) == (expected == "confounded")
            print(line(design, seed, found, seconds), flush=True)
    for design, (_, expected) in DESIGNS.items():
        print(f"{design}: {right[design]} of {seeds} {expected}")
    return 0 if all(n == seeds for n in right.values()) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
