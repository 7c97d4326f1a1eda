"""What a command will run: one job or array of tasks for a verb, a chain of them for a pipeline; all checked."""

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eeg_gan import cli
from eeg_gan.config import UserError, load, to_dict
from eeg_gan.slurm import grid
from eeg_gan.slurm.cluster import Cluster, Facts

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Task:
    """One run of a verb with its own folder."""

    label: str  # of the grid point; empty where it is alone
    words: tuple[str, ...]
    run_dir: str
    config: dict[str, Any]  # resolved


@dataclass(frozen=True)
class Stage:
    """One job, or one array of jobs that differ by grid point."""

    name: str
    verb: str
    facts: Cluster
    tasks: tuple[Task, ...]

    @property
    def file(self) -> str:
        """Its name as part of a file's name."""
        return grid.label([self.name])


@dataclass(frozen=True)
class Plan:
    run_dir: str  # of the command; tasks of a grid lie below it
    stages: tuple[Stage, ...]  # each waits for the one before it
    folder: str  # where the command was given; relative paths mean this

    @property
    def home(self) -> Path:
        """Where everything about the jobs of this run directory is kept."""
        return Path(self.folder, self.run_dir, "slurm")


def make(
    verb: str,
    path: str | None,
    words: Sequence[str],
    facts: Facts,
    lists: str | None = None,
    one_job: bool = False,
) -> Plan:
    if verb not in cli.VERBS:
        raise UserError(f"there is no verb {verb!r}; the verbs are {', '.join(cli.VERBS)}")
    module = cli.stage(verb)
    names = {field.name for field in dataclasses.fields(module.Config)}
    if "run_dir" not in names or verb == "doctor":
        raise UserError(f"{verb} takes a second and has no run to submit: give it by hand, eeg-gan {verb}")
    if path is None and verb not in cli.WITHOUT_FILE:
        raise UserError(f"{verb} needs a config file: -- {verb} CONFIG.yaml [key=value ...]")
    common, points = grid.points(words, lists)
    configs = [load(module.Config, path, [*common, *point.words]) for point in points]
    base = configs[0].run_dir
    placed = [_in(config, base, point.label) for config, point in zip(configs, points, strict=True)]
    if verb == "pipeline" and not one_job:
        stages = _chain(module, placed, points, facts)
    else:
        tasks = tuple(
            Task(point.label, point.words, config.run_dir, to_dict(config))
            for config, point in zip(placed, points, strict=True)
        )
        stages = (Stage(verb, verb, facts.of(verb), tasks),)
        _check_groups(module, placed, stages[0])
    for stage in stages:
        check(stage)
    return Plan(base, stages, os.getcwd())


def _in(config: Any, base: str, label: str) -> Any:
    return dataclasses.replace(config, run_dir=f"{base}/{label}") if label else config


def _chain(module: Any, configs: list[Any], points: list[grid.Point], facts: Facts) -> tuple[Stage, ...]:
    """Stage by stage, each with the tasks of every grid point, so that task i waits for task i alone."""
    chains = [module.resolve(config.run_dir, config.stages) for config in configs]
    names = [step.name for step in chains[0]]
    if any([step.name for step in chain] != names for chain in chains):
        raise UserError("the tasks have different stages; submit each pipeline by itself")
    if unknown := facts.common.verbs.keys() - cli.VERBS.keys() - set(names):
        log.warning(
            "verbs.%s of %s is no verb and no stage of this pipeline", ", verbs.".join(sorted(unknown)), facts.name
        )
    stages = []
    for steps in zip(*chains, strict=True):
        verb = steps[0].module.__name__.rpartition(".")[2]
        tasks = tuple(
            Task(point.label, point.words, step.config.run_dir, to_dict(step.config))
            for step, point in zip(steps, points, strict=True)
        )
        stages.append(Stage(steps[0].name, verb, facts.of(verb, steps[0].name), tasks))
        _check_groups(steps[0].module, [step.config for step in steps], stages[-1])
    return tuple(stages)


def check(stage: Stage) -> None:
    """Refuses what would fail only after hours in the queue."""
    processes = stage.facts.processes
    for task in stage.tasks:
        batch = global_batch(task.config)
        if batch is not None and batch % processes:
            fit = sorted({max(batch // processes, 1) * processes, math.ceil(batch / processes) * processes})
            raise UserError(
                f"{stage.name}: a global batch of {batch} does not divide by {stage.facts.nodes} nodes x "
                f"{stage.facts.processes_per_node} processes = {processes}; set batch to "
                f"{' or '.join(map(str, fit))}, or change nodes"
            )


def _check_groups(module: Any, configs: list[Any], stage: Stage) -> None:
    if hasattr(module, "check_groups"):
        for config in configs:
            module.check_groups(config, stage.facts.processes)


def global_batch(config: dict[str, Any]) -> int | None:
    """Of a training stage; of encode at most, as data with fewer classes give smaller batches."""
    if "classes_per_batch" in config:
        return config["classes_per_batch"] * config["trials_per_class"]
    return config["batch"] if "total_images" in config and "batch" in config else None


def arithmetic(stage: Stage) -> list[str]:
    """Nodes, GPUs, processes, batches and hours, in lines to read before one pays for them."""
    facts, count = stage.facts, len(stage.tasks)
    at_once = min(count, facts.parallelism)
    per, unit = (facts.gpus_per_node, "GPU") if facts.gpus_per_node else (facts.processes_per_node, "process")
    each = facts.nodes * per
    units = f"{unit}s" if unit == "GPU" else "processes"
    lines = [f"{facts.nodes} node{'s' * (facts.nodes > 1)} x {per} {units if per > 1 else unit} = {each} per task"]
    if count > 1:
        lines.append(f"{count} tasks, {at_once} at once: {at_once} x {each} = {at_once * each} {units} at most")
    shared = "" if not facts.gpus_per_node or facts.gpus_per_node == facts.processes_per_node else " share the GPUs"
    cores = facts.processes_per_node * facts.cpus_per_task
    lines.append(
        f"{facts.nodes} x {facts.processes_per_node} = {facts.processes} process"
        f"{'es' * (facts.processes > 1)}{shared}, "
        f"{facts.cpus_per_task} cores each: {cores} cores of a node"
        + (f", {facts.mem_gb:g} GB of its memory" if facts.mem_gb is not None else "")
    )
    batches = sorted({batch for task in stage.tasks if (batch := global_batch(task.config)) is not None})
    for batch in batches:
        lines.append(f"global batch {batch} = {facts.processes} processes x {batch // facts.processes}")
    hours = facts.time_min / 60
    lines.append(
        f"limit {hours:g} h, told to save {facts.signal_lead_s} s before it, then requeued, {facts.max_timeouts} "
        f"times at most; one start of all tasks is {count * each * hours:g} {unit}-hours"
    )
    given = {task.config["gpus"] for task in stage.tasks if task.config.get("preset") == "auto"} - {facts.processes}
    if given:
        lines.append(f"note: preset=auto computes for gpus={min(given)}; set gpus={facts.processes}")
    return lines
