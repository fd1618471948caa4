"""What may still be taken: the least that the machine, the control groups and the limit of addresses leave."""

import resource
from pathlib import Path

import pytest

from engine.free_memory import free_bytes

GIB = 1 << 30


class System:
    """The files of a system, as it shows them to a process in the group /a/b."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "groups"
        (self.proc / "self").mkdir(parents=True)
        (self.groups / "a/b").mkdir(parents=True)

    def machine(self, available: int) -> None:
        (self.proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\n")

    def group(self, name: str, limit: str, used: int, inactive: int = 0) -> None:
        (self.proc / "self/cgroup").write_text("0::/a/b\n")
        folder = self.groups / name
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\ninactive_file {inactive}\n")

    def free(self) -> int | None:
        return free_bytes(self.proc, self.groups)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_nobody_knows_where_the_system_says_nothing(system: System) -> None:
    assert system.free() is None


def test_the_machine_alone(system: System) -> None:
    system.machine(3 * GIB)
    assert system.free() == 3 * GIB


def test_the_tightest_group_counts_and_files_of_it_can_be_dropped(system: System) -> None:
    system.machine(9 * GIB)
    system.group("a/b", "max", 2 * GIB)
    assert system.free() == 9 * GIB
    system.group("a", str(4 * GIB), 3 * GIB, inactive=GIB // 2)
    assert system.free() == GIB + GIB // 2
    system.group("a/b", str(2 * GIB), 2 * GIB)
    assert system.free() == 0


def test_a_group_of_version_1_counts_also_where_only_its_root_is_seen(system: System) -> None:
    system.machine(9 * GIB)
    (system.proc / "self/cgroup").write_text("8:pids:/\n4:cpu,memory:/somewhere/else\n0::/\n")
    root = system.groups / "memory"
    root.mkdir()
    (root / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (root / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (root / "memory.stat").write_text(f"cache 3\ntotal_inactive_file {GIB // 4}\n")
    assert system.free() == GIB + GIB // 4


def test_a_limit_of_addresses_counts() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + GIB // 4, limits[1]))
        free = free_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert free is not None
    assert abs(free - GIB // 4) < GIB // 16
