"""A current folder full of Python files that are called like our modules, and like those that we use: none is run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Server

COMMAND = Path(sys.executable).with_name("glm-infill")
NAMES = (
    "model", "engine", "quant", "server", "training", "deploy", "numpy", "torch", "tokenizers", "safetensors",
    "sentencepiece", "outlines_core", "regex", "fastapi", "uvicorn", "pydantic", "starlette", "h11", "typer", "rich",
    "structlog", "prometheus_client", "httpx", "json", "random", "struct", "array", "logging", "sitecustomize",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder; whichever of its files is run leaves its name in `ran`."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in NAMES:
        code = f"open({str(folder / 'ran')!r}, 'a').write({name!r} + ' ')\nraise SystemExit('mine')\n"
        (folder / f"{name}.py").write_text(code)
    return folder


def run(folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("--regex", "[a-z]{3}")], ids=["fill", "regex"])
def test_fill(folder: Path, tiny_checkpoint: Callable[..., Path], options: tuple[str, ...]) -> None:
    assert run(folder, "fill", "the [MASK]", "--model", tiny_checkpoint(), "--max-tokens", 4, *options)


def test_score(folder: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    assert run(folder, "score", "the [MASK]", "--span", "cat", "--model", tiny_checkpoint())


def test_batch(folder: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    (folder / "in.jsonl").write_text(json.dumps({"text": "the [MASK]", "max_tokens": 2, "regex": "[a-z]+"}) + "\n")
    run(folder, "batch", "in.jsonl", "out.jsonl", "--model", tiny_checkpoint())
    assert json.loads((folder / "out.jsonl").read_text())["response"]["status_code"] == 200


def test_serve(folder: Path, launch: Callable[..., Server]) -> None:
    server = launch(cwd=folder, tp=2)
    assert server.fill().status_code == 200
    assert server.fill(regex="[a-z]{2}").status_code == 200
    rank = server.children()[0]
    os.kill(rank, 9)
    # /ready may still say what was true before the loss is noticed; a fill finds out.
    server.until(lambda: rank not in server.children() and server.fill().status_code == 200)
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
