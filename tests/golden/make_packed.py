"""Makes `packed/*.safetensors`: a tiny Glm4ForCausalLM in the quantized forms that other libraries write, and a BERT.

compressed-tensors 0.20.1 (Apache-2.0), bitsandbytes 0.50.2 (MIT), torchao 0.18.0 (BSD-3-Clause) and GPTQModel 7.7.0
(Apache-2.0; GPTQ and AWQ) quantize it, and save it themselves or through transformers 5.24.0. Each file holds the
tensors of the folder's model.safetensors as `weights.NAME`; `dequantized.NAME`, the first and the last row of each
quantized matrix as the library itself dequantizes it in float32; and one case: `token_ids`, and `logprobs` [rows,
vocab_size] of transformers' float model with the library's dequantized weights, in float32 on a CPU. Activations are
not quantized. Metadata, each as JSON: `config`, the folder's config.json, and `header`, the metadata of its
model.safetensors.

Knows nothing of this repository's code. To rerun, in the repository root (GPTQModel wants a torch of its own):

    python3 -m venv /tmp/packed && /tmp/packed/bin/pip install torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 \
        compressed-tensors==0.20.1 bitsandbytes==0.50.2 torchao==0.18.0
    /tmp/packed/bin/python tests/golden/make_packed.py compressed_tensors bitsandbytes torchao
    python3 -m venv /tmp/gptq && /tmp/gptq/bin/pip install transformers==5.24.0 gptqmodel==7.7.0
    /tmp/gptq/bin/python tests/golden/make_packed.py gptq awq
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from making import named, randomise, save
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    Glm4Config,
    Glm4ForCausalLM,
    PreTrainedModel,
)

FOLDER = Path(__file__).with_name("packed")
IDS = [15, 7, 33, 40, 15, 15, 9, 2, 21, 46, 30, 11]
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "head_dim": 32}
WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32}  # for groups of 128
RAGGED = NARROW | {"intermediate_size": 96}  # rows that are no multiple of 64


def float_model(sizes: Mapping[str, int], dtype: torch.dtype) -> Glm4ForCausalLM:
    """The float model: of one layer, the same numbers for the same sizes."""
    config = Glm4Config(
        **sizes,
        vocab_size=48,
        num_hidden_layers=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    model = Glm4ForCausalLM(config).eval()
    randomise(model.named_parameters(), 20260101)
    return model.to(dtype)


def masked_model() -> BertForMaskedLM:
    """A tiny BERT of one layer."""
    config = BertConfig(
        vocab_size=48,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = BertForMaskedLM(config).eval()
    randomise(model.named_parameters(), 20260102)
    return model.to(torch.bfloat16)


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """All that the libraries quantize: linear modules except the head."""
    heads = ("lm_head", "cls.predictions.decoder")
    return ((name, own) for name, own in model.named_modules() if isinstance(own, nn.Linear) and name not in heads)


def write(name: str, folder: Path, dequantized: Mapping[str, Tensor]) -> None:
    """The golden file of a saved folder; `dequantized` has the library's own float32 weights by module."""
    config = json.loads((folder / "config.json").read_text())
    fields = {k: v for k, v in config.items() if k != "quantization_config"} | {"attn_implementation": "eager"}
    masked = config["model_type"] == "bert"
    model = BertForMaskedLM(BertConfig(**fields)) if masked else Glm4ForCausalLM(Glm4Config(**fields))
    model = model.float().eval()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = file.metadata()
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        module = key.removesuffix(".weight")
        if key.endswith("weight") and module in dequantized:
            parameter.data = dequantized[module].float().contiguous()
        else:
            parameter.data = weights[key].float()
    model.tie_weights()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([IDS])).logits[0]
    ends = {module: weight.float()[[0, -1]] for module, weight in dequantized.items()}
    assert ends.keys() == dict(linears(model)).keys()
    answers = {"token_ids": torch.tensor(IDS), "logprobs": torch.log_softmax(logits, -1)}
    tensors = named("weights", weights) | named("dequantized", ends) | answers
    save(str(FOLDER / "here"), f"{name}.safetensors", tensors, config=config, header=header)


