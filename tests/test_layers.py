"""The house: imports point down, the server knows no tensor, the package names are ours alone."""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "deploy": {"server", "engine"},
    "server": {"engine", "model", "quant", "training"},
    "engine": {"model", "quant"},
    "training": {"model", "quant"},
    "model": {"quant"},
    "quant": set(),
}
# The rooms of `server`: its folders, and the files at its root. Each imports only rooms below it.
ROOMS = {
    "cli": {"commands", "console"},
    "commands": {"serving", "app", "protocols", "exchange", "access", "wire", "settings", "keyfile", "console"},
    "serving": {"app", "exchange", "telemetry", "access", "wire", "settings", "console"},
    "app": {"pages", "protocols", "exchange", "telemetry", "access", "wire", "settings"},
    "pages": {"exchange", "wire"},
    "protocols": {"exchange", "wire", "settings"},
    "exchange": {"telemetry", "access", "wire", "settings", "fim_templates"},
    "telemetry": {"wire"},
    "access": {"wire", "settings", "keyfile"},
    "settings": {"keyfile", "fim_templates"},
    "fim_templates": set(),
    "keyfile": {"wire"},
    "wire": set(),
    "console": set(),
}
# The rooms of `engine` likewise.
ENGINE_ROOMS: dict[str, set[str]] = {
    "processes": {"client", "config", "engine", "events", "loading", "rank_info", "ranks", "readings", "requests"},
    "engine": {
        "adapter_host", "config", "deadlines", "events", "jobs", "loading", "model_card", "ranks", "readings", "regex",
        "requests", "runner", "schedule", "step_clock",
    },
    "adapter_host": {
        "adapters", "config", "events", "jobs", "loading", "ranks", "registry", "requests", "schedule",
    },
    "step_clock": {"events", "jobs", "schedule"},
    "model_card": {"events", "loading"},
    "planning": {"config", "loading", "runner"},
    "bench": {"runner", "schedule"},
    "loading": {"config", "free_memory", "runner"},
    "ranks": {"adapters", "rank_info", "runner", "schedule"},
    "runner": {"adapters", "schedule"},
    "jobs": {"answers", "events", "logit_rule", "logit_rules", "readings", "regex", "requests", "schedule"},
    "logit_rules": {"logit_rule", "schedule"},
    "logit_rule": {"schedule"},
    "schedule": set(),
    "regex": {"requests"},
    "registry": {"events", "requests"},
    "client": {"events", "readings", "requests"},
    "events": {"answers"},
    "config": {"options"},
    "readings": {"answers"},
    "adapters": set(),
    "answers": set(),
    "options": set(),
    "deadlines": set(),
    "free_memory": set(),
    "rank_info": set(),
    "requests": set(),
}  # fmt: skip
FILES = [path for package in BELOW for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            assert node.module
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert set(imported(path)) & BELOW.keys() <= BELOW[package] | {package}


def rooms_imported(path: Path) -> set[str]:
    """The rooms of its package that a file imports from."""
    package = path.relative_to(ROOT).parts[0]
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = [node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module]
    assert package not in modules, f"{path} imports a room from its package by name"
    return {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}


@pytest.mark.parametrize("path", sorted((ROOT / "server").rglob("*.py")), ids=lambda path: path.name)
def test_rooms_of_the_server_import_only_rooms_below(path: Path) -> None:
    room = path.relative_to(ROOT / "server").parts[0].removesuffix(".py")
    if room != "__init__":
        assert rooms_imported(path) <= ROOMS[room] | {room}


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda path: path.name)
def test_rooms_of_the_engine_import_only_rooms_below(path: Path) -> None:
    room = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
    if room != "__init__":
        assert rooms_imported(path) <= ENGINE_ROOMS[room] | {room}


@pytest.mark.parametrize("rooms", [ROOMS, ENGINE_ROOMS], ids=["server", "engine"])
def test_rooms_have_no_circle(rooms: dict[str, set[str]]) -> None:
    TopologicalSorter(rooms).prepare()


@pytest.mark.parametrize("path", sorted((ROOT / "server").rglob("*.py")), ids=lambda path: path.name)
def test_the_server_s_files_do_not_import_torch(path: Path) -> None:
    assert "torch" not in set(imported(path))


@pytest.mark.skipif(not (ROOT / "server/app.py").exists(), reason="the server is not written yet")
def test_importing_the_server_does_not_load_torch() -> None:
    code = "import sys, server.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("package", BELOW)
def test_no_other_distribution_owns_our_package_names(package: str) -> None:
    assert set(importlib.metadata.packages_distributions().get(package, [])) <= {"glm-infill"}
