"""Sections of the report that show pictures: reconstructions, unseen images through the EEG space, retrieval."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eeg_gan.metrics.perceptual import pixcorr
from eeg_gan.stages.figures import picture
from eeg_gan.stages.loading import unique_images
from eeg_gan.stages.report_runs import Runs

GOOD = "#2f9e44"
NEAREST_SIZE = 32  # pixels at which training images are compared
REPEATS = 4  # reconstructions in a row, at most


def reconstructions(runs: Runs, examples: int) -> list[dict]:
    """Stimulus beside what was made from its EEG, from best to worst."""
    trials, images = runs.generated("generate")
    first = {int(trial): g for g, trial in reversed(list(enumerate(trials)))}  # a trial's first picture
    own, said = _ordered(runs, first, images)
    rows = spaced(own, [runs.stimulus(t) for t, _ in own], examples)
    repeated = len(first) < len(trials)
    more = [_more(runs, trials, first, own[place][0], repeated) for place in rows]
    again = "again, other noise" if repeated else "other trial, same picture"
    columns = [_seen(runs), "from its EEG"] + [again] * max(map(len, more))
    shuffled, wrong = _first_of(runs, "generate_shuffled")
    columns += ["shuffled EEG"] * bool(shuffled) + ["nearest training picture"]
    near = nearest_training(runs, [images[first[own[place][0]]] for place in rows])
    grid = []
    for place, others, (neighbour, rms) in zip(rows, more, near, strict=True):
        trial, score = own[place]
        cells = [_stimulus(runs, trial), _made(runs, images, first[trial], trial)]
        cells += [_made(runs, images, g, trial) for g in others] + [None] * (max(map(len, more)) - len(others))
        if shuffled:
            g = shuffled.get(trial)
            cells.append(None if g is None else _made(runs, wrong, g, trial, "_shuffled_eeg"))
        cells.append(
            {"src": picture(runs.image(neighbour, "train")), "note": f"RMS {rms:.0f} of 255", "alt": "training picture"}
        )
        grid.append({"head": _place(place, len(own)), "sub": score, "cells": cells})
    told = (
        f"Each row is one held-out trial. {said} Under a generated picture stands the class that the judge "
        "network sees in "
        "it, with a tick if it is that of the trial. The last column is the training picture nearest to the first "
        "reconstruction in its pixels: a copy of it would be memory, not reconstruction." + runs.pairing()
    )
    return [{"kind": "grid", "columns": columns, "rows": grid, "caption": told}]


def image2eeg(runs: Runs, examples: int) -> list[dict]:
    """Pictures that no network has seen, sent through the regressor into the EEG space and drawn from there."""
    trials, images = runs.generated("generate_image2eeg")
    first: dict[str, int] = {}
    for g, trial in enumerate(trials):
        first.setdefault(runs.stimulus(int(trial)), g)
    some = list(first.values())
    some = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(examples, len(some))).round().astype(int))]
    pairs = [[_stimulus(runs, int(trials[g])), _made(runs, images, g, int(trials[g]), "_image2eeg")] for g in some]
    return [
        {
            "kind": "pairs",
            "pairs": pairs,
            "caption": (
                "Each pair: a held-out picture, and what the generator draws from the EEG feature that the "
                "image2eeg regressor predicts "
                "for that picture. No EEG of these pictures was used. Pairs are evenly spaced over the held-out "
                "pictures, not chosen."
            ),
        }
    ]


def retrieval(runs: Runs, examples: int) -> list[dict]:
    """The five held-out pictures nearest to the EEG, for good, middling and bad trials."""
    gallery, ranks, top5 = runs.detail("gallery_trials", "retrieval_ranks", "retrieval_top5")
    order = [(int(t), "") for t in np.argsort(ranks, kind="stable")]
    rows = []
    for place in spaced(order, [runs.stimulus(t) for t, _ in order], max(3, examples // 2)):
        trial = order[place][0]
        cells = [_stimulus(runs, trial)]
        for item in top5[trial]:
            cell = _stimulus(runs, int(gallery[item]))
            hit = runs.stimulus(int(gallery[item])) == runs.stimulus(trial)
            cells.append({**cell, "frame": GOOD if hit else None})
        rows.append({"head": f"rank {ranks[trial] + 1}", "sub": _place(place, len(order)), "cells": cells})
    columns = [_seen(runs), *(f"match {i + 1}" for i in range(top5.shape[1]))]
    return [
        {
            "kind": "grid",
            "columns": columns,
            "rows": rows,
            "caption": (
                f"The EEG of a held-out trial is compared with all {len(gallery)} distinct held-out pictures. "
                "The five nearest follow the "
                "seen picture, which has a green frame where it is among them; the rank says where it came (1 "
                "is best). "
                f"Trials are evenly spaced from the best to the worst of {len(order)}."
            ),
        }
    ]


def spaced(order: Sequence, names: Sequence[str], count: int) -> list[int]:
    """Places of best, worst, median and evenly between, each of another name, in order."""
    targets = [round(i * (len(order) - 1) / max(count - 1, 1)) for i in range(count)]
    ends, middle = (0, len(order) - 1), (len(order) - 1) // 2
    targets[count // 2] = middle
    picked, used = set(), set()
    for target in sorted(targets, key=lambda t: (t not in ends, t != middle)):
        for place in sorted(range(len(order)), key=lambda p: abs(p - target)):
            if names[place] not in used:
                picked.add(place)
                used.add(names[place])
                break
    return sorted(picked)


def nearest_training(runs: Runs, queries: list[np.ndarray]) -> list[tuple[int, float]]:
    """For each picture the training trial whose picture is nearest, and the RMS difference of their pixels."""
    trials, _ = unique_images(runs.shards, "train")
    wanted, found = torch.stack([_reduced(q) for q in queries]), [(0, float("inf"))] * len(queries)
    for start in range(0, len(trials), 512):
        part = trials[start : start + 512]
        distance = torch.cdist(wanted, torch.stack([_reduced(runs.image(t, "train")) for t in part]))
        values, places = distance.min(1)
        for i, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            found[i] = min(found[i], (part[place], value / wanted.shape[1] ** 0.5), key=lambda pair: pair[1])
    return found


def _reduced(image: np.ndarray) -> Tensor:
    """[3 * 32 * 32] of a picture uint8 [H, W, 3]."""
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    return F.adaptive_avg_pool2d(x, NEAREST_SIZE).flatten()


def _ordered(runs: Runs, first: dict[int, int], images: np.ndarray) -> tuple[list[tuple[int, str]], str]:
    """(trial, its score in words) from best to worst, and how the order was made."""
    trials = sorted(first)
    if runs.shards.card.pairing != "trial":
        return [
            (t, "") for t in trials
        ], "Trials are evenly spaced in the order of the data; without true pictures there is no best."
    shown = torch.stack([_reduced(runs.image(t)) for t in trials]).view(-1, 3, NEAREST_SIZE, NEAREST_SIZE)
    made = torch.stack([_reduced(images[first[t]]) for t in trials]).view(-1, 3, NEAREST_SIZE, NEAREST_SIZE)
    score = pixcorr(made, shown)
    ranks = runs.details.get("retrieval_ranks")
    order = np.argsort(-score, kind="stable")
    rows = [
        (trials[i], f"r = {score[i]:.2f}" + ("" if ranks is None else f", rank {ranks[trials[i]] + 1}")) for i in order
    ]
    told = "" if ranks is None else " Rank is where the seen picture came when its EEG was used for retrieval."
    return rows, (
        f"Rows run from the best to the worst of all {len(rows)} trials by the correlation r of the pixels of "
        "the seen and "
        f"the first generated picture, evenly spaced, one row per picture.{told}"
    )


def _more(runs: Runs, trials: np.ndarray, first: dict[int, int], trial: int, repeated: bool) -> list[int]:
    """Further pictures of this trial, or the first ones of other trials of the same stimulus."""
    if repeated:
        return np.flatnonzero(trials == trial)[1:REPEATS].tolist()
    if runs.shards.card.pairing != "trial":
        return []
    same = [t for t in sorted(first) if t != trial and runs.stimulus(t) == runs.stimulus(trial)]
    return [first[t] for t in same[: REPEATS - 1]]


def _first_of(runs: Runs, stage: str) -> tuple[dict[int, int], np.ndarray | None]:
    if not runs.has(stage):
        return {}, None
    trials, images = runs.generated(stage)
    return {int(trial): g for g, trial in reversed(list(enumerate(trials)))}, images


def _seen(runs: Runs) -> str:
    return "of the same class" if runs.shards.card.pairing == "class" else "seen picture"


def _place(place: int, total: int) -> str:
    named = {0: "best", total - 1: "worst", (total - 1) // 2: "median"}
    return named.get(place, f"{place + 1} of {total}")


def _stimulus(runs: Runs, trial: int) -> dict:
    label = runs.metas[trial]["label"]
    return {
        "src": picture(runs.image(trial)),
        "note": runs.names[label],
        "dot": runs.colours[label],
        "alt": f"seen: {runs.names[label]}",
    }


def _made(runs: Runs, images: np.ndarray, g: int, trial: int, name: str = "") -> dict:
    """A generated picture with the judge's class; row g of the generate run."""
    cell = {"src": picture(images[g]), "note": "", "alt": "generated"}
    judged = runs.details.get(f"generated_predicted{name}")
    if judged is None or len(judged) != len(images):
        return cell
    seen = int(judged[g])
    right = seen == runs.metas[trial]["label"]
    return {**cell, "note": runs.names[seen] + (" ✓" if right else ""), "dot": runs.colours[seen], "faint": not right}
