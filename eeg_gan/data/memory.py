"""How much memory there is, for formats that can only be read whole."""

from pathlib import Path

from eeg_gan.config import UserError

LIMITS = (  # (limit, in use) of the group of processes, where one is set: by a batch system or a container
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    found = []
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for limit, used in LIMITS:
        if _text(limit).strip().isdigit() and _text(used).strip().isdigit():
            found.append(max(0, int(_text(limit)) - int(_text(used))))
    return min(found, default=None)


def check_memory(needed: int, what: str, cure: str) -> None:
    """Refuses what needs more memory than there is, with both numbers."""
    there = available_bytes()
    if there is not None and needed > there:
        raise UserError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory, but {there / 2**30:.1f} GiB are free; {cure}"
        )


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
