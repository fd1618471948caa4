"""`glm-infill quantize` as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.checkpoint import load
from server.cli import app


def command(*args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "server.cli", "quantize", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


def test_writes_a_folder_and_says_what_it_holds(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The red fish found the old boat under the hill near the river and sang.\n\n" * 5)
    done = command(source, tmp_path / "out", "--scheme", "int4", "--calibrate", text, "--quant-head", "none", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar: it is not a terminal
    facts = json.loads(done.stdout)
    assert facts["storage"] == {"quant_method": "glm-infill", "scheme": "int4", "group_size": 32, "head": "none"}
    assert facts["calibrated"]
    assert facts["bytes_per_quantized_weight"] == 0.5625
    assert load(tmp_path / "out").quant == "int4"


def test_the_embedding_s_storage_has_the_name_of_the_other_commands(source: Path, tmp_path: Path) -> None:
    for asked, head in ((("--quant-head", "int4"), "int4"), ((), "int8")):
        line = ["quantize", str(source), str(tmp_path / head), "--scheme", "int8", *asked, "--json"]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["storage"]["head"] == head


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--scheme", "int4", "--group-size", "128"), 1, "group_size 128 does not divide the 64 inputs"),
        (("--scheme", "int3"), 2, "no such scheme: int3"),
        (("--scheme", "int4", "--calibrate", "/nowhere"), 1, "/nowhere: not a readable UTF-8 text"),
        ((), 2, "--scheme"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(
    source: Path, tmp_path: Path, args: tuple[str, ...], code: int, says: str
) -> None:
    done = command(source, tmp_path / "out", *args)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
