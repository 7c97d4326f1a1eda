"""Sections of the report that are tables: split and audit, every metric, how it was run."""

import re

from eeg_gan.config import UserError
from eeg_gan.stages.report_runs import Runs

MEANING = {  # how each figure was obtained, by its name without judge and condition
    "encode/kmeans_accuracy": "k-means on held-out EEG features, clusters matched one to one to classes: the "
    "paper's measure",
    "encode/knn_accuracy": "majority of the 5 training features with the highest cosine",
    "encode/knn_balanced_accuracy": "accuracy of the kNN, as the mean over classes",
    "encode/svm_accuracy": "linear support vector machine fitted on training features",
    "encode/svm_rbf_accuracy": "support vector machine with a Gaussian kernel fitted on training features",
    "encode/logistic_accuracy": "logistic regression fitted on standardised training features: the linear probe",
    "encode/finetuned_accuracy": "a classifier on the encoder, both trained by cross-entropy",
    "encode/nmi": "normalised mutual information of clusters and classes; 0 is none, 1 is all",
    "encode/ari": "Rand index of clusters and classes, corrected for chance",
    "lda/accuracy": "shrinkage linear discriminant analysis on the EEG itself: the score to beat",
    "lda/balanced_accuracy": "accuracy of the shrinkage LDA, as the mean over classes",
    "align/retrieval_top1": "share of trials whose seen picture is the nearest of all distinct held-out pictures",
    "align/retrieval_top5": "the seen picture is among the nearest 5",
    "align/retrieval_top10": "the seen picture is among the nearest 10",
    "align/retrieval_top1_within_class": "nearest among held-out pictures of the seen class: more than the class",
    "align/retrieval_top5_within_class": "among the nearest 5 held-out pictures of the seen class",
    "align/class_top1": "the nearest held-out picture is of the right class",
    "align/class_top5": "of the classes, ranked by their nearest picture, the true one is among the first 5",
    "align/class_top10": "of the classes, ranked by their nearest picture, the true one is among the first 10",
    "align/image_to_eeg_top1": "from the picture to the EEG: a trial that showed it is nearer than every trial that "
    "showed another picture",
    "align/image_to_eeg_top5": "from the picture to the EEG: among the nearest 5",
    "align/image_to_eeg_top10": "from the picture to the EEG: among the nearest 10",
    "align/image_to_eeg_class_top1": "from the picture to the EEG: the nearest trial is of the right class",
    "align/image_to_eeg_class_top5": "from the picture to the EEG: classes ranked by their nearest trial, first 5",
    "align/image_to_eeg_class_top10": "from the picture to the EEG: classes ranked by their nearest trial, first 10",
    "align/linear_map_top1": "retrieval by a ridge from the stage-1 feature to the tower, the score joint training has "
    "to beat",
    "align/linear_map_top1_gain": "by how much retrieval after alignment is above that by the ridge, trial by trial",
    "align/linear_map_top5": "the same among the nearest 5",
    "align/linear_map_top10": "the same among the nearest 10",
    "image2eeg/retrieval_top1": "the feature predicted for the seen picture is the nearest to the measured one, of all "
    "held-out pictures",
    "image2eeg/retrieval_top5": "the predicted feature is among the nearest 5",
    "image2eeg/retrieval_top10": "the predicted feature is among the nearest 10",
    "image2eeg/class_top1": "the nearest predicted feature is of the right class",
    "image2eeg/class_top5": "classes ranked by their nearest predicted feature: the true one is in the first 5",
    "image2eeg/class_top10": "classes ranked by their nearest predicted feature: the true one is in the first 10",
    "image2eeg/kmeans_accuracy": "k-means on the features predicted for held-out pictures: the paper's measure",
    "image2eeg/knn_accuracy": "predicted features by the vote of the 5 nearest measured training features",
    "image2eeg/cosine": "of predicted and measured feature; chance is the cosine with another picture's prediction",
    "generate/class_accuracy": "share of pictures in which the judge network sees the class of the trial",
    "generate/fid": "Fréchet distance of the judge's features, generated to held-out real pictures; lower is better",
    "generate/kid": "kernel distance of the judge's features (unbiased); lower is better, 0 is equal",
    "generate/kid_train": "the same to training pictures; far below that to held-out ones, the generator memorises",
    "generate/intra_fid": "mean over classes of the Fréchet distance within the class; lower is better",
    "generate/inception_score": "how sure and how varied the judge's classes are; at least 1, higher is better",
    "generate/probe_accuracy": "share of pictures in which a linear probe, fitted on the judge's features of real "
    "training pictures, sees the class of the trial",
    "generate/density": "in how many real neighbourhoods a generated picture lies, of 5; real ones score about 1",
    "generate/coverage": "share of real pictures with a generated one in their neighbourhood",
    "generate/diversity": "distance of pictures of one condition in the judge's features; 0 ignores the noise. Of real "
    "pictures: within a class",
    "generate/perceptual_diversity": "the same place by place, in the judge's feature maps",
    "generate/nearest_train": "distance to the nearest training picture in the judge's features",
    "generate/copies": "share of pictures nearer to training than 95 % of held-out pictures are; 5 % is usual",
    "generate/ppl": "squared speed of the picture along paths between styles, in the judge's distance; lower is "
    "smoother, and not comparable with published ones",
    "generate/precision": "share of generated pictures that lie where real ones lie, in the judge's features",
    "generate/recall": "share of real pictures that lie where generated ones lie, in the judge's features",
    "generate/pixcorr": "correlation of the pixels of seen and generated picture",
    "generate/ssim": "structural similarity of seen and generated picture",
}
SUBJECTS = 8  # of more, each has a row
CONDITIONS = {
    "_shuffled_eeg": "with another trial's EEG (control)",
    "_image2eeg": "drawn from image2eeg features",
    "_real": "for real pictures (what can be reached)",
}
CONTROLS = {
    "pre_stimulus": "class from before the stimulus",
    "between_blocks": "labels moved to other blocks",
    "below_2hz": "class from below 2 Hz",
    "ridge": "ridge on the whole EEG",
}


