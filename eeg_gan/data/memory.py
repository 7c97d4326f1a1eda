"""How much memory there is, for formats that can only be read whole."""

from collections.abc import Iterator
from pathlib import Path

from eeg_gan.config import UserError

PROC = Path("/proc")
FILES = {  # of a control group: its limit, what it uses, and the cache of files in memory.stat, which gives way
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
UNLIMITED = 2**60  # version 1 says "no limit" by a number near 2^63


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
    """Bytes that can still be taken: what the system offers, or less where a control group limits it; None: unknown."""
    left = (_left(folder, version) for version, folder in _groups())
    return min((limit for limit in (_system(), *left) if limit is not None), default=None)


def _system() -> int | None:
    lines = _lines(PROC / "meminfo")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left(folder: Path, version: int) -> int | None:
    """What one control group leaves; None where it sets no limit."""
    limit, used, cache = FILES[version]
    try:
        most, now = ((folder / name).read_text().strip() for name in (limit, used))
        stat = dict(line.split() for line in _lines(folder / "memory.stat"))
        if most == "max" or int(most) >= UNLIMITED:
            return None
        return max(0, int(most) - int(now) + int(stat.get(cache, 0)))
    except (OSError, ValueError):
        return None


def _groups() -> Iterator[tuple[int, Path]]:
    """Version and folder of the control groups of this process: its own and all above, each of which may limit it."""
    own = {}
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            own[1 if controllers else 2] = Path(path)
    for version, root, mount in _mounts():
        if version not in own:
            continue
        path = own[version]  # seen from the group that is mounted; in a container it may lie outside of it
        below = path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else Path()
        for part in (below, *below.parents):
            yield version, mount / part


def _mounts() -> Iterator[tuple[int, Path, Path]]:
    """Version, root and place of the mounted hierarchies of control groups that may hold memory."""
    for line in _lines(PROC / "self" / "mountinfo"):
        about, _, kind = line.partition(" - ")
        _, _, _, root, mount, *_ = about.split(" ")
        name, _, options = kind.split(" ", 2)
        if name == "cgroup2" or (name == "cgroup" and "memory" in options.split(",")):
            yield 2 if name == "cgroup2" else 1, Path(_plain(root)), Path(_plain(mount))


def _plain(name: str) -> str:
    """A name of mountinfo, in which blanks are written as octal numbers."""
    return name.replace("\\040", " ").replace("\\134", "\\")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
