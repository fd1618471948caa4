"""How much memory this process may still take, by what the system says. Does not import torch."""

import resource
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def free_bytes(proc: Path = Path("/proc"), groups: Path = _GROUPS) -> int | None:
    """The least of what is free on the machine, in the control groups of this process, and below its own limit of
    address space; None where the system says nothing of these."""
    found = [_free_on_machine(proc), _free_in_groups(proc, groups), _free_addresses(proc)]
    return min((number for number in found if number is not None), default=None)


def _free_on_machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_in_groups(proc: Path, groups: Path) -> int | None:
    """Of the group and all above it (version 2), pages of files that can be dropped counted as free."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((groups / line[3:].lstrip("/") for line in lines if line.startswith("0::")), None)
    if own is None:
        return None
    found = []
    for group in [own, *own.parents]:
        if group != groups and groups not in group.parents:
            break
        try:
            limit, used = (group / "memory.max").read_text(), int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # the root has no limit, and a container may not see the groups above its own
        if limit.strip() != "max":
            found.append(max(int(limit) - used + int(stat.get("inactive_file", 0)), 0))
    return min(found, default=None)


def _free_addresses(proc: Path) -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int((proc / "self/statm").read_text().split()[0])
    except OSError:
        return None
    return max(limit - pages * resource.getpagesize(), 0)
