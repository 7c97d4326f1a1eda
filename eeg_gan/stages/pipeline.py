"""All stages that one YAML names, in order, skipping what is done.

A stage's folder is `run_dir/NAME`; `{run_dir}` in any of its values stands for the pipeline's own folder. Every config
is checked before the first stage starts.
"""

import importlib
import logging
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from eeg_gan.config import UserError, from_dict
from eeg_gan.training import runtime

VERBS = ("prepare", "audit", "encode", "align", "embed", "gan", "image2eeg", "generate", "evaluate", "report")
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    run_dir: str  # one folder per stage goes below it
    stages: dict[str, dict[str, Any] | None]  # NAME: the config of verb NAME, or of another verb with `verb: VERB`

    def __post_init__(self):
        if not self.stages:
            raise ValueError(
                "stages is empty; name at least one, for example `stages: {prepare: {source: {name: simulated}}}`"
            )


@dataclass(frozen=True)
class Step:
    name: str
    module: ModuleType
    config: Any


def run(config: Config) -> None:
    steps = resolve(config.run_dir, config.stages)
    with runtime.start("pipeline", config) as rt:
        if rt.done:
            return
        for step in steps:
            step.module.run(step.config)
            rt.check_stop()
        rt.finish(f"{len(steps)} stages in {config.run_dir}")


def resolve(run_dir: str, stages: dict[str, dict[str, Any] | None]) -> list[Step]:
    """The checked config of every stage, before anything runs."""
    return [_resolve_one(run_dir, name, dict(values or {})) for name, values in stages.items()]


def _resolve_one(run_dir: str, name: str, values: dict[str, Any]) -> Step:
    verb = values.pop("verb", name)
    if verb not in VERBS:
        raise UserError(
            f"stages.{name}: there is no verb {verb!r} in a pipeline; give `verb:` one of {', '.join(VERBS)}"
        )
    module = importlib.import_module(f"eeg_gan.stages.{verb}")
    values = {"run_dir": f"{run_dir}/{name}", **_substituted(values, run_dir)}
    if "loader" in {f.name for f in fields(module.Config)}:
        given = values.get("loader") or {}
        values["loader"] = {"index": f"{run_dir}/prepare/index.json", **given} if isinstance(given, dict) else given
    return Step(name, module, from_dict(module.Config, values, f"stages.{name}"))


def _substituted(value: Any, run_dir: str) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(inner, run_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substituted(inner, run_dir) for inner in value]
    return value.replace("{run_dir}", run_dir) if isinstance(value, str) else value
