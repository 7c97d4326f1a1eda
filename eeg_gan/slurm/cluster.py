"""The facts of one cluster, from configs/cluster/NAME.yaml: queues, nodes, limits, containers, signals."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eeg_gan.config import UserError, from_dict, load, to_dict

ROOT = Path(__file__).parents[2]
# Verbs that work in one process whatever the cluster offers, and those of them that never touch a GPU.
SINGLE = ("prepare", "audit", "report", "project", "export")
NO_GPU = ("prepare", "audit", "report")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Container:
    kind: Literal["apptainer", "pyxis"] | None = None  # apptainer (or singularity), or enroot through SLURM's pyxis
    image: str | None = None  # .sif or .sqsh file, or an address that the program understands
    python: str = "python3"  # the interpreter inside, which has what eeg-gan needs
    mounts: tuple[str, ...] = ()  # more folders that jobs read or write, at the same path inside
    args: tuple[str, ...] = ()  # further words for the program

    def __post_init__(self):
        if self.kind is not None and self.image is None:
            raise ValueError(f"container.kind={self.kind} needs container.image; launch/container.def is a recipe")
        for mount in self.mounts:
            if re.search(r"[:,]", mount) or CONTROL.search(mount):
                raise ValueError(f"container.mounts: {mount!r}: a colon or comma in a folder's name cannot be mounted")


@dataclass(frozen=True)
class Cluster:
    partition: str | None = None  # queue; null: the cluster's default
    account: str | None = None  # who pays
    qos: str | None = None  # quality of service
    nodes: int = 1  # machines of a job
    gpus_per_node: int = 0  # GPUs on each; 0: the CPU computes
    gpu_type: str | None = None  # where a node has several kinds, for example a100
    tasks_per_node: int | None = None  # processes on each; null: one per GPU, one where there is none
    cpus_per_task: int = 4  # cores of a process, its loader's workers included
    mem_gb: float | None = None  # memory of a node; null: the cluster's default
    time_min: int = 60  # limit in minutes; a run that is not done by then is requeued and goes on
    signal_lead_s: int = 120  # seconds before the limit at which a run is told to save
    max_timeouts: int = 1000  # how often a run may reach its limit
    parallelism: int = 16  # tasks of an array that run at once
    python: str | None = None  # the interpreter on the nodes; null: the one that submits
    setup: tuple[str, ...] = ()  # shell lines before the run, for example `module load cuda`
    env: dict[str, str] = field(default_factory=dict)  # variables of the run
    scratch: str | None = None  # node-local folder for temporary files, may hold $VARIABLES; cleaned by the job
    container: Container = field(default_factory=Container)
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)  # further options of sbatch, without dashes
    srun: tuple[str, ...] = ()  # further words for srun
    verbs: dict[str, dict[str, Any]] = field(default_factory=dict)  # other facts for a verb or a pipeline's stage

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("nodes", "cpus_per_task", "time_min", "parallelism")}
        if self.tasks_per_node is not None:
            counts["tasks_per_node"] = self.tasks_per_node
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is 1 or more; got {value}")
        if self.gpus_per_node < 0 or self.max_timeouts < 0:
            raise ValueError("gpus_per_node and max_timeouts are 0 or more")
        if self.time_min > 60 * 24 * 31:
            raise ValueError(
                f"time_min={self.time_min} is more than a month; it counts minutes (YAML takes 24:00:00 for 86400)"
            )
        if not 1 <= self.signal_lead_s < 60 * self.time_min:
            raise ValueError(
                f"signal_lead_s={self.signal_lead_s} must lie within the limit of {60 * self.time_min} s (time_min)"
            )
        self._check_words()

    def _check_words(self) -> None:
        """A line break in a header line of a batch script would end it, and the rest would be run as a command."""
        named = {name: getattr(self, name) for name in ("partition", "account", "qos", "gpu_type", "python")}
        named |= {f"sbatch.{name}": str(value) for name, value in self.sbatch.items()}
        for name, value in named.items():
            if value is not None and (CONTROL.search(value) or not value):
                raise ValueError(f"{name}: {value!r} is empty or holds a control character; write the name alone")
        for name in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ValueError(f"sbatch.{name}: an option is written without dashes in front, such as `constraint`")
        for name in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"env.{name}: a variable's name has letters, digits and _ only")
        if any("\n" in line for line in self.setup):
            raise ValueError("setup is a list of lines; write each line as one item")

    @property
    def processes_per_node(self) -> int:
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node


class Facts:
    """A cluster file with the words of the command line, which gives the facts for any verb."""

    def __init__(self, name: str | None, words: Sequence[str] = ()):
        self.path = None if name is None else find(name)
        self.name = "the command line" if self.path is None else self.path.stem
        self.common = load(Cluster, self.path, words)
        self.given = {word.partition("=")[0].split(".")[0] for word in words}
        for verb in self.common.verbs:  # a mistake there is told at once, whatever runs today
            self.of(verb, verb)

    def of(self, verb: str, stage: str | None = None) -> Cluster:
        """What holds for all, and over it what the file's `verbs` say of this verb and of this stage of a pipeline.

        Words of the command line come last for a single verb; in a pipeline they are for all stages, and
        `verbs.gan.nodes=2` speaks of one.
        """
        own = _built_in(verb) | self.common.verbs.get(verb, {}) | self.common.verbs.get(stage or verb, {})
        if stage is None:
            own = {key: value for key, value in own.items() if key not in self.given}
        return from_dict(Cluster, {**to_dict(self.common), "verbs": {}, **own}, f"{self.name}, verbs.{stage or verb}")


def find(name: str) -> Path:
    """A cluster file by its path, or by its name among configs/cluster."""
    if name.endswith((".yaml", ".yml")) or os.path.exists(name):
        return Path(name)
    folders = (Path("configs/cluster"), ROOT / "configs" / "cluster")
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"there is no cluster {name!r}: no such file, and configs/cluster has {', '.join(known) or 'none'}; "
        "copy configs/cluster/example.yaml and write down what your cluster is like"
    )


def _built_in(verb: str) -> dict[str, Any]:
    own: dict[str, Any] = {"nodes": 1, "tasks_per_node": 1} if verb in SINGLE else {}
    return own | ({"gpus_per_node": 0, "gpu_type": None} if verb in NO_GPU else {})
