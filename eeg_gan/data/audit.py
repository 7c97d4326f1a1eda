"""Looks for leaks between splits, and judges what the control experiments found."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from eeg_gan.data.card import Card
from eeg_gan.data.controls import ALPHA, DECIDING, Control
from eeg_gan.data.units import RANDOMISED, place

SERIOUS = 0.1  # of the way from chance to perfection, or
EXPLAINED = 0.25  # of what the ridge baseline reaches beyond chance: from here a control's score confounds the data
SAID = {
    "time": "time of recording alone gives",
    "pre_stimulus": "EEG from before the stimulus gives",
    "between_blocks": "with labels moved to other blocks, EEG still gives",
}
KNOWN = 0.5  # of the scored trials: from here on, what time alone tells is how the order was made, whatever its p
UNDECIDED = "not decidable: none of the three deciding controls could be made, so nobody knows what tells the class"
Metas = list[dict[str, Any]]
Effect = Literal["not applicable", "cannot decide", "passed", "suspicious", "confounds"]
CONTEXT = {"block": ("subject", "session", "run", "recording", "block")}  # what makes a name unique


@dataclass(frozen=True)
class Verdict:
    """What every later artefact carries."""

    verdict: Literal["clean", "suspicious", "confounded"]
    reasons: list[str]  # why it is not clean
    notes: list[str]  # what a reader should know besides


def overlaps(metas: Mapping[str, Metas], field: str) -> dict[str, int]:
    """`a/b` -> number of values of a meta field that splits a and b share."""
    names = {split: _values(own, field) for split, own in metas.items()}
    return {f"{a}/{b}": len(names[a] & names[b]) for a, b in combinations(metas, 2)}


def window_overlaps(metas: Mapping[str, Metas], duration_s: float) -> dict[str, int]:
    """`a/b` -> number of trials of b whose window shares time with one of a, in the same recording.

    A window is [onset + tmin, onset + tmin + duration_s); trials without onset or recording are passed over.
    """
    return {f"{a}/{b}": _n_windows(metas[a], metas[b], duration_s) for a, b in combinations(metas, 2)}


def duplicates(digests: Mapping[str, Iterable[str | None]]) -> dict[str, int]:
    """`a/b` -> number of digests, of EEG or of images, that occur in both splits."""
    sets = {split: set(own) - {None} for split, own in digests.items()}
    return {f"{a}/{b}": len(sets[a] & sets[b]) for a, b in combinations(sets, 2)}


def eeg_digest(eeg: np.ndarray) -> str:
    """SHA-256 of a stored trial."""
    return hashlib.sha256(np.ascontiguousarray(eeg, dtype=np.float32).tobytes()).hexdigest()


def fitted_on(preprocessing: dict[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """What statistics in the EEG were fitted on: {kind, trials, train, leak}; leak None is unknown."""
    scale = preprocessing.get("scale", {})
    kind, trials, train = scale.get("kind", "none"), scale.get("train_trials"), counts.get("train", 0)
    leak = False if kind in ("none", "legacy_max") else None if trials is None else trials != train
    return {"kind": kind, "trials": trials, "train": train, "leak": leak}


def leaks(metas: Mapping[str, Metas], duration_s: float) -> dict[str, Any]:
    """What the metas alone tell of what splits share."""
    return {
        "overlaps": {f: overlaps(metas, f) for f in ("stimulus", "concept", "block", "recording", "subject")},
        "windows": window_overlaps(metas, duration_s),
        "duplicate_images": duplicates({s: [m["image_sha256"] for m in own] for s, own in metas.items()}),
    }


def judge(found: dict[str, Any], controls: Mapping[str, Control], card: Card, split_policy: dict[str, Any]) -> Verdict:
    """The verdict on leaks and on the controls that decide, and why; family-wise over those, alpha is .001.

    Clean are data on which at least one deciding control could be made, and none found anything.
    """
    confounded, suspicious, notes = list(split_policy.get("reasons", [])), [], list(split_policy.get("notes", []))
    if split_policy.get("confounded") and not confounded:
        confounded.append("prepare recorded the split as confounded")
    _judge_leaks(found, card, split_policy["by"], confounded, suspicious, notes)
    for name in DECIDING:
        _judge_control(name, controls, card, confounded, suspicious, notes)
    if not confounded and not any(decides(controls.get(name, Control())) for name in DECIDING):
        suspicious.append(UNDECIDED)
    verdict = "confounded" if confounded else "suspicious" if suspicious else "clean"
    return Verdict(verdict, confounded + suspicious, notes)


def decides(control: Control) -> bool:
    """Whether the control was made, on enough units for its p to count against the data."""
    return control.value is not None and control.least < ALPHA / len(DECIDING)


def _judge_leaks(found: dict, card: Card, by: str, confounded: list, suspicious: list, notes: list) -> None:
    if _any(found["overlaps"].get(by)):
        confounded.append(f"the split is by {by}, yet splits share one: {_said(found['overlaps'][by])}")
    if _any(found.get("duplicate_eeg")):
        confounded.append(f"the same EEG is in two splits: {_said(found['duplicate_eeg'])}")
    if _any(found["windows"]):
        windowed = card.design in ("windowed", "imagined-windowed")
        said = f"windows share samples across splits: {_said(found['windows'])}"
        (confounded if windowed else suspicious).append(said)
    same_picture = by in ("stimulus", "concept")
    if _any(found["duplicate_images"]):
        said = f"the same picture is in two splits: {_said(found['duplicate_images'])}"
        (confounded if same_picture else notes).append(said)
    if _any(found.get("near_duplicate_images")):
        said = f"pairs of pictures look the same: {_said(found['near_duplicate_images'])}"
        (suspicious if same_picture else notes).append(said)
    fitted = found.get("fitted_on")
    if fitted and fitted["leak"]:
        confounded.append(
            f"the {fitted['kind']} scaling was fitted on {fitted['trials']} trials, but the training split holds "
            f"{fitted['train']}: it knows trials of other splits"
        )
    if card.fitted_on == "all":
        suspicious.append("the publisher fitted statistics in the EEG, such as whitening, on test trials too")
    if fitted and fitted["leak"] is None:
        notes.append(f"the index does not say how many trials the {fitted['kind']} scaling was fitted on")


def weigh(control: Control, ridge: Control | None) -> Effect:
    """What a deciding control says of the data; one that found something may still explain too little to confound."""
    if control.value is None:
        return "not applicable"
    if not decides(control):
        return "confounds" if control.known > KNOWN and _serious(control, ridge) else "cannot decide"
    if control.p >= ALPHA / len(DECIDING):
        return "passed"
    return "confounds" if _serious(control, ridge) else "suspicious"


def _judge_control(name: str, controls: Mapping, card: Card, confounded: list, suspicious: list, notes: list) -> None:
    control = controls.get(name, Control(note="not made"))
    if control.value is None:
        said = f"{name.replace('_', ' ')}: not applicable, as {control.note}"
        blind = name == "time" and card.design not in RANDOMISED and control.chance is not None
        (suspicious if blind else notes).append(said + f", in this {card.design} design" if blind else said)
        return
    effect = weigh(control, controls.get("ridge"))
    said = (
        f"{SAID[name]} {control.value:.1%}, chance {control.chance:.1%} (p {control.p:.2g}, n {control.n}"
        f"{'; ' + control.note if control.note else ''})"
    )
    if effect == "cannot decide":
        said += f": decides nothing, as labels can be exchanged in {1 / control.least:.0f} ways only"
    elif effect == "confounds" and not decides(control):
        said += ": no luck, for these trials were presented in the order of training trials"
    {"confounds": confounded, "suspicious": suspicious}.get(effect, notes).append(said)


def _serious(control: Control, ridge: Control | None) -> bool:
    """A significant score may still be too small to explain what a decoder reaches."""
    gap = control.value - control.chance
    if ridge is not None and ridge.value is not None and ridge.value > ridge.chance:
        return gap >= min(SERIOUS * (1 - control.chance), EXPLAINED * (ridge.value - ridge.chance))
    return gap >= SERIOUS * (1 - control.chance)


def _values(metas: Metas, field: str) -> set:
    names = CONTEXT.get(field, (field,))
    return {tuple(meta[name] for name in names) for meta in metas if meta[field] is not None}


def _n_windows(first: Metas, second: Metas, duration_s: float) -> int:
    starts = defaultdict(list)
    for meta in first:
        if meta["onset_s"] is not None and place(meta) is not None:
            starts[place(meta)].append(meta["onset_s"] + (meta["tmin_s"] or 0))
    ordered = {place: np.sort(own) for place, own in starts.items()}
    return sum(_touches(ordered.get(place(meta)), meta, duration_s) for meta in second)


def _touches(starts: np.ndarray | None, meta: dict[str, Any], duration_s: float) -> bool:
    if starts is None or meta["onset_s"] is None:
        return False
    start = meta["onset_s"] + (meta["tmin_s"] or 0)
    near = starts[max(0, np.searchsorted(starts, start) - 1) : np.searchsorted(starts, start) + 1]
    return bool((np.abs(near - start) < duration_s - 1e-9).any())  # windows that only meet do not share a sample


def _any(counts: dict[str, int] | None) -> bool:
    return bool(counts) and any(counts.values())


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} between {pair.replace('/', ' and ')}" for pair, n in counts.items() if n)
