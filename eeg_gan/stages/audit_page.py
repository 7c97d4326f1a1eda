"""audit.html: the verdict in plain words, the controls, what splits share, and the EEG itself, on one page."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader

from eeg_gan.data import units
from eeg_gan.data.card import Card
from eeg_gan.data.controls import ALPHA, DECIDING
from eeg_gan.stages import audit_figures

Metas = dict[str, list[dict]]
PLAIN = {
    "clean": "No leak was found, and no deciding control that could be made tells the class without the brain's answer "
    "to the image. Scores on this split can be read as scores of that answer.",
    "suspicious": "Something may tell the class besides the brain's answer to the image. "
    "Read the reasons before you report a score on this split.",
    "confounded": "A decoder can score on this split without any response to the image. "
    "Scores on it say little about perception; every artefact made from it should say so.",
}
CONTROLS = {  # name: what it is called, what it decodes from
    "time": ("time alone", "labels of the training trials nearest in time; no EEG at all"),
    "pre_stimulus": ("before the stimulus", "EEG from before the onset, freed of what the filter carries there"),
    "between_blocks": ("labels moved to other blocks", "EEG, when labels follow the block and not the picture"),
    "below_2hz": ("below 2 Hz only", "the slowest part of the EEG, where drift lives and some of the response"),
    "shuffled_eeg": ("shuffled EEG", "the decoder when its training EEG belongs to other trials: should be chance"),
    "ridge": ("ridge baseline", "the whole EEG: time course and band power; what there is to explain"),
}
SHARED = {
    "stimulus": "same stimulus",
    "concept": "same concept",
    "block": "same block",
    "recording": "same recording",
    "subject": "same subject",
}


def write(path: Path, found: dict, card: Card, metas: Metas, seen) -> None:
    """`found` is what audit.json holds; `seen` the averages over the EEG (the audit stage's Seen)."""
    sections = [
        {"id": "controls", "heading": "Control experiments", "blocks": _controls(found)},
        {"id": "shared", "heading": "What the splits share", "blocks": _shared(found, card)},
        *_time(metas, card),
        {"id": "erp", "heading": "Evoked response", "blocks": [_butterfly(seen, card)]},
        {"id": "psd", "heading": "Power spectra", "blocks": _spectra(seen, card, metas)},
    ]
    word, told = found["verdict"], [*found["reasons"], *found["split_policy"].get("notes", [])]
    environment = Environment(
        loader=PackageLoader("eeg_gan.stages", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("report.html.j2").render(
        title=f"Audit of {card.name}" + (" — confounded" if word == "confounded" else ""),
        verdict={"word": word, "style": word, "reasons": [PLAIN[word], *map(_sentence, told)]},
        about=_about(found, card, seen),
        cards=None,
        sections=sections,
        absent=[],
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _about(found: dict, card: Card, seen) -> dict:
    return {
        "data": card.name,
        "counts": " + ".join(f"{n} {split}" for split, n in found["counts"].items()),
        "classes": len(card.class_names),
        "channels": len(card.ch_names),
        "rate": 1 / (seen.times[1] - seen.times[0]) if len(seen.times) > 1 else card.sfreq,
        "design": card.design,
        "pairing": card.pairing,
        "licence": card.licence,
    }


def _controls(found: dict) -> list[dict]:
    rows, marks = [], []
    for name, (said, what) in CONTROLS.items():
        entry = found["controls"][name]
        decides = name in DECIDING
        alarming = entry.get("effect") in ("suspicious", "confounds")
        colour = audit_figures.RED if alarming else audit_figures.BLUE if decides else "#9aa5b1"
        marks.append({"name": said, "entry": entry, "colour": colour})
        rows.append(
            (
                said,
                what,
                _score(entry),
                _percent(entry["chance"]),
                _p(entry["p"]),
                entry["n"] or "",
                "counts against" if alarming else entry.get("effect", "reported only"),
                entry["note"],
            )
        )
    head = ["control", "decodes from", "accuracy [95 %]", "chance", "p", "n", "verdict", "note"]
    return [
        {
            "kind": "figure",
            "src": audit_figures.forest(marks),
            "alt": "scores of the controls with intervals",
            "caption": "Dots are balanced accuracies on held-out trials, bars their 95 % intervals, dashes chance. "
            "Blue and red controls decide (red: significant), grey ones are for comparison: the nearer a control comes "
            "to the ridge baseline, the less of that baseline needs a response to the image.",
        },
        {
            "kind": "tables",
            "tables": [{"head": head, "rows": rows}],
            "caption": "p is the share of permutations of the labels, over what drew them independently (recordings "
            "that share an order of presentation together), that score as high. Together the deciding controls raise "
            f"a false alarm in at most one of {round(1 / ALPHA)} clean data sets: each counts below p = "
            f"{ALPHA / len(DECIDING):.2g}.",
        },
        {"kind": "tables", "tables": [{"head": None, "rows": [("note", _sentence(note)) for note in found["notes"]]}]},
    ]


def _shared(found: dict, card: Card) -> list[dict]:
    pairs = sorted({pair for counts in found["overlaps"].values() for pair in counts})
    kinds = {SHARED[name]: counts for name, counts in found["overlaps"].items()}
    kinds |= {
        "overlapping windows": found["windows"],
        "identical pictures": found["duplicate_images"],
        "pictures that look the same": found["near_duplicate_images"],
        "identical EEG": found["duplicate_eeg"],
    }
    rows = [(said, *(counts.get(pair, "unknown") for pair in pairs)) for said, counts in kinds.items()]
    tables = [{"head": ["number of", *(pair.replace("/", " and ") for pair in pairs)], "rows": rows}] if pairs else []
    fitted = found["fitted_on"]
    said = {None: "unknown", True: "other trials than the training split: a leak", False: "the training split alone"}
    policy = found["split_policy"]
    about = [
        ("split by", f"{policy['by']}, seed {policy.get('seed', 'unknown')}"),
        (
            "statistics in the EEG",
            "none"
            if fitted["kind"] in ("none", "legacy_max")
            else f"{fitted['kind']} scaling, fitted on {said[fitted['leak']]}",
        ),
    ]
    if card.fitted_on != "none":
        trials = {"train": "training trials alone", "all": "all trials, those of the test split included"}
        about.append(("the publisher's statistics", f"fitted on {trials[card.fitted_on]}"))
    about += [("look the same", f"{a} and {b}") for a, b in found["near_duplicate_examples"]]
    return [
        {
            "kind": "tables",
            "tables": [*tables, {"head": None, "rows": about}],
            "caption": "What the split is by must be 0, as must windows and EEG. Subjects and recordings are usually "
            "shared, and concepts where a concept is a class. Pictures look the same where the signs of their lowest "
            "cosine coefficients differ in at most 6 of 64 and their thumbnails correlate above 0.98.",
        }
    ]


def _time(metas: Metas, card: Card) -> list[dict]:
    known = [meta for own in metas.values() for meta in own if meta["onset_s"] is not None]
    if not known:
        text = {
            "kind": "tables",
            "tables": [],
            "caption": "Onsets are unknown, so labels cannot be drawn against time.",
        }
        return [{"id": "time", "heading": "Labels against time", "blocks": [text]}]
    n = len({audit_figures.row_of(meta) for meta in known})
    few = f" {audit_figures.MOST_ROWS} of {n} recordings, evenly spread." if n > audit_figures.MOST_ROWS else ""
    block = {
        "kind": "figure",
        "src": audit_figures.raster(known, card.class_names),
        "alt": "labels against time",
        "caption": "Every stroke is a trial, its colour the class. Where colours stand in blocks, anything slow tells "
        "the class; where they are mixed like confetti, it cannot." + few,
    }
    return [{"id": "time", "heading": "Labels against time", "blocks": [block]}]


def _butterfly(seen, card: Card) -> dict:
    own = seen.evoked.means()
    mean = sum(seen.evoked.sums.values()) / sum(seen.evoked.counts.values())
    return {
        "kind": "figure",
        "src": audit_figures.butterfly(seen.times, mean, own, card.class_names),
        "alt": "ERP",
        "caption": "All splits together, as stored (filtered and scaled). A response rises after the red line; what "
        "differs between classes before it cannot be one, unless a filter carried it there.",
    }


def _spectra(seen, card: Card, metas: Metas) -> list[dict]:
    blocks = [
        {
            "kind": "figure",
            "title": "By class",
            "alt": "power spectra by class",
            "src": audit_figures.spectra(seen.freqs, seen.by_class.means(), card.class_names),
            "caption": "Median over electrodes. Classes that differ in broad power are usually recorded at different "
            "times.",
        }
    ]
    if not seen.by_block.sums:
        return blocks
    flat = [meta for own in metas.values() for meta in own]
    members: dict[int, list[dict]] = {}
    for meta, number in zip(flat, units.blocks_of(flat).tolist(), strict=True):
        members.setdefault(number, []).append(meta)
    whole = Counter(meta["label"] for meta in flat)
    rows = [
        {
            "name": _block_name(own),
            "recording": str(units.place(own[0])),
            "power": power,
            "label": _dominant(own, whole),
        }
        for own, power in sorted(((members[b], power) for b, power in seen.by_block.means().items()), key=_when)
    ]
    caption = (
        "Each row is a block (or run, or tenth of a recording) in order of time; red is more power than the mean of "
        "its recording, or of all where a recording is one block. The strip has the colour of a class that stands out "
        "in the block: more than half-way from its share of all trials to all of the block's. Blocks that differ are "
        "harmless where the strip is grey."
    )
    src = audit_figures.blocks(seen.freqs, rows, len(card.class_names))
    return [
        *blocks,
        {"kind": "figure", "title": "By block", "alt": "power spectra by block", "src": src, "caption": caption},
    ]


def _when(block: tuple[list[dict], np.ndarray]) -> tuple:
    own = block[0]
    return str(units.place(own[0])), min(meta["onset_s"] or 0.0 for meta in own)


def _block_name(own: list[dict]) -> str:
    parts = (own[0]["recording"] or own[0]["subject"] or "", own[0]["block"] or own[0]["run"] or "")
    return ", ".join(str(part) for part in parts if part)


def _dominant(own: list[dict], whole: Counter) -> int:
    label, count = Counter(meta["label"] for meta in own).most_common(1)[0]
    return label if 2 * count / len(own) > 1 + whole[label] / whole.total() else -1


def _score(entry: dict) -> str:
    if entry["value"] is None:
        return "–"
    return f"{100 * entry['value']:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _p(value: float | None) -> str:
    return "–" if value is None else "< .0001" if value <= 1e-4 else f"{value:.2g}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
