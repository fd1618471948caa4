"""Folders in other libraries' packed forms, for tests: the goldens, and a plain reference of two layouts."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import Config
from model.families import family_of
from model.sharding import cuts_of
from model.weights import Weights

GOLDEN = Path(__file__).parents[2] / "golden" / "packed"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
Tensors = dict[str, Tensor]


@cache
def golden(name: str, prefix: str = "") -> Tensors:
    """The tensors of a golden file whose names begin so, without that beginning."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118


def metadata(name: str) -> dict[str, Any]:
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def folder_of(name: str, folder: Path, **changes: Any) -> Path:
    """The folder that a golden was made of. `changes` are fields of its `quantization_config`; None leaves one out."""
    facts = metadata(name)
    config = facts["config"]
    quantization = config["quantization_config"] | changes
    config["quantization_config"] = {k: v for k, v in quantization.items() if v is not None or k not in changes}
    save_file(golden(name, "weights."), folder / "model.safetensors", metadata=facts["header"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def changed(folder: Path, tensors: dict[str, Tensor | None]) -> Path:
    """Other tensors in a folder's file; None leaves one out."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    kept = {key: tensor.contiguous() for key, tensor in (held | tensors).items() if tensor is not None}
    save_file(kept, path, metadata=header)
    return folder


def weights_of(folder: Path) -> Weights:
    config = Config.read(folder)
    family = family_of(config)
    return Weights(folder, family.namings, cuts_of(family.architecture(config)))


def in_words(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, n] → int32 words [rows, n · bits / 32], the lowest bits first: one code after the other."""
    a_word = 32 // bits
    rows, count = codes.shape
    words = torch.zeros(rows, -(-count // a_word), dtype=torch.int64)
    for place in range(count):
        words[:, place // a_word] |= codes[:, place].long() << bits * (place % a_word)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
