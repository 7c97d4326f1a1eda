"""A module imports only downward.

{__main__ slurm} -> cli -> stages -> {data augment models losses metrics training} -> ops.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eeg_gan"
BOTTOM = {"config", "distributed", "torchvision_compat"}
MIDDLE = {"data", "augment", "models", "losses", "metrics", "training"}
HELPERS = {
    "evaluate_features",
    "evaluate_images",
    "report_decoding",
    "scalp",
    "transferring",
    "loading",
    "figures",
    "demo_models",
    "audit_figures",
    "audit_page",
    "gan_config",
    "gan_evaluation",
    "adapting",
    "aligning",
    "evaluate_retrieval",
    "report_retrieval",
    "reproducing",
    "tower_cache",
    "beside",
    "gan_presets",
    "generate_draw",
    "generate_prior",
    "generate_sheets",
    "generate_sources",
    "project_distance",
    "readout",
    "gan_steps",
    "judging",
    "report_charts",
    "report_pictures",
    "report_runs",
    "report_tables",
}  # of stages; they are no verbs
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(name: str) -> str:
    """`eeg_gan.data.card` -> data; the package itself is ''."""
    return (name.split(".") + [""])[1]


def imports(path: Path) -> set[str]:
    """Every eeg_gan module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "eeg_gan"}


def allowed(own: str, other: str) -> bool:
    if other in ("", own) or other in BOTTOM:
        return True
    if own in BOTTOM:
        return False
    if own == "ops":
        return False
    if own in MIDDLE:
        return other == "ops"
    if own == "stages":
        return other in MIDDLE | {"ops"}
    return own in ("__main__", "slurm") and other == "cli"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    wrong = [
        other for other in imports(path) if not allowed(layer(name), layer(other)) and layer(other) != "__version__"
    ]
    assert not wrong, f"{name} may not import {wrong}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_a_stage_never_imports_a_stage(path):
    if path.stem in ("demo", "reproduce"):
        return  # they call the pipeline's stages
    names = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - HELPERS - {"__init__"}
    wrong = {name.split(".")[2] for name in imports(path) if name.startswith("eeg_gan.stages.")} & names
    assert not wrong, f"{path.stem} imports the stages {wrong}"


def test_help_does_not_import_torch():
    code = "import sys; from eeg_gan import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_files_and_functions_stay_small():
    lengths, long = [], []
    for path in MODULES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 500, f"{path} has {len(lines)} lines"
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                if lengths[-1] > 120:
                    long.append((path.name, node.name))
    assert not long
    assert sum(length < 45 for length in lengths) / len(lengths) >= 0.9