def in_folder(name: str, make: Callable[[Path], Mapping[str, Tensor]]) -> None:
    """`make` saves a folder and returns the library's dequantized weights."""
    with TemporaryDirectory() as folder:
        write(name, Path(folder), make(Path(folder)))


# compressed-tensors


def compressed_tensors() -> None:
    four, eight = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int"}
    group, channel, tensor = {"strategy": "group"}, {"strategy": "channel"}, {"strategy": "tensor"}
    float8 = {"num_bits": 8, "type": "float"}
    each_token = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    static = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}
    for name, weights, more in (
        ("ct_w4a16_g32", four | group | {"group_size": 32}, {}),
        ("ct_w4a16_g64", four | group | {"group_size": 64}, {}),
        ("ct_w4a16_g128", four | group | {"group_size": 128}, {"sizes": WIDE}),
        ("ct_w4a16_channel", four | channel, {"dtype": torch.float16}),
        ("ct_w4a16_asymmetric", four | group | {"group_size": 32, "symmetric": False}, {}),
        ("ct_w8a16_channel", eight | channel, {}),
        ("ct_w8a16_g32", eight | group | {"group_size": 32}, {}),
        ("ct_w8a8", eight | channel, {"inputs": each_token}),
        ("ct_w8a8_static", eight | tensor, {"inputs": static}),
        ("ct_w8a8_asymmetric", eight | channel | {"symmetric": False}, {"inputs": each_token}),
        ("ct_fp8", float8 | channel, {"inputs": each_token | {"type": "float"}}),
        ("ct_fp8_static", float8 | tensor, {"inputs": static | {"type": "float"}}),
    ):
        in_folder(name, lambda folder, weights=weights, more=more: compressed(folder, weights, **more))


def compressed(
    folder: Path,
    weights: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    sizes: Mapping[str, int] = NARROW,
    dtype: torch.dtype = torch.bfloat16,
) -> Mapping[str, Tensor]:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    model = float_model(sizes, dtype)
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config)
    for _, module in linears(model):
        scheme = module.quantization_scheme.weights
        scale = module.weight_scale
        rows = module.weight.data.float()
        groups = rows.reshape(1, -1) if scale.numel() == 1 else rows.view(*scale.shape[:1], scale.shape[-1], -1)
        scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme)
        scale.data = scales.reshape(scale.shape).to(scale.dtype)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zeros.reshape(scale.shape).to(module.weight_zero_point.dtype)
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.05)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return {name: decompressed(module) for name, module in linears(model)}


