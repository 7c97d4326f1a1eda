"""Gathers what tests/gpu/run_all.sh has left in a folder so far into one JSON file: gather.py FOLDER OUT.

The exit code is 1 if a part has failed.
"""

import json
import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def gather(work: Path) -> dict:
    parts = {}
    for name in ("build", "tests", "step", "bench"):
        if not (work / f"{name}.end").exists():
            parts[name] = {"code": None}  # not ended
            continue
        code, seconds = (work / f"{name}.end").read_text().split()
        parts[name] = {"code": int(code), "seconds": int(seconds)}
        if code != "0":
            parts[name]["said"] = (work / f"{name}.log").read_text()[-3000:]
    tests = work / "tests.jsonl"
    rows = [json.loads(line) for line in tests.read_text().splitlines()] if tests.exists() else []
    return {
        "machine": machine(),
        "library": read(ROOT / "eeg_gan/_C.json"),
        "parts": parts,
        "counts": dict(Counter(row["outcome"] for row in rows)),
        "tests": rows,
        "step": read(work / "step.json"),
        "bench": read(work / "bench.json"),
    }


def machine() -> dict:
    there = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if there else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if there else None,
        "driver": getattr(torch._C, "_cuda_getDriverVersion", lambda: None)() if there else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    found = gather(Path(sys.argv[1]))
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub('[^a-z0-9]+', '-', (found['machine']['gpu'] or 'no-gpu').lower())}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, file)
    codes = {name: part["code"] for name, part in found["parts"].items()}
    print(f"{found['counts']}, exit codes {codes}\nwritten: {file}")
    sys.exit(any(codes.values()))
