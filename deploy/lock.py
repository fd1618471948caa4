"""Writes what the image installs, as pip resolves pyproject.toml today, with the hashes of the wheels.

    python deploy/lock.py [INDEX]

`requirements.txt` has everything but torch, `torch-cuda.txt` torch as the package index has it, with NVIDIA's libraries
and Triton. Both have the hash of each wheel for CPython 3.11 on x86-64 and ARM, and pip takes no other file. torch's
builds for CPUs alone lie on an index of their own: `torch-cpu.txt` has their hashes only if this INDEX is given, which
is what the Dockerfile calls TORCH_INDEX.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy"
PYTHON = "3.11"
MACHINES = ("x86_64", "aarch64")
GLIBC = range(36, 4, -1)  # 2.x, of Debian 12 and before: what wheels may ask for
CUDA = re.compile("torch$|triton$|nvidia-|cuda-")
HEAD = "# Written by deploy/lock.py: {}\n"


def main(index: str | None = None) -> None:
    """Writes the lock files."""
    found = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in resolved(str(ROOT))}
    # Without the local part (+cpu): which build it is, the index decides.
    versions = {name: version.partition("+")[0] for name, version in found.items() if name != "glm-infill"}
    torch = f"torch=={versions['torch']}"
    pinned = [f"{name}=={version}" for name, version in versions.items() if not CUDA.match(name)]
    write("requirements.txt", "what the image installs beside torch and glm-infill itself.", hashed(pinned))
    own = {
        item["metadata"]["name"].lower(): item["metadata"]["version"] for item in resolved(torch, *foreign("x86_64"))
    }
    cuda = [f"{name}=={version}" for name, version in own.items() if CUDA.match(name)]
    assert len(cuda) > 1, "pip has found a torch without CUDA"
    write("torch-cuda.txt", "torch with CUDA, and what it brings along.", hashed(cuda))
    if index is None:
        lines = [
            f"# Without hashes, which {Path(__file__).name} did not get: the index's own word is all there is.",
            torch,
        ]
    else:
        lines = hashed([torch], "--index-url", index)
    write("torch-cpu.txt", "torch for CPUs alone.", lines)


def resolved(*arguments: str) -> list[dict[str, Any]]:
    """pip's report of the packages that it would install."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    items: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return items


def foreign(machine: str) -> list[str]:
    """Arguments with which pip looks for another machine's wheels."""
    platforms = [*(f"manylinux_2_{minor}_{machine}" for minor in GLIBC), f"manylinux2014_{machine}", f"linux_{machine}"]
    wanted = [part for platform in platforms for part in ("--platform", platform)]
    python = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
    return [*python, *wanted, "--target", str(Path(tempfile.gettempdir()) / "unused")]


def hashed(pinned: list[str], *arguments: str) -> list[str]:
    """Each requirement with the hashes of its wheels."""
    hashes: dict[str, set[str]] = {line.lower(): set() for line in pinned}
    for machine in MACHINES:
        for item in resolved("--no-deps", *foreign(machine), *arguments, *pinned):
            name, version = item["metadata"]["name"].lower(), item["metadata"]["version"].partition("+")[0]
            hashes[f"{name}=={version}"].add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    return [
        " \\\n".join([line, *(f"    --hash=sha256:{value}" for value in sorted(hashes[line]))])
        for line in sorted(hashes)
    ]


def write(name: str, what: str, lines: list[str]) -> None:
    """Writes a lock file with a comment on its content."""
    (FOLDER / name).write_text(HEAD.format(what) + "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
