"""`glm-infill plan` as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model.checkpoint import DEMO, load
from server.cli import app


def command(*args: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, args)])


def test_prints_what_fits_and_how_fast_it_would_be() -> None:
    done = command("glm-130b", "--gpus", "4xRTX3090", "--quant", "int4")
    assert done.exit_code == 0, done.output
    assert "4 × RTX3090" in done.stdout
    assert "fits: 6,544 tokens of keys and values; full-length requests at a time, of 2,048: 3" in done.stdout
    assert "--tp 4 --kv-cache-gb 5.6" in done.stdout


def test_a_cache_of_int8_is_served_as_one() -> None:
    done = command("glm-130b", "--gpus", "8xRTX2080Ti", "--quant", "int4", "--kv-cache-type", "int8")
    assert done.exit_code == 0, done.output
    assert "--kv-cache-type int8" in done.stdout
    assert "serve takes contexts" not in done.stdout  # there is room for two full lengths


def test_prints_why_it_does_not_fit_and_what_would() -> None:
    done = command("glm-130b", "--gpus", "4xRTX3090", "--quant", "int8")
    assert done.exit_code == 0, done.output
    assert "does not fit: 32.20 GB of weights" in done.stdout
    assert "would fit: --quant int4" in done.stdout
    assert "would fit: --gpus 8xRTX3090" in done.stdout


def test_the_json_has_the_promised_fields() -> None:
    line = [
        sys.executable,
        "-m",
        "server.cli",
        "plan",
        "glm-130b",
        "--gpus",
        "8xRTX2080Ti",
        "--quant",
        "int4",
        "--json",
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert facts["fits"] is True
    assert facts["reason"] is None
    assert len(facts["devices"]) == 8
    names = {"name", "weights_bytes", "kv_bytes_per_token", "workspace_bytes", "reserve_bytes", "free_bytes"}
    assert all(device.keys() >= names for device in facts["devices"])
    assert facts["max_tokens"] >= 2048
    assert facts["max_requests"] == 1
    assert {"128", "512", "1024", "2048"} <= facts["predicted"]["encode_s"].keys()
    assert 0 < facts["predicted"]["token_s"] < 1


def test_a_refusal_by_name_is_a_plan_that_does_not_fit() -> None:
    facts = json.loads(command("glm-130b", "--gpus", "5xRTX3090", "--json").stdout)
    assert facts["fits"] is False
    assert facts["reason"] == "num_attention_heads 96 is not divisible by 5 ranks"
    assert facts["predicted"] == {"encode_s": {}, "decode_s": {}, "token_s": None}


def test_a_folder_s_weights_are_those_that_are_loaded() -> None:
    facts = json.loads(command(DEMO, "--gpus", "CPU", "--quant", "int8", "--json").stdout)
    loaded = load(None, "int8").model
    assert facts["devices"][0]["weights_bytes"] == sum(p.nbytes for p in loaded.parameters())


def test_a_folder_without_weights_and_tokenizer_will_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((DEMO / "config.json").read_text("utf-8"), "utf-8")
    done = command(tmp_path, "--gpus", "T4", "--json")
    assert json.loads(done.stdout)["fits"] is True


def test_a_quantized_folder_is_planned_as_it_is_stored(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "int4"
    line = ["quantize", str(tiny_checkpoint()), str(folder), "--scheme", "int4", "--quant-head", "int8"]
    assert CliRunner().invoke(app, line).exit_code == 0
    facts = json.loads(command(folder, "--gpus", "CPU", "--json").stdout)
    assert facts["devices"][0]["weights_bytes"] == sum(p.nbytes for p in load(folder).model.parameters())
    done = command(folder, "--gpus", "CPU", "--quant", "int8")
    assert done.exit_code == 1
    assert "stored as int4 group_size 32 head int8, which cannot be loaded as int8 head int8" in done.stderr


def test_cards_of_one_s_own(tmp_path: Path) -> None:
    card = {
        "memory_gib": 32, "bandwidth_gb_s": 1000, "float_tflops": 100, "int8_tops": 200, "link_gb_s": 20, "hop_us": 3,
        "capability": 9.0,
    }  # fmt: skip
    path = tmp_path / "cards.json"
    path.write_text(json.dumps({"Mine": card}))
    facts = json.loads(command("glm-10b", "--gpus", "2xmine", "--cards", path, "--json").stdout)
    assert [device["name"] for device in facts["devices"]] == ["Mine", "Mine"]
    assert facts["fits"] is True


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("glm-130b",), 2, "--gpus"),
        (("glm-130b", "--gpus", "4xRTX9"), 2, "no card 'RTX9'; the cards are RTX3090"),
        (("glm-130b", "--gpus", ""), 2, "not a list of devices"),
        (("nothing", "--gpus", "T4"), 1, "--download fetches it from the hub; no preset of this name, there are"),
        (("glm-10b", "--gpus", "T4", "--preset", "glm-10b"), 1, "glm-10b is a preset itself"),
        (("model", "--gpus", "T4", "--preset", "glm-99b"), 1, "no preset 'glm-99b'"),
        (("model", "--gpus", "T4"), 1, "model/config.json: no such file"),
        (
            ("glm-10b", "--gpus", "T4", "--quant", "int4", "--group-size", "33"),
            2,
            "--group-size: Input should be 0, 32, 64 or 128",
        ),
        (("glm-10b", "--gpus", "T4", "--context", "1025"), 2, "the model has 1024 positions, not 1025"),
        (("glm-10b", "--gpus", "T4", "--context", "0"), 2, "--context"),
        (("glm-10b", "--gpus", "T4", "--kv-cache-type", "int4"), 2, "--kv-cache-type"),
        (("glm-10b", "--gpus", "T4", "--cards", "/nowhere"), 2, "/nowhere: No such file"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(args: tuple[str, ...], code: int, says: str) -> None:
    done = command(*args)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    if not says.startswith("--"):
        assert done.stderr.count("\n") == 1
