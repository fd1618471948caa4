"""Faults 14 and 15: a server that is given bad weights says so in a line and ends, and runs no code of theirs."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


def serve(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "GLM_INFILL_LOG_LEVEL": "error"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint(), copy)
    return copy


def lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.final_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.layers.0.mlp.dense_h_to_4h.weight"][3, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def overlapping(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    first = header[names[0]]
    same = next(name for name in names[1:] if header[name]["shape"] == first["shape"])
    header[same]["data_offsets"] = first["data_offsets"]
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


def ill_shaped(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("poison", [lacking, not_finite, truncated, overlapping, ill_shaped], ids=lambda p: p.__name__)
def test_bad_weights_end_the_start_with_one_line(folder: Path, poison: Callable[[Path], None]) -> None:
    poison(folder)
    done = serve(folder, "--quant", "int8")
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert len(lines) <= 2, done.stderr
    assert any(word in done.stderr for word in ("safetensors", "weight", "layernorm", "shape", "finite", "NaN"))


def test_a_number_of_ranks_that_does_not_divide_is_refused(folder: Path) -> None:
    done = serve(folder, "--tp", "3")
    assert done.returncode != 0
    assert "3 ranks" in done.stderr
    assert "Traceback" not in done.stderr


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sat"])
def test_code_in_a_pickle_does_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    path = folder / name
    if name == "sat":
        (folder / "latest").write_text("1")
        path = folder / "1" / "mp_rank_00_model_states.pt"
        path.parent.mkdir()
    # Protocol 2 is what torch.save writes; files of others are no checkpoints and are refused unread.
    path.write_bytes(pickle.dumps({"module": Canary(canary)}, protocol=2))
    done = serve(folder)
    assert done.returncode != 0
    assert f"{os.mkdir.__module__}.mkdir, which is not loaded" in done.stderr
    assert not canary.exists()
    assert "Traceback" not in done.stderr
