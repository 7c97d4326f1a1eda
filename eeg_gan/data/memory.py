"""How much memory there is, for formats that can only be read whole."""

from pathlib import Path

from eeg_gan.config import UserError

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def require(n_bytes: int, path: str | Path, cure: str = "use a machine with more memory") -> None:
    """Raises UserError where reading `path` takes more bytes than this process can still get."""
    check(n_bytes, f"{path} can only be read whole, which", cure)


def check(n_bytes: int, what: str, cure: str) -> None:
    """Raises UserError, with both numbers, where `what` takes more bytes than can still be had."""
    free = available()
    if free is not None and n_bytes > free:
        raise UserError(
            f"{what} takes {n_bytes / 2**30:.1f} GiB of memory at its peak, "
            f"but {free / 2**30:.1f} GiB are available; {cure}"
        )


def available() -> int | None:
    """Bytes that can still be taken: what the system offers, or less where a container limits it; None: unknown."""
    limits = [limit for limit in (_system(), _container()) if limit is not None]
    return min(limits, default=None)


def _system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container() -> int | None:
    """What the control groups (version 2) of this process leave, its own and those around it."""
    left = [free for free in map(_left, _groups()) if free is not None]
    return min(left, default=None)


def _groups() -> list[Path]:
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    own = CGROUP / next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUP)]


def _left(group: Path) -> int | None:
    """What one control group leaves; its cache of files gives way."""
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
