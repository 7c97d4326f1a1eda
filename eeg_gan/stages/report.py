"""One self-contained HTML page that shows what a pipeline found: pictures, maps, curves, controls, every metric."""

import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from eeg_gan.config import UserError
from eeg_gan.stages import report_charts, report_decoding, report_pictures, report_retrieval, report_tables
from eeg_gan.stages.report_runs import Runs
from eeg_gan.training import runtime


@dataclass(frozen=True)
class Config:
    run_dir: str  # where report.html goes
    pipeline: str  # the folder below which the stages' run directories lie, for example runs/demo
    title: str = "eeg-gan report"  # the page's heading
    examples: int = 12  # rows of reconstructions; other panels follow it
    seed: int = 0  # of the feature maps

    def __post_init__(self):
        if self.examples < 3:
            raise ValueError(f"examples must be 3 or more, for a best, a median and a worst; got {self.examples}")


SECTIONS = {  # id: heading, what makes its blocks from (runs, examples)
    "reconstructions": ("Seen and reconstructed", report_pictures.reconstructions),
    "image2eeg": ("Unseen images, reconstructed through the EEG space", report_pictures.image2eeg),
    "maps": ("Map of the EEG features", lambda runs, _: report_charts.maps(runs)),
    "bars": ("Main results", lambda runs, _: report_charts.bars(runs)),
    "confusions": ("Which classes are confused", lambda runs, _: report_charts.confusions(runs)),
    "decoding": ("When, where and in which rhythm", lambda runs, _: report_decoding.decoding(runs)),
    "retrieval": ("Retrieval of the seen picture", report_pictures.retrieval),
    "retrieval_curves": ("Retrieval by gallery and by averaging", lambda runs, _: report_retrieval.curves(runs)),
    "audit": ("Split and audit", lambda runs, _: report_tables.audit(runs)),
    "curves": ("Training", lambda runs, _: report_charts.curves(runs)),
    "metrics": ("Every metric", lambda runs, _: report_tables.metrics(runs)),
    "environment": ("How it was run", lambda runs, _: report_tables.environment(runs)),
}
CARDS = (  # heading, what it asks, (metric, what it is called); the first is the large figure
    ("EEG clusters by class", "k-means accuracy of the EEG feature", (("encode/kmeans_accuracy", "k-means"),)),
    (
        "EEG tells the class",
        "kNN on the EEG feature, beside LDA on the EEG itself",
        (("encode/knn_accuracy", "kNN"), ("lda/accuracy", "LDA")),
    ),
    (
        "EEG finds the picture",
        "the seen picture is the nearest of all held-out ones",
        (("align/retrieval_top1", "top 1"), ("align/retrieval_top5", "top 5")),
    ),
    (
        "EEG draws the class",
        "generated pictures of the right class, by a judge network",
        (
            ("generate/class_accuracy", "from EEG"),
            ("generate/class_accuracy_shuffled_eeg", "shuffled"),
            ("generate/class_accuracy_real", "real"),
        ),
    ),
)


def run(config: Config) -> None:
    runs = Runs(config.pipeline, config.seed)  # before run_dir is made, which usually lies below it
    with runtime.start("report", config) as rt:
        path, inputs = rt.run_dir / "report.html", runs.digests()
        if rt.done and path.exists() and rt.record.get("inputs") == inputs:
            return
        rt.record.pop("done", None)
        rt.record.pop("inputs", None)  # a page holds no work that newer results could spoil, so it is made again
        rt.inputs(**inputs)
        rt.confounded(runs.confounded)
        if inputs["prepare/index.json"]:
            rt.reads(("train", runs.split))
        rt.on_main(lambda: _write(path, page(runs, config, rt)))
        rt.finish(str(path))


def page(runs: Runs, config: Config, rt: runtime.Runtime) -> str:
    """The HTML; a section whose inputs are absent becomes one line that says so."""
    sections, absent = [], []
    with rt.bar(len(SECTIONS)) as bar:
        for done, (name, (heading, make)) in enumerate(SECTIONS.items()):
            try:
                sections.append({"id": name, "heading": heading, "blocks": make(runs, config.examples)})
            except UserError as error:
                absent.append({"heading": heading, "reason": str(error)})
            bar.update(done + 1, heading)
            rt.check_stop_here()
    environment = Environment(
        loader=PackageLoader("eeg_gan.stages", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    title = config.title + (" — confounded" if runs.confounded else "")
    return environment.get_template("report.html.j2").render(
        title=title,
        verdict=verdict(runs),
        cards=cards(runs),
        about=report_tables.about(runs),
        sections=sections,
        absent=absent,
    )


def verdict(runs: Runs) -> dict:
    """The badge and what stands beside it."""
    try:
        found = runs.json("audit/audit.json")
    except UserError:
        found = {"verdict": "not audited", "reasons": ["audit/audit.json is missing, so nobody has looked for leaks"]}
    word = "confounded" if runs.confounded else found["verdict"]
    known = {"clean": "no leak or confound was found between the splits"}
    return {
        "word": word,
        "style": word.replace(" ", "-"),
        "reasons": [
            *(found["reasons"] or [known.get(word, "the split was recorded as confounded")]),
            *found.get("split_policy", {}).get("notes", []),
        ],
    }


def cards(runs: Runs) -> list[dict]:
    """The headline figures that are there, each with interval and chance."""
    try:
        metrics = runs.metrics
    except UserError:
        return []
    found = []
    for heading, asks, wanted in CARDS:
        rows = [{"name": name, **metrics[key]} for key, name in wanted if metrics.get(key, {}).get("value") is not None]
        if rows and metrics.get(wanted[0][0], {}).get("value") is not None:
            found.append({"heading": heading, "asks": asks, "rows": rows})
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