def decompressed(module: Any) -> Tensor:
    """The numbers of a compressed module: the library computes them in the dtype of the scales, here float32."""
    from compressed_tensors.compressors import BaseCompressor

    tensors = {key: tensor.data for key, tensor in module.named_parameters(recurse=False)}
    tensors["weight_scale"] = tensors["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry(module.quantization_scheme.format)
    made: Tensor = compressor.decompress(tensors, module.quantization_scheme)["weight"]
    return made


# bitsandbytes


def bitsandbytes() -> None:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    narrow = float_model(NARROW, torch.bfloat16)
    for name, options, model in (
        ("bnb_nf4", nf4, narrow),
        ("bnb_nf4_nested", nf4 | {"bnb_4bit_use_double_quant": True}, float_model(RAGGED, torch.bfloat16)),
        ("bnb_fp4", nf4 | {"bnb_4bit_quant_type": "fp4"}, narrow),
        ("bnb_int8", {"load_in_8bit": True}, narrow),
        ("bnb_bert", nf4, masked_model()),
    ):
        in_folder(name, lambda folder, options=options, model=model: in_bitsandbytes(folder, options, model))


def in_bitsandbytes(folder: Path, options: dict[str, Any], model: PreTrainedModel) -> Mapping[str, Tensor]:
    functional = importlib.import_module("bitsandbytes.functional")
    from transformers import BitsAndBytesConfig

    quantized(folder, BitsAndBytesConfig(**options), model)
    loaded = auto(model).from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    made = {}
    for name, module in linears(loaded):
        weight = module.weight
        if "load_in_8bit" in options:
            made[name] = functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        else:
            # As one long row: on a CPU the library gives other numbers for rows that are no multiple of a block
            # (findings/bitsandbytes_rows_across_blocks.sh).
            state = weight.quant_state
            shape, state.dtype, state.shape = state.shape, torch.float32, torch.Size([state.shape.numel()])
            made[name] = functional.dequantize_4bit(weight.data, state).view(shape)
    return made


def quantized(folder: Path, config: Any, model: PreTrainedModel) -> None:
    """Quantizes a model in transformers' way, and saves it."""
    with TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        made = auto(model).from_pretrained(plain, quantization_config=config, dtype=model.dtype, device_map="cpu")
        made.save_pretrained(folder)


def auto(model: PreTrainedModel) -> Any:
    return AutoModelForMaskedLM if isinstance(model, BertForMaskedLM) else AutoModelForCausalLM


# torchao


def torchao() -> None:
    quantization = importlib.import_module("torchao.quantization")
    group = quantization.PerGroup(32)
    for name, config in (
        ("ao_int8", quantization.Int8WeightOnlyConfig()),
        ("ao_int8_g32", quantization.Int8WeightOnlyConfig(granularity=group)),
        ("ao_int8_dynamic", quantization.Int8DynamicActivationInt8WeightConfig()),
        ("ao_intx4", quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group)),
    ):
        in_folder(name, lambda folder, config=config: in_torchao(folder, config))


def in_torchao(folder: Path, config: Any) -> Mapping[str, Tensor]:
    from transformers import TorchAoConfig

    quantized(folder, TorchAoConfig(config), float_model(NARROW, torch.bfloat16))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
    return {name: in_float32(module.weight.data) for name, module in linears(loaded)}


def in_float32(weight: Any) -> Tensor:
    """The numbers of torchao's tensor; its own `dequantize` rounds to the dtype of the scales."""
    from torchao.quantization.quant_primitives import dequantize_affine

    codes, scale, zero = weight.qdata, weight.scale.float(), weight.zero_point
    made: Tensor = dequantize_affine(codes, weight.block_size, scale, zero, torch.int8, output_dtype=torch.float32)
    return made


# GPTQ and AWQ, by GPTQModel


