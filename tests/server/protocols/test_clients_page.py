"""What docs/clients.md tells to type, typed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "clients.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
CURL = [code for kind, code in BLOCKS if kind == "bash" and code.startswith("curl")]


def at(code: str, url: str) -> str:
    assert "http://127.0.0.1:8000" in code
    return code.replace("http://127.0.0.1:8000", url)


def test_the_page_has_examples() -> None:
    assert len(PYTHON) == 4
    assert len(CURL) == 7


@pytest.mark.parametrize("code", PYTHON)
def test_python(demo_url: str, code: str) -> None:
    ran = subprocess.run([sys.executable, "-c", at(code, demo_url)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    if "echo=True" in code:
        assert "None" in ran.stdout
        assert len(ran.stdout.splitlines()) > 6


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("code", CURL)
def test_curl(demo_url: str, code: str) -> None:
    command = at(code, demo_url).replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("{")
