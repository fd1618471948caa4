"""`glm-infill batch`: lines in, lines out, and what was done stays done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant.usage import UsageError
from server.commands.batch import read, resume


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "server.cli", "batch", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def answers(file: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len({a["custom_id"] for a in found}) == len(found)
    return {a["custom_id"]: a for a in found}


LINES = [
    {"text": "the [MASK] sang", "max_tokens": 3},
    {"custom_id": "score", "text": "the [MASK] sang", "spans": [["cat"], ["bird"]]},
    {"custom_id": "openai", "method": "POST", "url": "/v1/score", "body": {"context": "the old", "target": " cat"}},
    {"custom_id": "long", "text": "a" * 9000, "max_tokens": 3},
    {"custom_id": "field", "text": "a", "colour": "red"},
]


def test_every_line_has_an_answer_and_a_second_run_adds_what_is_new(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder, source, target = tiny_checkpoint(), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join([*map(json.dumps, LINES), "nonsense", ""]))
    done = command(source, target, "--model", folder, "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) == {"lines": 6, "answered_before": 0, "answered": 6, "failed": 3}
    first = answers(target)
    assert first["line-1"]["response"]["body"]["results"][0]["blanks"][0]["mask"] == "[MASK]"
    assert len(first["score"]["response"]["body"]["results"]) == 2
    assert first["openai"]["response"]["body"]["object"] == "score"
    assert first["long"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert first["field"]["response"]["status_code"] == 400
    assert first["line-6"]["error"]["code"] == "invalid_line"
    with target.open("a") as file:
        file.write('{"id": "torn off in the mid')
    with source.open("a") as file:
        file.write(json.dumps({"custom_id": "new", "text": "[MASK]", "max_tokens": 1}) + "\n")
    again = command(source, target, "--model", folder, "--json")
    assert json.loads(again.stdout) == {"lines": 7, "answered_before": 6, "answered": 1, "failed": 3}
    assert answers(target) == first | {"new": answers(target)["new"]}


def test_a_killed_run_goes_on_where_it_was(demo_url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"text": f"{n} [MASK]", "max_tokens": 20, "min_tokens": 20}) + "\n" for n in range(60))
    )
    line = [sys.executable, "-m", "server.cli", "batch", str(source), str(target), "--url", demo_url, "--window", "2"]
    process = subprocess.Popen(line)
    deadline = time.monotonic() + 60
    while not target.exists() or target.read_text().count("\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = target.read_text()
    done = command(source, target, "--url", demo_url, "--json")
    assert done.returncode == 0, done.stderr
    assert target.read_text().startswith(before[: before.rfind("\n") + 1])
    assert set(answers(target)) == {f"line-{n}" for n in range(1, 61)}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("[]", "the line is not an object"),
        ("{", "the line is not JSON"),
        ('{"custom_id": 7}', "custom_id is not a string of 1 to 512 characters"),
        ('{"custom_id": "a", "body": 1}', "body is not an object"),
        ('{"custom_id": "a", "url": "/metrics", "body": {}}', "url is none of /v1/infill, /v1/score, /v1/completions"),
        ('{"text": "a", "stream": true}', "stream is not for batches"),
    ],
)
def test_a_line_that_is_no_request_says_why(line: str, error: str) -> None:
    (found,) = read(line)
    assert (found.error, found.body) == (f"line 1: {error}", None)


def test_requests_wait_behind_interactive_ones_unless_they_say_otherwise() -> None:
    first, second = read('{"text": "a"}\n{"text": "b", "priority": "interactive"}\n')
    assert first.body is not None
    assert second.body is not None
    assert (first.body["priority"], second.body["priority"]) == ("batch", "interactive")


def test_an_id_that_comes_twice_ends_it_before_it_begins(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"custom_id": "a", "text": "x"}\n{"custom_id": "a", "text": "y"}\n')
    done = command(source, tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("line 2: custom_id 'a' is the same as in line 1")


def test_a_file_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("dear diary\n")
    with pytest.raises(UsageError, match="is no answer of a batch"):
        resume(other)
    assert other.read_text() == "dear diary\n"
    assert command(tmp_path / "missing.jsonl", other).returncode == 1
