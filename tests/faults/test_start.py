"""Faults 14 and 15: a server that is given bad weights says so in a line and ends, and runs no code of theirs."""

import json
import os
import pickle
import shutil
import socket
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "TAKEN"], "port TAKEN on 127.0.0.1 is in use; --port chooses another"),
        (["--port", "TAKEN", "--host", "localhost"], "port TAKEN on localhost is in use; --port chooses another"),
        (["--host", "192.0.2.1"], "192.0.2.1 is no address of this machine; --host chooses another"),
        (["--host", "nothing.invalid"], "nothing.invalid is no address, and no name of one; --host chooses another"),
    ],
)
def test_where_it_may_not_listen_it_says_so_before_it_reads_a_model(
    folder: Path, options: list[str], said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        # What is wrong with the model it does not come to.
        lacking(folder)
        done = serve(folder, *(option.replace("TAKEN", port) for option in options))
    assert (done.returncode, done.stderr) == (1, f"glm-infill: {said.replace('TAKEN', port)}\n")


def test_a_privileged_port_ends_the_start_with_one_line(folder: Path) -> None:
    least = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port", str(least - 1)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None or least < 2:
            pytest.skip("this user may listen on any port")
        command = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = f"glm-infill: this user may not listen on port {least - 1} of 127.0.0.1; --port chooses another\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_too_few_open_files_end_the_start_with_one_line(folder: Path) -> None:
    command = ["prlimit", "--nofile=60:60", sys.executable, "-m", "server.cli", "serve", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("glm-infill: the limit of open files is 60, and at least ")
    assert done.stderr.count("\n") == 1


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
