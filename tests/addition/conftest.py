"""A temporary copy of the packages, to which a test adds single files, and Python that runs in it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "engine", "model", "quant")
Run = Callable[..., Any]


@pytest.fixture
def addition(tmp_path: Path) -> Callable[..., Run]:
    """`addition("schemes/half.py")` copies the packages and adds this file of ours to the folder of that name, or more
    than one; the result is `run(code, *arguments)`, which gives what the code prints as JSON."""
    folders = {
        "schemes": "quant/schemes",
        "families": "model/families",
        "protocols": "server/protocols",
        "logit_rules": "engine/logit_rules",
    }

    def make(*files: str) -> Run:
        copy = tmp_path / "copy"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in files:
            kind, _, name = file.partition("/")
            target = copy / folders[kind] / name
            assert not target.exists()
            shutil.copyfile(Path(__file__).parent / file, target)

        def run(code: str, *arguments: str) -> Any:
            environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-P", "-W", "error", "-c", code, *arguments]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        return run

    return make
