"""Packed folders that are damaged, inconsistent or of a kind that is not read: refused in one line."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.checkpoint import entries
from model.config import CheckpointError, Config
from model.families import family_of
from model.network import Network
from model.storage import Storage
from tests.model.formats.packed import NAMES, changed, folder_of, golden, weights_of

Q = "model.layers.0.self_attn.q_proj"
LINE = r"\A.+\Z"
INT = torch.int32


def state(**fields: Any) -> Tensor:
    """A `quant_state` of bitsandbytes with other fields."""
    good = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 64]}
    return torch.tensor(list(json.dumps(good | fields).encode()), dtype=torch.uint8)


def use(folder: Path) -> None:
    """Opens a folder, checks it against its network, and reads every tensor and every kept form."""
    weights = weights_of(folder)
    config = Config.read(folder)
    with torch.device("meta"):
        weights.check(entries(Network(family_of(config).architecture(config))))
    for name in weights.entries:
        weights.read(name)
        if weights.form(name) is not None:
            weights.stored(name)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError, match=LINE) as error:
        use(folder)
    return str(error.value)


NF4 = f"{Q}.weight.quant_state.bitsandbytes__nf4"
TENSORS: list[tuple[str, dict[str, Tensor | None], str]] = [
    ("gptq_g32", {"scales": torch.zeros(2, 63).half()}, "q_proj.scales has shape [2, 63], expected [2, 64]"),
    ("gptq_g32", {"scales": torch.zeros(2, 64).double()}, "q_proj.scales has type torch.float64, expected"),
    ("gptq_g32", {"scales": torch.full((2, 64), torch.inf).half()}, "holds NaN or infinity"),
    ("gptq_g32", {"qzeros": torch.zeros(2, 7, dtype=INT)}, "q_proj.qzeros has shape [2, 7], expected [2, 8]"),
    ("gptq_g32", {"qzeros": None}, "model.safetensors lacks model.layers.0.self_attn.q_proj.qzeros"),
    ("gptq_g32", {"qweight": torch.zeros(8, dtype=INT)}, "q_proj.qweight has shape [8], expected two dimensions"),
    ("gptq_g32", {"qweight": torch.zeros(8, 64)}, "q_proj.qweight has type torch.float32, expected torch.int32"),
    ("gptq_g32", {"qweight": torch.zeros(0, 64, dtype=INT)}, "q_proj.g_idx has shape [64], expected [0]"),
    ("gptq_g32", {"g_idx": torch.zeros(63, dtype=INT)}, "q_proj.g_idx has shape [63], expected [64]"),
    ("gptq_g32", {"g_idx": torch.full((64,), 2, dtype=INT)}, "q_proj.g_idx names groups from 2 to 2, there are 2"),
    ("gptq_g32", {"g_idx": torch.full((64,), -1, dtype=INT)}, "q_proj.g_idx names groups from -1 to -1, there are 2"),
    ("awq_g32", {"qzeros": torch.zeros(3, 8, dtype=INT)}, "q_proj.qzeros has shape [3, 8], expected [2, 8]"),
    ("awq_g32", {"qweight": torch.zeros(65, 8, dtype=INT)}, "has 65 inputs, which groups of 32 do not divide"),
    ("ct_w4a16_g32", {"weight_shape": torch.tensor([2**40, 64])}, "gives a weight of 1099511627776 × 64"),
    ("ct_w4a16_g32", {"weight_shape": torch.tensor([-64, -64])}, "gives a weight of -64 × -64"),
    ("ct_w4a16_g32", {"weight_shape": torch.tensor([64])}, "q_proj.weight_shape has shape [1], expected [2]"),
    ("ct_w4a16_g32", {"weight_shape": None}, "model.safetensors lacks model.layers.0.self_attn.q_proj.weight_shape"),
    ("ct_w4a16_g32", {"weight_scale": torch.zeros(64, 4).half()}, "q_proj.weight_scale has shape [64, 4], which no"),
    ("ct_w4a16_g32", {"weight_scale": None}, "q_proj.weight_scale has shape [], which no config group"),
    ("ct_w4a16_g32", {"weight_zero_point": torch.zeros(8, 3, dtype=INT)}, "weight_zero_point has shape [8, 3]"),
    ("ct_w8a8", {"weight": torch.zeros(64, 64)}, "q_proj.weight_scale belongs to no matrix of codes"),
    ("ct_w8a8", {"weight": torch.zeros(64, 64, dtype=torch.float8_e4m3fn)}, "weight_scale has shape [64, 1], which no"),
    ("bnb_int8", {"SCB": torch.zeros(63)}, "q_proj.SCB has shape [63], expected [64]"),
    ("bnb_int8", {"SCB": None}, "model.safetensors lacks model.layers.0.self_attn.q_proj.SCB"),
    ("bnb_int8", {"weight_format": torch.tensor(2, dtype=torch.uint8)}, "weight_format is 2, only rows (0) are read"),
    ("bnb_nf4", {"weight.absmax": torch.zeros(63)}, "q_proj.weight.absmax has shape [63], expected [64]"),
    ("bnb_nf4", {"weight.quant_map": torch.zeros(8)}, "q_proj.weight.quant_map has shape [8], expected [16]"),
    ("bnb_nf4", {"weight": torch.zeros(100, 1, dtype=torch.uint8)}, "q_proj.weight has shape [100, 1] torch.uint8"),
    ("bnb_nf4", {NF4: state(shape=[2**30, 2**30])}, "expected 576460752303423488 bytes"),
    ("bnb_nf4", {NF4: state(shape=[64])}, "bitsandbytes__nf4 is not the state of a matrix"),
    ("bnb_nf4", {NF4: state(blocksize=0)}, "bitsandbytes__nf4 is not the state of a matrix"),
    ("bnb_nf4", {NF4: torch.full((8,), 255, dtype=torch.uint8)}, "bitsandbytes__nf4 is not the state of a matrix"),
    ("bnb_nf4", {NF4: torch.zeros(8)}, "bitsandbytes__nf4 is not the state of a matrix"),
    ("ao_int8", {"_weight_qdata": torch.zeros(64, 63, dtype=torch.int8)}, "which blocks of [1, 64] do not divide"),
    ("ao_int8", {"_weight_scale": torch.zeros(64, 2)}, "_weight_scale has shape [64, 2], expected [64, 1]"),
    ("ao_intx4", {"_weight_qdata": torch.full((64, 64), 9, dtype=torch.int8)}, "_weight_qdata has codes beyond 4 bits"),
]  # fmt: skip

SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("gptq_g32", {"bits": 3}, "bits is 3, only 4 or 8 is read"),
    ("gptq_g32", {"bits": True}, "bits is True, only 4 or 8 is read"),
    ("gptq_g32", {"bits": 8}, ".g_idx has shape [128], expected [64]"),
    ("gptq_g32", {"group_size": 0}, "group_size must be a positive number or -1, not 0"),
    ("gptq_g32", {"group_size": "32"}, "group_size must be a positive number or -1, not '32'"),
    ("gptq_g32", {"group_size": 64}, ".qzeros has shape [4, 8], expected [2, 8]"),
    ("gptq_g32", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', only 'gptq' or 'gptq_v2' is read"),
    ("gptq_g32", {"pack_dtype": "int64"}, "pack_dtype is 'int64', only 'int32' is read"),
    ("awq_g32", {"version": "gemv"}, "version is 'gemv', only 'gemm' or 'GEMM' is read"),
    ("awq_g32", {"bits": 8}, "bits is 8, only 4 is read"),
    ("ct_w8a8", {"format": "marlin-24"}, "format is 'marlin-24', only 'pack-quantized' or "),
    ("ct_w8a8", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme quantizes keys and values, which is not read"),
    ("ct_w8a8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config leaves out weights, which"),
    ("ct_w8a8", {"transform_config": {"config_groups": {}}}, "transform_config rotates weights and activations"),
    ("ct_w8a8", {"quantization_status": "frozen"}, "quantization_status is 'frozen', only 'compressed' is read"),
    ("ct_w8a8", {"config_groups": []}, "config_groups is [], no object of objects"),
    ("ct_w8a8", {"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "block"}}}}, "strategy is 'block'"),
    ("ct_w8a8", {"config_groups": {"a": {"weights": {"num_bits": 3}}}}, "num_bits is 3, only 4 or 8 is read"),
    ("ct_w8a8", {"config_groups": {"a": {"format": "nvfp4-pack-quantized"}}}, "format is 'nvfp4-pack-quantized', only"),
    ("ct_w8a8", {"config_groups": {"a": {"weights": {"strategy": "group", "group_size": -3}}}}, "group_size must be"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensors", "says"), TENSORS)
def test_tensors_that_do_not_belong_together(
    tmp_path: Path, name: str, tensors: dict[str, Tensor | None], says: str
) -> None:
    folder = folder_of(name, tmp_path)
    assert says in refusal(changed(folder, {k if k.startswith(Q) else f"{Q}.{k}": t for k, t in tensors.items()}))


@pytest.mark.parametrize(("name", "fields", "says"), SETTINGS)
def test_settings_that_are_not_read(tmp_path: Path, name: str, fields: dict[str, Any], says: str) -> None:
    assert says in refusal(folder_of(name, tmp_path, **fields))


def test_headers_of_torchao(tmp_path: Path) -> None:
    folder = folder_of("ao_int8", tmp_path)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"_type\\": \\"Int8Tensor\\"', b'\\"_type\\": \\"Int4Tensor\\"'))
    assert "torchao's Int4Tensor, only Int8Tensor and IntxUnpackedToInt8Tensor are read; serve" in refusal(folder)
    path.write_bytes(data.replace(b"tensor_names", b"tensor_nomes"))
    assert "model.safetensors: its header does not describe torchao's tensors: no 'tensor_names'" in refusal(folder)


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "hqq"}, "has quant_method 'hqq' (half-quadratic quantization (HQQ)), which is not read"),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "has quant_method 'fp8' (FP8 with a scale for each block",
        ),
        (
            {"quant_method": "mxfp4"},
            "has quant_method 'mxfp4' (4-bit floats of OCP MX), which is not read; serve the float folder",
        ),
        ({"quant_method": "made up"}, "has quant_method 'made up', which is not read; serve the float folder"),
        ({"quant_method": ["gptq"]}, "has quant_method ['gptq'], which is not read"),
        ({"group_size": 64, "bits": 4}, "is that of MLX weights for Apple's chips, which are not read"),
        ({}, "has no quant_method"),
        ("int4", "is 'int4', no object"),
    ],
)
@pytest.mark.parametrize("field", ["quantization_config", "quantization"])
def test_other_libraries(tmp_path: Path, quantization: object, says: str, field: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({field: quantization}))
    with pytest.raises(CheckpointError, match=LINE) as error:
        Storage.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: quantization_config {says}")


DAMAGE = {
    "drop": lambda tensor: None,
    "flat": lambda tensor: tensor.flatten(),
    "row less": lambda tensor: tensor[:-1] if tensor.dim() else tensor,
    "row more": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor[None],
    "empty": lambda tensor: tensor.flatten()[:0],
    "column": lambda tensor: tensor.reshape(-1, 1),
    "double": lambda tensor: tensor.double(),
    "long": lambda tensor: tensor.float().long(),
    "bytes": lambda tensor: tensor.contiguous().flatten().view(torch.uint8),
    "ones": lambda tensor: (tensor.float() * 0 - 1).to(tensor.dtype),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_changes_nothing_that_crashes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(NAMES))
    held = golden(name, "weights.")
    tensor = data.draw(st.sampled_from(sorted(key for key in held if "proj" in key or "attention" in key)))
    damage = data.draw(st.sampled_from(sorted(DAMAGE)))
    folder = folder_of(name, tmp_path_factory.mktemp("damaged"))
    with suppress(CheckpointError):
        use(changed(folder, {tensor: DAMAGE[damage](held[tensor])}))
