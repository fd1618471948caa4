"""The memory that the system still grants this process. Does not import torch."""

import resource
from pathlib import Path
from typing import NamedTuple

_GROUPS = Path("/sys/fs/cgroup")


def free_bytes(proc: Path = Path("/proc"), groups: Path = _GROUPS) -> int | None:
    """Free bytes: the least of the machine's, the process's control groups' and its own limit of address space.

    None if the system states none of them.
    """
    found = [_free_on_machine(proc), _free_in_groups(proc, groups), _free_addresses(proc)]
    return min((number for number in found if number is not None), default=None)


def _free_on_machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_in_groups(proc: Path, groups: Path) -> int | None:
    """Of the group and all above it, pages of files that can be dropped counted as free."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            root, names = groups, _Names("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            names = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.lstrip("/")
        # A container may not see the named groups; then the root is its own group.
        found += [_free_in(group, names) for group in (own, *own.parents) if group.is_relative_to(root)]
    return min((number for number in found if number is not None), default=None)


class _Names(NamedTuple):
    """The names of version 2 or 1 of control groups."""

    limit: str
    used: str
    inactive: str


def _free_in(group: Path, names: _Names) -> int | None:
    try:
        limit, used = (group / names.limit).read_text().strip(), int((group / names.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None  # no such group, or one without a limit
    return None if limit == "max" else max(int(limit) - used + int(stat.get(names.inactive, 0)), 0)


def _free_addresses(proc: Path) -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int((proc / "self/statm").read_text().split()[0])
    except OSError:
        return None
    return max(limit - pages * resource.getpagesize(), 0)
