"""Packed folders from end to end: loaded, on ranks, planned and converted as a float folder of the same numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.attention import DenseAttention, visible
from model.checkpoint import load
from model.config import CheckpointError
from model.convert import Conversion, Recipe
from model.network import Network
from model.outline import Outline
from model.parallel import Ranks
from model.storage import Storage
from tests.conftest import TinyCheckpoint
from tests.model.formats.packed import Tensors, in_words
from tests.ranks import on_ranks

MATRICES = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")
GROUP = 32
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "checkpoint_format": "gptq_v2"}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}},
}
Packing = Callable[[str, Tensor], tuple[Tensors, Tensor]]  # path, weight → tensors, and what they stand for


def grouped(path: str, weight: Tensor, order: Tensor) -> tuple[Tensors, Tensor]:
    """GPTQ's second version: symmetric 4-bit codes, groups of inputs in this order."""
    outputs, inputs = weight.shape
    groups = torch.empty(inputs, dtype=torch.int32)
    groups[order] = torch.arange(inputs, dtype=torch.int32) // GROUP
    scales = (weight[:, order].view(outputs, -1, GROUP).abs().amax(-1) / 7).half()
    spread = scales.float()[:, groups.long()]
    codes = (weight / spread).round().clamp(-8, 7)
    zeros = torch.full((inputs // GROUP, outputs), 8)
    packed = {
        "qweight": in_words((codes + 8).int(), 4).T,
        "scales": scales.T,
        "qzeros": in_words(zeros, 4),
        "g_idx": groups,
    }
    return {f"{path}.{leaf}": tensor.contiguous() for leaf, tensor in packed.items()}, codes * spread


def in_order(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    return grouped(path, weight, torch.arange(weight.shape[1]))


def act_order(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
    return grouped(path, weight, order)


def rows(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """compressed-tensors' 8-bit rows."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16)
    codes = (weight / scale.float()).round().clamp(-128, 127).to(torch.int8)
    return {f"{path}.weight": codes, f"{path}.weight_scale": scale}, codes * scale.float()


KINDS: dict[str, tuple[Packing, dict[str, Any], str, int | None]] = {
    "gptq": (in_order, GPTQ, "int4", 32),
    "gptq-act-order": (act_order, GPTQ, "int8", None),
    "compressed-tensors": (rows, W8A8, "int8", 0),
}


class Pair:
    """A packed folder, and a float one of the same numbers. `served` is the scheme without a choice."""

    def __init__(self, source: Path, folder: Path, kind: str) -> None:
        packing, quantization, self.served, self.size = KINDS[kind]
        tensors = load_file(source / "model.safetensors")
        packed: Tensors = {}
        floats: Tensors = {}
        for name, tensor in tensors.items():
            if name.endswith(MATRICES):
                own, floats[name] = packing(name.removesuffix(".weight"), tensor.float())
                packed |= own
            else:
                packed[name] = floats[name] = tensor
        config = json.loads((source / "config.json").read_text())
        self.packed, self.floats = folder / "packed", folder / "floats"
        for folder, held, fields in (
            (self.packed, packed, config | {"quantization_config": quantization}),
            (self.floats, floats, config),
        ):
            shutil.copytree(source, folder)
            save_file({k: t.contiguous() for k, t in held.items()}, folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(fields))


@pytest.fixture(scope="module")
def source(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint(hidden_size=128)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Pair:
    return Pair(source, tmp_path, request.param)


def logits(model: Network) -> Tensor:
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        return model.logits(model(ids, ids, ids * 0, DenseAttention(visible(40, torch.tensor([25])))))


def test_floats_are_the_same(pair: Pair) -> None:
    assert torch.equal(logits(load(pair.packed, "none").model), logits(load(pair.floats).model))


def test_what_is_converted_is_converted_from_the_same_floats(pair: Pair) -> None:
    converted = "int8" if pair.served == "int4" else "int4"
    assert torch.equal(logits(load(pair.packed, converted).model), logits(load(pair.floats, converted).model))


def test_quantize_writes_what_serve_holds(pair: Pair, tmp_path: Path) -> None:
    """With the scheme that the files have: without a choice it leaves the embedding in floats."""
    assert load(pair.packed).quant == pair.served
    served = load(pair.packed, pair.served)
    Conversion(pair.packed, tmp_path / "out", Recipe(Storage.asked(pair.served, None, None))).run()
    again = load(tmp_path / "out")
    assert (served.quant, again.quant, again.origin) == (pair.served, pair.served, "")
    assert torch.equal(logits(served.model), logits(again.model))


def test_two_ranks(pair: Pair, tmp_path: Path) -> None:
    """They hold what they would hold of the converted folder, whose tensors are cut."""
    Conversion(pair.packed, tmp_path / "out", Recipe(Storage.asked(pair.served, None, None), tp=2)).run()

    def tensors(folder: Path, ranks: Ranks) -> Tensors:
        return dict(load(folder, pair.served, ranks=ranks).model.state_dict())

    found = on_ranks(2, lambda ranks: tensors(pair.packed, ranks))
    for own, wanted in zip(found, on_ranks(2, lambda ranks: tensors(tmp_path / "out", ranks)), strict=True):
        assert all(torch.equal(own[name], tensor) for name, tensor in wanted.items())


def test_plan_counts_the_storage_that_serve_holds(pair: Pair) -> None:
    storage = Outline.read(str(pair.packed)).storage(None, None, None)
    assert (storage.scheme, storage.group_size) == (pair.served, pair.size)


def test_quantize_keeps_the_groups_of_the_files(source: Path, tmp_path: Path) -> None:
    pair = Pair(source, tmp_path, "gptq")
    config = json.loads((pair.packed / "config.json").read_text())
    config["quantization_config"]["group_size"] = 64
    tensors = load_file(pair.packed / "model.safetensors")
    for name in list(tensors):
        if name.endswith((".scales", ".qzeros")):
            tensors[name] = tensors[name][::2].contiguous()
        elif name.endswith(".g_idx"):
            tensors[name] //= 2
    save_file(tensors, pair.packed / "model.safetensors")
    (pair.packed / "config.json").write_text(json.dumps(config))
    found = Conversion(pair.packed, tmp_path / "out", Recipe(Storage("int4"))).storage
    assert (found.scheme, found.group_size) == ("int4", 64)


class TestOldSettings:
    """Folders of AutoGPTQ and AutoAWQ whose config.json says nothing."""

    def test_beside_config_json(self, source: Path, tmp_path: Path) -> None:
        pair = Pair(source, tmp_path, "gptq")
        config = json.loads((pair.packed / "config.json").read_text())
        del config["quantization_config"]
        (pair.packed / "config.json").write_text(json.dumps(config))
        old = {key: value for key, value in GPTQ.items() if key != "quant_method"}
        (pair.packed / "quantize_config.json").write_text(json.dumps(old))
        assert torch.equal(logits(load(pair.packed, "none").model), logits(load(pair.floats).model))
        (pair.packed / "quantize_config.json").write_text(json.dumps(old | {"bits": 2}))
        with pytest.raises(CheckpointError, match=r"quantize_config.json: bits is 2, only 4 or 8 is read"):
            load(pair.packed)