def audit(runs: Runs) -> list[dict]:
    found = runs.json("audit/audit.json")
    pairs = sorted({pair for counts in found.get("overlaps", {}).values() for pair in counts})
    shared = {
        **{f"same {name}": counts for name, counts in found.get("overlaps", {}).items()},
        "overlapping windows": found.get("windows", {}),
        "identical pictures": found.get("duplicate_images", {}),
        "identical EEG": found.get("duplicate_eeg", {}),
    }
    policy, told = found.get("split_policy", {}), [("verdict", found["verdict"])]
    told += [("why", reason) for reason in found.get("reasons", [])] + [
        ("note", note) for note in found.get("notes", [])
    ]
    told += [("design", found.get("design")), ("split by", policy.get("by")), ("split seed", policy.get("seed"))]
    told += [(f"{split} trials", n) for split, n in found.get("counts", {}).items()]
    told += [
        ("class from time alone", _control(found.get("time_control"))),
        *(
            (said, _control(found["controls"][name]))
            for name, said in CONTROLS.items()
            if name in found.get("controls", {})
        ),
        ("class from shuffled EEG", _control(found.get("shuffled_labels"))),
        ("readings of the test split", f"{test_reads(runs)}, over all stages of this run, the report included"),
    ]
    tables = [{"head": None, "rows": [(name, _said(value)) for name, value in told]}]
    if pairs:
        rows = [(name, *(_said(counts.get(pair, "")) for pair in pairs)) for name, counts in shared.items()]
        tables.append({"head": ["shared between", *(pair.replace("/", " and ") for pair in pairs)], "rows": rows})
    return [
        {
            "kind": "tables",
            "tables": tables,
            "caption": (
                "What the splits share must be 0 for what the split is by; windows and EEG are never to be "
                "shared, while subjects, recordings "
                "and classes of things usually are. Class from time alone: training trials nearest in time vote on the "
                "class, without EEG; above chance, slow drifts could give labels away. Shuffled EEG "
                "shows what a decoder scores "
                "where there is nothing to learn; audit.html says what the other controls are."
            ),
        }
    ]


def _control(m: dict | None) -> str:
    if m is None or m.get("value") is None:
        return (m or {}).get("note") or "unknown"
    interval = f" [{100 * m['low']:.1f}, {100 * m['high']:.1f}]" if m.get("low") is not None else ""
    p = f", p = {m['p']:.2g}" if m.get("p") is not None else ""
    return f"{100 * m['value']:.1f} %{interval}, chance {100 * m['chance']:.1f} %{p}, n = {m['n']}"


def _said(value) -> str:
    return "unknown" if value is None else str(value)


def test_reads(runs: Runs) -> int:
    return sum(runs.json(f"{stage}/run.json").get("reads", {}).get("test", 0) for stage in runs.stages())


def metrics(runs: Runs) -> list[dict]:
    rows = [
        (
            name,
            _number(m["value"]),
            _interval(m),
            _number(m.get("chance")),
            _number(m.get("p")),
            _said(m.get("n") or ""),
            meaning(name),
        )
        for name, m in sorted(runs.metrics.items())
    ]
    head = ["metric", "value", "95 % interval", "chance", "p", "n", "how it was obtained"]
    return [
        {
            "kind": "tables",
            "tables": [{"head": head, "rows": rows, "numbers": True}],
            "caption": (
                f"All on the {runs.split} split. Intervals are bootstrapped over pictures, since trials of one "
                "picture are not independent; "
                "where none is given, none was computed. p is the share of shuffled labels that do as well; labels "
                "move with their picture, or in a circle within a recording."
            ),
        },
        *_over_subjects(runs),
        *_over_seeds(runs),
    ]


