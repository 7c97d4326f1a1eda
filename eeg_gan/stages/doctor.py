"""What is installed, built and reachable on this machine, and the cure for what is not."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eeg_gan import __version__, torchvision_compat
from eeg_gan.ops import library

EXTRAS = {"deepspeed": "deepspeed", "mne": "mne", "zoo": "braindecode", "export": "onnxscript"}


@dataclass(frozen=True)
class Config:
    run_dir: str = "runs"  # the folder that is tried for writing


@dataclass(frozen=True)
class Finding:
    what: str
    state: str  # ok | missing | note
    fact: str
    cure: str = ""


def run(config: Config) -> None:
    table = Table(
        "", "what", "fact", "cure", title=f"eeg-gan {__version__} on {platform.platform()}", title_justify="left"
    )
    signs = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "note": "[yellow]note[/]"}
    for finding in examine(config):
        table.add_row(signs[finding.state], escape(finding.what), escape(finding.fact), escape(finding.cure))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def examine(config: Config) -> Iterator[Finding]:
    """Every check in turn; a check that fails by itself is a finding too."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _torch,
        _gpu,
        _torchvision,
        _operators_cpu,
        _operators_cuda,
        _compiler,
        _nvcc,
        _open_clip,
        _accelerate,
        _slurm,
    )
    for check in checks:
        try:
            yield check()
        except Exception as error:  # a broken install must not hide the other findings
            yield Finding(
                check.__name__.strip("_"), "missing", f"{type(error).__name__}: {error}", "reinstall: make install"
            )
    for extra, package in EXTRAS.items():
        found = importlib.util.find_spec(package) is not None
        yield Finding(
            package,
            "ok" if found else "note",
            _version(package) if found else "not installed",
            "" if found else f"only if needed: pip install --no-build-isolation -e '.[{extra}]'",
        )
    yield _writable(config.run_dir)


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding(
        "python", "ok" if good else "missing", platform.python_version(), "" if good else "use Python 3.11 or later"
    )


def _torch() -> Finding:
    import torch

    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("GPU", "ok", names)
    if shutil.which("nvidia-smi"):
        return Finding(
            "GPU",
            "missing",
            "a driver is there, but this torch cannot use it",
            "delete .venv and run make install again: it takes a CUDA build of torch where it sees a GPU",
        )
    return Finding("GPU", "note", "none: everything runs on the CPU")


def _torchvision() -> Finding:
    module = torchvision_compat.load("torchvision")
    cured = bool(torchvision_compat._declared)
    return Finding(
        "torchvision", "ok", module.__version__ + (" (CUDA build beside a CPU torch: cured)" if cured else "")
    )


def _operators_cpu() -> Finding:
    what = "operators, CPU"
    if not library.available():
        return Finding(what, "note", f"plain PyTorch serves: {library.why_not()}", library.cure())
    if library.stale():
        return Finding(what, "missing", "compiled from other sources than those in csrc", library.install())
    return Finding(
        what, "ok", f"compiled by {library.facts().get('cxx', '?')} {library.facts().get('cxx_version', '')}"
    )


def _operators_cuda() -> Finding:
    """Without a GPU it is enough that kernels were built; that they cannot run is no fault."""
    import torch

    what, built, reason = "operators, CUDA", library.facts().get("cuda"), library.why_not("cuda")
    names = " ".join(library.facts().get("architectures", []))
    if library.available() and built and not torch.cuda.is_available():
        return Finding(what, "note", f"compiled by nvcc {built} for {names}, and no GPU here to run them")
    if reason:
        state = "missing" if torch.cuda.is_available() else "note"
        return Finding(what, state, f"plain PyTorch serves: {reason}", library.cure("cuda"))
    return Finding(what, "ok", f"compiled by nvcc {built} for {names}")


def _compiler() -> Finding:
    path = shutil.which("g++") or shutil.which("c++")
    return Finding("g++", "ok" if path else "note", path or "none", "" if path else "sudo apt install g++")


def _nvcc() -> Finding:
    path = shutil.which("nvcc")
    return Finding("nvcc", "ok" if path else "note", path or "none: no CUDA kernels will be built")


def _open_clip() -> Finding:
    return Finding("open_clip", "ok", torchvision_compat.load("open_clip").__version__)


def _accelerate() -> Finding:
    return Finding("accelerate", "ok", _version("accelerate"))


def _slurm() -> Finding:
    path = shutil.which("sbatch")
    return Finding(
        "SLURM", "ok" if path else "note", path or "no sbatch here: jobs cannot be submitted from this machine"
    )


def _writable(folder: str) -> Finding:
    place = folder
    while not os.path.isdir(place):
        place = os.path.dirname(place) or "."
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free / 1e9
        return Finding("disk", "ok" if free > 5 else "note", f"{folder} can be written, {free:.0f} GB free")
    except OSError as error:
        return Finding("disk", "missing", f"{place} cannot be written: {error.strerror}", "choose another run_dir")


def _version(package: str) -> str:
    return metadata.version(package)
