"""What a job will run, copied when it is submitted: later edits of the code do not reach jobs that wait in a queue."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import eeg_gan
from eeg_gan.slurm.script import RUN

PACKAGE = Path(eeg_gan.__file__).parent
RUNNER = '''"""Runs the copy of eeg_gan that lies beside this file: its folder is the first place where Python looks."""

if __name__ == "__main__":
    import signal

    # Until the run has handlers of its own a signal waits; by default it would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM})
    from eeg_gan.slurm.job import main

    main()
'''


def take(home: Path) -> Path:
    """Copies the package into home/code-DIGEST, unless that copy is there; returns its folder."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256(RUNNER.encode())
    for path in files:
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode())
        digest.update(path.read_bytes())
    final = home / f"code-{digest.hexdigest()[:12]}"
    if final.is_dir():
        return final
    partial = home / f"{final.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(PACKAGE, partial / "eeg_gan", ignore=shutil.ignore_patterns("__pycache__"))
    (partial / RUN).write_text(RUNNER)
    commit, diff = git()
    if commit:
        (partial / "commit.txt").write_text(f"{commit}\n")
        (partial / "uncommitted.diff").write_text(diff)
    os.replace(partial, final)
    return final


def git() -> tuple[str, str]:
    """The commit of the working tree that the package lies in, and what differs from it; empty where there is none."""
    if not (PACKAGE.parent / ".git").exists():
        return "", ""
    try:
        run = [
            subprocess.run(["git", "-C", str(PACKAGE.parent), *words], capture_output=True, text=True, timeout=60)
            for words in (["rev-parse", "HEAD"], ["diff", "HEAD", "--", "."])
        ]
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    return (run[0].stdout.strip(), run[1].stdout) if run[0].returncode == 0 else ("", "")


def environment() -> dict[str, Any]:
    """Interpreter, machine and the versions of all packages; no variables, which may hold secrets."""
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions() if dist.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "submitted_from": platform.node(),
        "packages": dict(sorted(found.items(), key=lambda item: item[0].lower())),
    }
