"""The examples of tuning: their commands are accepted, and their judge says what the server does."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import blocks
from tests.docs.test_commands import commands, environment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "tuning"
TUNES = [c for block in blocks(FOLDER / "README.md", ("bash",)) for c in commands(block) if " tune " in c]


def test_the_examples_have_commands() -> None:
    assert len(TUNES) == 2


def test_an_example_begins_to_learn(tmp_path: Path) -> None:
    lines = (FOLDER / "genres.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "examples" / "tuning").mkdir(parents=True)
    (tmp_path / "examples" / "tuning" / "genres.jsonl").write_text("\n".join(lines[:40]) + "\n", "utf-8")
    command = TUNES[1].replace("--epochs 4", "--steps 2 --eval-every 2 --batch-size 4 --json")
    ran = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["eval_loss"] < json.loads(ran.stdout)["eval_loss_before"]
    assert (tmp_path / "runs/genres/adapter_model.safetensors").exists()


def judge(url: str, file: Path, *options: str) -> dict[str, float]:
    command = [sys.executable, str(FOLDER / "judge.py"), str(file), "--url", url, *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def test_the_judge_says_what_the_server_does(demo_url: str, tmp_path: Path) -> None:
    lines = (FOLDER / "jargon-test.jsonl").read_text("utf-8").splitlines()[:3]
    (tmp_path / "few.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    total = tokens = 0.0
    for line in map(json.loads, lines):
        body = {"text": line["text"], "spans": line["spans"], "include_end": True}
        result = httpx.post(f"{demo_url}/v1/score", json=body).json()["results"][0]
        total, tokens = total - result["logprob"], tokens + result["num_tokens"]
    found = judge(demo_url, tmp_path / "few.jsonl")
    assert found["loss"] == pytest.approx(total / tokens, abs=1e-3)
    genres = (FOLDER / "genres-test.jsonl").read_text("utf-8").splitlines()[:4]
    (tmp_path / "genres.jsonl").write_text("\n".join(genres) + "\n", "utf-8")
    found = judge(demo_url, tmp_path / "genres.jsonl", "--choices", "scripture,a novel,a speech,a lexicon")
    assert found["lines"] == 4
    assert found["accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)
