"""All stages that one YAML names, in order, skipping what is done.

A stage's folder is `run_dir/NAME`; `{run_dir}` in any of its values stands for the pipeline's own folder. Every config
is checked before the first stage starts.

`seeds: 3` runs everything but the data three times, from seed 0, 1 and 2 on top of each stage's own: the first in
`run_dir/NAME`, the others in `run_dir/seed-K/NAME`, all on one split, so that what differs is chance in training and
in judging. `seeds.json` then has mean and standard deviation of every metric. More seeds later go on from there.
"""

import importlib
import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from eeg_gan.config import UserError, from_dict
from eeg_gan.metrics.statistics import over_seeds
from eeg_gan.training import runtime
from eeg_gan.training.checkpoint import write_json

VERBS = ("prepare", "audit", "encode", "align", "embed", "gan", "image2eeg", "generate", "evaluate", "report")
ONCE = ("prepare", "audit", "report")  # verbs that `seeds` does not repeat: the data, and the page about the first seed
HEADLINE = ("accuracy", "top1")  # ends of the metrics that are said over seeds
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    run_dir: str  # one folder per stage goes below it
    stages: dict[str, dict[str, Any] | None]  # NAME: the config of verb NAME, or of another verb with `verb: VERB`
    seeds: int = 1  # how often to train and judge, from other seeds on the same data; seeds.json: mean and spread

    def __post_init__(self):
        if not self.stages:
            raise ValueError(
                "stages is empty; name at least one, for example `stages: {prepare: {source: {name: simulated}}}`"
            )
        if self.seeds < 1:
            raise ValueError(f"seeds counts runs from different seeds, so it is 1 or more; got {self.seeds}")


@dataclass(frozen=True)
class Step:
    name: str
    module: ModuleType
    config: Any
    verb: str


def run(config: Config) -> None:
    rounds = [resolve(config.run_dir, config.stages, seed) for seed in range(config.seeds)]
    last = [step for step in rounds[0] if step.verb == "report"]  # it shows what came of all seeds
    with runtime.start("pipeline", config) as rt:
        if rt.done:
            return
        for step in [step for steps in rounds for step in steps if step.verb != "report"]:
            step.module.run(step.config)
            rt.check_stop()
        if config.seeds > 1:
            rt.on_main(lambda: _sum_up(config, rounds))
        for step in last:
            step.module.run(step.config)
        rt.finish(f"{len(rounds[0])} stages in {config.run_dir}" + f", {config.seeds} seeds" * (config.seeds > 1))


def resolve(run_dir: str, stages: dict[str, dict[str, Any] | None], seed: int = 0) -> list[Step]:
    """The checked config of every stage, before anything runs; beyond seed 0 only of what seeds repeat."""
    verbs = {name: (values or {}).get("verb", name) for name, values in stages.items()}
    home = {
        name: f"{run_dir}/{name}" if seed == 0 or verb in ONCE else f"{run_dir}/seed-{seed}/{name}"
        for name, verb in verbs.items()
    }
    return [
        _resolve_one(run_dir, name, dict(values or {}), home, seed)
        for name, values in stages.items()
        if seed == 0 or verbs[name] not in ONCE
    ]


def _resolve_one(run_dir: str, name: str, values: dict[str, Any], home: dict[str, str], seed: int) -> Step:
    verb = values.pop("verb", name)
    if verb not in VERBS:
        raise UserError(
            f"stages.{name}: there is no verb {verb!r} in a pipeline; give `verb:` one of {', '.join(VERBS)}"
        )
    module = importlib.import_module(f"eeg_gan.stages.{verb}")
    known = {f.name for f in fields(module.Config)}
    values = {"run_dir": home[name], **_substituted(values, run_dir, home)}
    if "loader" in known:
        given = values.get("loader") or {}
        values["loader"] = {"index": f"{run_dir}/prepare/index.json", **given} if isinstance(given, dict) else given
    if seed and "seed" in known:
        values["seed"] = values.get("seed", 0) + seed
    return Step(name, module, from_dict(module.Config, values, f"stages.{name}"), verb)


def _substituted(value: Any, run_dir: str, home: dict[str, str]) -> Any:
    """`{run_dir}/NAME` becomes the folder of stage NAME under the present seed."""
    if isinstance(value, dict):
        return {key: _substituted(inner, run_dir, home) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substituted(inner, run_dir, home) for inner in value]
    if not isinstance(value, str) or "{run_dir}" not in value:
        return value
    whole = value.replace("{run_dir}", run_dir)
    name, slash, rest = value.removeprefix("{run_dir}/").partition("/")
    return home[name] + slash + rest if value.startswith("{run_dir}/") and name in home else whole


def _sum_up(config: Config, rounds: list[list[Step]]) -> None:
    """seeds.json: stage -> metric -> {mean, sd, n, values}; what is an accuracy is said."""
    found: dict[str, dict] = {}
    for step in rounds[0]:
        if step.verb != "evaluate":
            continue
        runs = [next(other for other in steps if other.name == step.name).config.run_dir for steps in rounds]
        found[step.name] = over_seeds([json.loads((Path(run) / "metrics.json").read_text()) for run in runs])
        for name, m in found[step.name].items():
            if name.endswith(HEADLINE):
                log.info("  %-16s %-40s %.3f ± %.3f over %d seeds", step.name, name, m["mean"], m["sd"], m["n"])
    write_json(Path(config.run_dir) / "seeds.json", found)
