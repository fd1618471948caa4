"""Starts that fail, and engines that are lost while they serve: told in the log, in metrics and by the probes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Server

COMMAND = Path(sys.executable).with_name("glm-infill")
GROUPS = Path("/sys/fs/cgroup")
SPARSE_KB = 1_000_000  # of address space: torch can be imported, and not much more


def started(*arguments: object, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of ours behind others of a shell, in its process."""
    command = f"{before}exec {shlex.join(map(str, (COMMAND, *arguments)))}"
    settings = {**os.environ, "GLM_INFILL_LOG_LEVEL": "error", **environment}
    return subprocess.run(["sh", "-c", command], env=settings, capture_output=True, text=True, timeout=100)


COMMANDS = {
    "serve": ("serve", "--port", 0),
    "fill": ("fill", "the [MASK]"),
    "score": ("score", "the [MASK]", "--span", "cat"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_start_without_memory_ends_with_one_line_that_helps(command: str) -> None:
    done = started(*COMMANDS[command], before=f"ulimit -v {SPARSE_KB}; ", OMP_NUM_THREADS="1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    found = re.search(
        r"out of memory: 0\.5 GB of KV cache do not fit; 0\.\d GB are free; --kv-cache-gb (\S+) fits", line
    )
    assert found, line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "cuda"), "no CUDA device that torch can use; --device cpu serves without one"),
        (("--kv-cache-gb", "900000"), "900000.0 GB of KV cache do not fit"),
    ],
)
def test_a_start_that_asks_for_what_is_not_there(options: tuple[str, ...], said: str) -> None:
    done = started("serve", "--port", 0, *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in json.loads(line)["detail"]


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 700 MB, where this process may make one."""
    versions = {"memory/memory.limit_in_bytes": "memory", "cgroup.subtree_control": ""}
    root = next((GROUPS / folder for file, folder in versions.items() if (GROUPS / file).exists()), None)
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no control groups that this process may make")
    group = root / f"glm-infill-test-{os.getpid()}"
    group.mkdir()
    limit = group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
    if not limit.exists():
        group.rmdir()
        pytest.skip("control groups without memory")
    limit.write_text(str(700_000_000))
    yield group
    group.rmdir()


def test_a_control_group_without_memory_ends_the_start_in_one_line(group: Path) -> None:
    done = started("serve", "--port", 0, "--kv-cache-gb", 2, before=f"echo $$ > {group}/cgroup.procs; ")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    said = json.loads(line)["detail"]
    assert re.search(r"2\.0 GB of KV cache do not fit; 0\.\d GB are free", said), said


def test_a_library_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.py").write_text("raise ImportError('no such symbol', name='sentencepiece')\n")
    done = started("fill", "the [MASK]", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["glm-infill: ImportError in sentencepiece.py, line 1: no such symbol"]


@pytest.mark.parametrize(
    ("way", "reason", "detail"),
    [(signal.SIGKILL, "signal", "was killed by SIGKILL"), (signal.SIGSTOP, "silence", "was silent for 8 s")],
)
def test_a_lost_engine_is_told_and_comes_back(
    launch: Callable[..., Server], way: signal.Signals, reason: str, detail: str
) -> None:
    server = launch()
    (engine,) = server.children()
    os.kill(engine, way)
    server.until(lambda: server.metric("engine_restarts_total", reason=reason) == 1)
    assert server.status("/live") == 200
    server.until(lambda: server.status("/ready") == 200)
    assert server.fill().status_code == 200
    (told,) = [json.loads(line) for line in server.log.read_text().splitlines() if '"engine lost"' in line]
    assert told["reason"] == reason
    assert told["detail"] == f"the engine process {detail}"
    assert told["in_a_row"] == 1
