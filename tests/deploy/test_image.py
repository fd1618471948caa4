"""The image and the compose file, as far as they can be checked without an engine; deploy/test_image.sh builds it."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.cli import app
from server.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROFILES = ["cpu", "4x3090", "8x2080ti"]


def test_the_locked_versions_are_those_that_the_project_asks_for():
    locked = pinned("requirements.txt") | pinned("torch-cpu.txt")
    assert pinned("torch-cuda.txt")["torch"] == locked["torch"]
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), text


def pinned(name: str) -> dict[str, str]:
    """The versions of a lock file, by name."""
    lines = (ROOT / "deploy" / name).read_text().splitlines()
    pairs = (line.split()[0].split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name", ["requirements.txt", "torch-cuda.txt"])
def test_every_locked_file_has_its_hashes(name):
    text = (ROOT / "deploy" / name).read_text()
    blocks = re.findall(r"^\S+==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\\n|\n))+)", text, re.M)
    assert len(blocks) == len(pinned(name)) == len(re.findall("==", text))
    assert all(len(set(block.split())) >= 1 for block in blocks)
    assert not re.search("https?:", text)  # which index, its user says
    for line in re.findall(r"pip install [^;\n]*-r deploy/" + re.escape(name), DOCKERFILE):
        assert "--require-hashes" in line
        assert "--no-deps" in line
    assert f"-r deploy/{name}" in DOCKERFILE


def test_no_lock_file_has_what_another_has():
    names = [{*pinned(name)} for name in ("requirements.txt", "torch-cuda.txt")]
    assert not names[0] & names[1]


def test_the_image_runs_where_nobody_writes():
    assert re.findall(r"^WORKDIR (.+)$", DOCKERFILE, re.M)[-1] == "/opt/glm-infill"
    assert "PYTHONSAFEPATH=1" in DOCKERFILE


def test_every_package_is_in_the_image():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.M))
    assert {pattern.removesuffix("*") for pattern in packages} == copied
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_the_image_s_settings_are_the_server_s():
    for name in re.findall(r"GLM_INFILL_(\w+)=", DOCKERFILE):
        assert name.lower() in Settings.model_fields
    command = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.M)[-1])
    typer.main.get_command(app).commands[command[0]].make_context(*command[:1], command[1:])  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


def test_every_service_has_its_limits(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "logging", "restart"} <= service.keys(), name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


@pytest.mark.parametrize("profile", PROFILES)
def test_servers_get_what_they_take(services, profile):
    service = services[profile]
    assert service["profiles"] == [profile]
    for name in service["environment"]:
        assert name == "OMP_NUM_THREADS" or name.removeprefix("GLM_INFILL_").lower() in Settings.model_fields
    command, *arguments = service.get("command", ["serve"])
    context = typer.main.get_command(app).commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert context.params["tp"] == (devices[0]["count"] if devices else None)
    drain = float(
        service["environment"].get("GLM_INFILL_DRAIN_SECONDS", Settings.model_fields["drain_seconds"].default)
    )
    assert float(service["stop_grace_period"].removesuffix("s")) >= drain + 10
    # Triton loads what it has compiled there.
    assert any(mount.startswith("/tmp:exec") for mount in service["tmpfs"])


def test_what_is_mounted_is_there(services):
    mounts = [mount.split(":")[0] for service in services.values() for mount in service["volumes"]]
    files = [mount for mount in mounts if mount.startswith("./") and not mount.startswith("./secrets/")]
    assert files
    assert all((COMPOSE / file).is_file() for file in files)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs Debian's package docker-compose")
@pytest.mark.parametrize("profile", PROFILES)
def test_compose_accepts_the_file(profile):
    command = ["docker-compose", "--file", str(COMPOSE / "compose.yaml"), "--profile", profile, "config", "--quiet"]
    subprocess.run(command, check=True)
