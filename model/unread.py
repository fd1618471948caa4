"""The quantizations of other libraries that no format of `model.formats` reads, for messages."""

from collections.abc import Mapping
from typing import Any

_METHODS = {
    "aqlm": "additive codebooks (AQLM)",
    "auto-round": "AutoRound",
    "bitnet": "ternary weights (BitNet)",
    "eetq": "the 8-bit layout of EETQ",
    "exl2": "ExLlamaV2's mixed bits",
    "exl3": "ExLlamaV3's trellis codes",
    "fbgemm_fp8": "FP8 of FBGEMM",
    "fp8": "FP8 with a scale for each block, as DeepSeek publishes it",
    "fp_quant": "4-bit floats of FP-Quant",
    "gguf": "GGUF tensors",
    "higgs": "HIGGS' codebooks",
    "hqq": "half-quadratic quantization (HQQ)",
    "intel/auto-round": "AutoRound",
    "metal": "4-bit weights for Apple's Metal",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "4-bit floats of OCP MX",
    "nvfp4": "NVIDIA's 4-bit floats",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "sinq": "SINQ",
    "spqr": "sparse and quantized weights (SpQR)",
    "vptq": "vector codebooks (VPTQ)",
}
_MLX = "MLX weights for Apple's chips"
_WAY_OUT = "serve the float folder that it was made from, with --quant, or have its library save floats"


def unread(quantization: Any) -> str:
    """What a `quantization_config` that is not read stands for, and what to do: the rest of a message."""
    if not isinstance(quantization, Mapping):
        return f"is {quantization!r}, no object"
    method = quantization.get("quant_method")
    if method is None and {"bits", "group_size"} <= quantization.keys():
        return f"is that of {_MLX}, which are not read; {_WAY_OUT}"
    if method is None:
        return "has no quant_method"
    words = _METHODS.get(method) if isinstance(method, str) else None
    return f"has quant_method {method!r}{f' ({words})' if words else ''}, which is not read; {_WAY_OUT}"