def qparams(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales and zeros [outputs, groups] of a weight [outputs, inputs], float32 numbers."""
    grouped = weight.float().view(len(weight), -1, group)
    high, low = grouped.amax(-1).clamp(min=0), grouped.amin(-1).clamp(max=0)
    if symmetric:
        scale = torch.maximum(high, -low) * 2 / (2**bits - 1)
        return scale, torch.full_like(scale, 2 ** (bits - 1))
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / scale).round()


def gptq() -> None:
    for name, options in (
        ("gptq_g32", {"group_size": 32}),
        ("gptq_v2_g32", {"group_size": 32, "version": "gptq_v2"}),
        ("gptq_act_order", {"group_size": 32, "desc_act": True}),
        ("gptq_asymmetric", {"group_size": 32, "sym": False}),
        ("gptq_v2_asymmetric", {"group_size": 32, "sym": False, "version": "gptq_v2"}),
        ("gptq_g128", {"group_size": 128, "sizes": WIDE}),
        ("gptq_8bit_rows", {"bits": 8, "group_size": -1}),
        ("gptq_8bit_act_order", {"bits": 8, "group_size": 32, "desc_act": True, "version": "gptq_v2"}),
        ("gptq_rows", {"group_size": -1}),
    ):
        in_folder(name, lambda folder, options=options: in_gptq(folder, **options))


def in_gptq(
    folder: Path, sizes: Mapping[str, int] = NARROW, version: str = "gptq", bits: int = 4, **options: Any
) -> Mapping[str, Tensor]:
    from gptqmodel import QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    group_size, sym, desc_act = options["group_size"], options.get("sym", True), options.get("desc_act", False)
    model = float_model(sizes, torch.float16)
    config = QuantizeConfig(bits=bits, group_size=group_size, sym=sym, desc_act=desc_act)
    made = {}
    for name, module in list(linears(model)):
        outputs, inputs = module.weight.shape
        group = inputs if group_size < 0 else group_size
        order = (
            torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))
            if desc_act
            else torch.arange(inputs)
        )
        scales, zeros = qparams(module.weight[:, order], bits, group, sym)
        groups = torch.empty(inputs, dtype=torch.int32)
        groups[order] = torch.arange(inputs, dtype=torch.int32) // group
        packed = TorchLinear(
            bits=bits, group_size=group_size, sym=sym, desc_act=desc_act, in_features=inputs, out_features=outputs,
            bias=module.bias is not None, pack_dtype=torch.int32, register_buffers=True,
        )  # fmt: skip
        linear = nn.Linear(inputs, outputs, bias=module.bias is not None)
        linear.weight.data, linear.bias = module.weight.float(), module.bias
        packed.pack(linear, scales, zeros.to(torch.int32), groups)
        packed.qzero_format(format=2)
        packed.post_init()
        scales16 = packed.scales
        packed.scales, packed.dequant_dtype = scales16.float(), torch.int32
        made[name] = packed.dequantize_weight().T.contiguous()
        packed.scales = scales16.half()
        if version == "gptq":
            convert_gptq_v2_to_v1_format_module(packed, config)
        kept = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
        replace(model, name, kept | ({} if module.bias is None else {"bias": module.bias.data}))
    settings = {"bits": bits, "group_size": group_size, "sym": sym, "desc_act": desc_act, "lm_head": False}
    settings |= {"quant_method": "gptq", "checkpoint_format": version, "pack_dtype": "int32", "true_sequential": True}
    saved(model, folder, settings)
    return made


def awq() -> None:
    for name, options in (
        ("awq_g32", {"group_size": 32}),
        ("awq_g128", {"group_size": 128, "sizes": WIDE}),
        ("awq_symmetric", {"group_size": 64, "sym": True}),
    ):
        in_folder(name, lambda folder, options=options: in_awq(folder, **options))


def in_awq(folder: Path, group_size: int, sym: bool = False, sizes: Mapping[str, int] = NARROW) -> Mapping[str, Tensor]:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    model = float_model(sizes, torch.float16)
    made = {}
    for name, module in list(linears(model)):
        outputs, inputs = module.weight.shape
        scales, zeros = qparams(module.weight, 4, group_size, sym)
        packed = AwqTorchLinear(
            bits=4, group_size=group_size, sym=sym, desc_act=False, in_features=inputs, out_features=outputs,
            bias=module.bias is not None, register_buffers=True,
        )  # fmt: skip
        packed.pack(module, scales.half(), zeros.half())
        made[name] = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, group_size).T.contiguous()
        kept = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales")}
        replace(model, name, kept | ({} if module.bias is None else {"bias": module.bias.data}))
    saved(model, folder, {"bits": 4, "group_size": group_size, "zero_point": not sym, "version": "gemm",
        "quant_method": "awq", "modules_to_not_convert": None})  # fmt: skip
    return made


def replace(model: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Puts a module with these tensors into the place of a linear one."""
    parent, _, leaf = name.rpartition(".")
    module = nn.Module()
    for key, tensor in tensors.items():
        module.register_buffer(key, tensor.contiguous())
    setattr(model.get_submodule(parent), leaf, module)


def saved(model: Glm4ForCausalLM, folder: Path, quantization: dict[str, Any]) -> None:
    """Saves a model whose modules are packed, with the `quantization_config` that GPTQModel writes."""
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"quantization_config": quantization, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        globals()[name]()


if __name__ == "__main__":
    main()