def _over_subjects(runs: Runs) -> list[dict]:
    """Each subject's figures, and intervals as if other people had been drawn."""
    path = runs.folder / "evaluate" / "subjects.json"
    found = runs.json("evaluate/subjects.json") if path.exists() else {}
    if not found or len(next(iter(found.values()))) < 2:
        return []
    names = list(next(iter(found.values())))
    rows = [
        (metric, *(f"{_number(own[name]['value'])} [{_interval(own[name])}]" for name in names))
        for metric, own in sorted(found.items())
    ]
    if len(names) > SUBJECTS:  # one row for each of many
        metrics = sorted(found)
        head, rows = (
            ["subject", *metrics],
            [(name, *(_number(found[m][name]["value"]) for m in metrics)) for name in names],
        )
    else:
        head = ["metric", *(name or "unknown" for name in names)]
    drawn = [
        f"{name.removeprefix('encode/')} {_number(m['low_subjects'])} to {_number(m['high_subjects'])}"
        for name, m in sorted(runs.metrics.items())
        if m.get("low_subjects") is not None
    ]
    said = f" Over all, with intervals bootstrapped over subjects: {'; '.join(drawn)}." if drawn else ""
    return [
        {
            "kind": "tables",
            "tables": [{"head": head, "rows": rows, "numbers": True}],
            "caption": "The same of each subject." + said,
        }
    ]


def _over_seeds(runs: Runs) -> list[dict]:
    found = runs.json("seeds.json") if (runs.folder / "seeds.json").exists() else {}
    rows = [
        (name, stage, _number(m["mean"]), _number(m["sd"]), ", ".join(map(_number, m["values"])))
        for stage, own in found.items()
        for name, m in sorted(own.items())
    ]
    if not rows:
        return []
    head = ["metric", "stage", "mean", "standard deviation", "of each seed"]
    return [
        {
            "kind": "tables",
            "tables": [{"head": head, "rows": rows, "numbers": True}],
            "caption": "All stages after the data run again from other seeds, on the same split.",
        }
    ]


WAY = re.compile(r"align/retrieval_(\d+)way_top(\d+)")
MEAN = re.compile(r"align/retrieval_(eeg_)?mean_of_(\d+|all)_top(\d+)")


def meaning(name: str) -> str:
    """How a metric was obtained; the judge in brackets and the condition behind it are said in words."""
    if found := WAY.fullmatch(name):
        return f"among the nearest {found[2]} of {found[1]} pictures, in expectation over the distractors"
    if found := MEAN.fullmatch(name):
        what = "the EEG of one person's" if found[1] else "the features of all people's"
        return (
            f"retrieval, among the nearest {found[3]}, after averaging {what} trials of a picture, {found[2]} at a time"
        )
    if name.startswith("bands/"):
        return "the linear probe when a frequency band is taken out of held-out trials, or nothing else is left"
    if name.endswith("_gain") and name not in MEANING:
        return "by how much it is above the same of the other encoder (`against`), trial by trial"
    suffix = next((s for s in CONDITIONS if name.endswith(s)), "")
    plain, _, judge = name.removesuffix(suffix).partition("[")
    words = [MEANING.get(plain, "")] + ([CONDITIONS[suffix]] if suffix else [])
    if judge.startswith("demo-classifier"):
        words.append(
            "the judge is the small classifier of the demo, so this is not comparable with an Inception figure"
        )
    elif judge:
        words.append(f"the judge is {judge.rstrip(']')}")
    return "; ".join(word for word in words if word)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3f}"


def _interval(m: dict) -> str:
    return "" if m.get("low") is None else f"{_number(m['low'])} to {_number(m['high'])}"


def environment(runs: Runs) -> list[dict]:
    rows, configs = [], []
    for stage in runs.stages():
        record_ = runs.json(f"{stage}/run.json")
        if record_.get("verb") == "report":  # it is being made
            continue
        made = " ".join(str(record_.get(key, "")) for key in ("version", "torch", "host"))
        rows.append(
            (
                stage,
                record_.get("headline", "not finished"),
                f"{record_.get('seconds', 0):.0f}",
                _said(record_.get("processes")),
                made,
            )
        )
        path = runs.folder / stage / "config.yaml"
        if path.exists():
            configs.append({"kind": "details", "summary": f"{stage}: resolved config", "text": path.read_text()})
    if not rows:
        raise UserError("no stage has left a run.json")
    head = ["stage", "result", "seconds", "processes", "eeg-gan, torch, machine"]
    return [{"kind": "tables", "tables": [{"head": head, "rows": rows}]}, *configs]


def about(runs: Runs) -> dict:
    """What the page's head says of the data; nothing where there are no shards."""
    if not (runs.folder / "prepare" / "index.json").exists():
        return {}
    shards, card = runs.shards, runs.shards.card
    counts = ", ".join(
        f"{sum(len(s['samples']) for s in own)} {split}" for split, own in shards.index["splits"].items()
    )
    return {
        "data": card.name,
        "design": card.design,
        "pairing": card.pairing,
        "counts": counts,
        "classes": len(card.class_names),
        "channels": shards.channels,
        "rate": shards.preprocessing.get("sfreq", card.sfreq),
        "licence": card.licence,
        "description": card.description,
    }
