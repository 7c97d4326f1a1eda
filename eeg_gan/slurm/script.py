"""The batch script of one job or array. Nothing that a user named is ever read by a shell except as one quoted word.

The script is submitted from the job folder, and SLURM is told only relative names, so that no folder's name gets into a
header line, where a line break would end it.
"""

import re
import shlex
import sys
from pathlib import Path

from eeg_gan.config import UserError
from eeg_gan.slurm.cluster import CONTROL, Cluster
from eeg_gan.slurm.plan import Stage

RUN = "run.py"  # in the snapshot of the code
MARK = "requeue-"  # a file that asks the batch script to requeue, where the run cannot


def check_path(path: str | Path) -> None:
    """submitit puts numbers of jobs in place of some patterns wherever they stand in a path."""
    if found := re.search("%[jtaA]", str(path)):
        raise UserError(f"{path}: {found[0]!r} stands for the number of a job or task; choose another run_dir")


def text(stage: Stage, folder: Path, code: Path, mounts: tuple[str, ...] = ()) -> str:
    """`folder` holds the job's files, `code` the snapshot; both absolute and on a disk that all nodes share."""
    facts, header, own_log = stage.facts, options(stage), []
    if re.search(r"[%\\]", str(folder)):  # which SLURM would not take as they are, though srun does
        header["output"] = "/dev/null"
        own_log = [f'exec >>"$SLURM_SUBMIT_DIR/{_variables(len(stage.tasks) > 1)}_batch.log" 2>&1']
    lines = ["#!/bin/bash", *(_header(name, value) for name, value in header.items()), "", *own_log]
    lines += [f"# {_printable(f'eeg-gan {stage.name}: {len(stage.tasks)} task(s)')}", "export SUBMITIT_EXECUTOR=slurm"]
    lines += [
        "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT  # of the shell that submitted"
    ]
    lines += [f"export OMP_NUM_THREADS={facts.cpus_per_task}"] if "OMP_NUM_THREADS" not in facts.env else []
    if facts.scratch is not None:
        lines.append(f"export EEG_GAN_SCRATCH={shlex.quote(facts.scratch)}  # variables are expanded on the node")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in facts.env.items()]
    lines += ["", *facts.setup] if facts.setup else []
    lines += ["", 'cd -- "$SLURM_SUBMIT_DIR" || exit 1  # the folder of this script']
    lines += [shlex.join(command(stage, folder, code, mounts)), "code=$?"]
    if facts.container.kind is not None:  # no scontrol inside: the run leaves a mark instead
        lines += [f'if rm "{MARK}$SLURM_JOB_ID" 2>/dev/null; then scontrol requeue "$SLURM_JOB_ID"; fi']
    return "\n".join([*lines, "exit $code", ""])


def options(stage: Stage) -> dict[str, str | int | bool]:
    """The header's options in sbatch's names."""
    facts, array = stage.facts, len(stage.tasks) > 1
    found: dict[str, str | int | bool | None] = {
        "job-name": _printable(f"{stage.verb} {'/'.join(Path(stage.tasks[0].run_dir).parts[-2:])}")[:60],
        "partition": facts.partition,
        "account": facts.account,
        "qos": facts.qos,
        "nodes": facts.nodes,
        "ntasks-per-node": facts.processes_per_node,
        "cpus-per-task": facts.cpus_per_task,
        "gpus-per-node": ":".join(filter(None, [facts.gpu_type, str(facts.gpus_per_node)])),
        "mem": None if facts.mem_gb is None else f"{round(facts.mem_gb * 1024)}M",
        "time": facts.time_min,
        "signal": f"USR2@{facts.signal_lead_s}",
        "requeue": True,
        "open-mode": "append",
        "output": f"{_job(array)}_batch.log",
        "array": f"0-{len(stage.tasks) - 1}%{facts.parallelism}" if array else None,
        **facts.sbatch,
    }
    if not facts.gpus_per_node:
        del found["gpus-per-node"]
    return {name: value for name, value in found.items() if value is not None and value is not False}


def command(stage: Stage, folder: Path, code: Path, mounts: tuple[str, ...]) -> list[str]:
    """srun and what it starts in each process."""
    facts, array = stage.facts, len(stage.tasks) > 1
    words = ["srun", "--unbuffered", "--kill-on-bad-exit=1", "--open-mode=append"]
    words += [f"--output={_job(array)}_%t.log", f"--cpus-per-task={facts.cpus_per_task}"]  # not taken from the header
    inside = (*dict.fromkeys((*mounts, *facts.container.mounts)),)
    program = [str(code / RUN), str(folder)]
    if facts.container.kind == "pyxis":
        words += [f"--container-image={facts.container.image}"]
        words += [f"--container-mounts={','.join(f'{path}:{path}' for path in inside)}"]
        words += [f"--container-workdir={folder}", *facts.container.args]
        return [*words, *facts.srun, facts.container.python, "-u", *program]
    if facts.container.kind == "apptainer":
        binds = [word for path in inside for word in ("--bind", path)]
        gpu = ["--nv"] if facts.gpus_per_node else []
        words += [*facts.srun, "apptainer", "exec", *gpu, *binds, "--pwd", str(folder), *facts.container.args]
        return [*words, str(facts.container.image), facts.container.python, "-u", *program]
    return [*words, *facts.srun, facts.python or sys.executable, "-u", *program]


def check_mounts(facts: Cluster, paths: tuple[str, ...]) -> None:
    """Containers name folders as SOURCE:TARGET lists, in which a colon or a comma cannot be written."""
    for path in paths if facts.container.kind is not None else ():
        if re.search(r"[:,]", path) or CONTROL.search(path):
            raise UserError(f"{path!r} cannot be mounted into a container: no colon, comma or line break in its name")


def _job(array: bool) -> str:
    return "%A_%a" if array else "%j"


def _variables(array: bool) -> str:
    """The same in the words of the script."""
    return "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "${SLURM_JOB_ID}"


def _header(name: str, value: str | int | bool) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def _printable(text: str) -> str:
    return re.sub(r"[^\w .,=+:()/-]", "_", text, flags=re.ASCII)
