"""Section of the report on retrieval by size of the gallery and by number of averaged trials."""

import re

from eeg_gan.config import UserError
from eeg_gan.stages import figures
from eeg_gan.stages.report_runs import Runs

WAY = re.compile(r"align/retrieval_(\d+)way_top([15])")
MEAN = re.compile(r"align/retrieval_(eeg_)?mean_of_(\d+|all)_top1")


def curves(runs: Runs) -> list[dict]:
    """One figure of one or two panels; nothing where evaluate judged no alignment."""
    metrics = {name: m for name, m in runs.metrics.items() if m["value"] is not None}
    if "align/retrieval_top1" not in metrics:
        raise UserError("evaluate/metrics.json holds no retrieval; evaluate measures it where align is given")
    panels = [_by_gallery(runs, metrics)]
    if any(MEAN.fullmatch(name) for name in metrics):
        panels.append(_by_repetitions(runs, metrics))
    return [
        {
            "kind": "figure",
            "src": figures.lines(panels),
            "alt": "retrieval by size of the gallery and by averaged trials",
            "caption": (
                "Left: how often the seen picture is found among itself and distractors drawn from the other held-out "
                "pictures, as the exact expectation over all draws. "
                "Right, where a picture was shown more than once: the same after averaging, of features of any "
                "people's trials of the picture, or of one person's EEG before it is encoded; published figures are "
                "often of averages. Bands are 95 % intervals over pictures, broken lines chance."
            ),
        }
    ]


def _by_gallery(runs: Runs, metrics: dict) -> dict:
    size = len(runs.details["gallery_trials"])
    lines: dict[str, dict] = {"top 1": {}, "top 5": {}}
    for name, m in metrics.items():
        if found := WAY.fullmatch(name):
            lines[f"top {found[2]}"][int(found[1])] = m
    for top in (1, 5):
        if m := metrics.get(f"align/retrieval_top{top}"):
            lines[f"top {top}"][size] = m
    ordered = {name: dict(sorted(points.items())) for name, points in lines.items() if points}
    return {"title": "Retrieval of the seen picture", "xlabel": "pictures to choose from", "lines": ordered}


def _by_repetitions(runs: Runs, metrics: dict) -> dict:
    single = metrics["align/retrieval_top1"]
    lines: dict[str, dict] = {}
    for name, m in metrics.items():
        if found := MEAN.fullmatch(name):
            points = lines.setdefault("EEG of one person" if found[1] else "features of all people", {1: single})
            points[_most(runs, bool(found[1])) if found[2] == "all" else int(found[2])] = m
    ordered = {name: dict(sorted(points.items())) for name, points in lines.items()}
    return {"title": "Top 1 after averaging", "xlabel": "averaged trials", "lines": ordered}


def _most(runs: Runs, one_person: bool) -> int:
    """The most trials of a picture, all of which the last point averages."""
    counts: dict[tuple, int] = {}
    for meta in runs.metas:
        name = meta["image_sha256"], meta["subject"] if one_person else None
        counts[name] = counts.get(name, 0) + 1
    return max(counts.values())
