"""The schemes of bitsandbytes: NF4 and LLM.int8(), an optional dependency.

Measured with bitsandbytes 0.50.2 on one core, a 4096 × 4096 weight, one row: NF4 takes 0.4 ms on a CPU with AVX-512
bfloat16 instructions, 50 ms on another, where each call makes a float copy of the weight.
"""

import importlib
import logging
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.schemes import _MIN_ROWS, Across, Cut, Int8, Stored, Tensors, _finite, itself

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)  # that bitsandbytes computes in
_ROWS = 1024  # outputs repacked at once, a multiple of `Nf4._OUTPUTS`: what is unpacked for a moment stays small


@cache
def _library() -> Any:
    """bitsandbytes, imported on first use. Raises ImportError."""
    # It says that a package is missing, and warns at every product that it rounds to float16.
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    # That package would have it fetch a kernel from the Hugging Face hub while it is imported.
    had = "kernels" in sys.modules
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if had:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]


def _needed_by(scheme: str) -> None:
    """Raises ValueError where bitsandbytes is not installed."""
    try:
        _library()
    except ImportError as error:
        raise ValueError(f"{scheme} needs bitsandbytes: pip install 'glm-infill[bnb]'") from error


class Nf4:
    """NF4, 16 levels with equal shares of a normal distribution, and one absmax for 64 inputs (arXiv 2305.14314).

    Stored as matrices of bitsandbytes' own bytes (without double quantization): codes two a byte, element 2i in the
    high nibble, and absmaxes. On a CPU with AVX-512 bfloat16 instructions products are of
    inputs and absmaxes rounded to bfloat16 (a relative error of 0.3 %; NF4's own is 9 %), for multiples of 32 outputs;
    elsewhere on a CPU of a float copy of the weight. Both keep the promise that an output row depends on its own input
    row only. On a GPU bitsandbytes chooses kernels by the number of rows, and rows differ in their last bits.
    """

    name = "nf4"
    BLOCK = 64  # inputs that share an absmax
    _OUTPUTS = 32  # outputs of a tile of the fused CPU kernel

    def __init__(self) -> None:
        _needed_by(self.name)

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features % self.BLOCK:
            raise ValueError(f"nf4 needs a multiple of {self.BLOCK} inputs, not {in_features}")
        return {
            "weight": ((out_features, in_features // 2), torch.uint8),
            "absmax": ((out_features, in_features // self.BLOCK), torch.float32),
        }

    def quantize(self, weight: Tensor, across: Across = itself) -> Tensors:
        outputs, inputs = weight.shape
        self.tensors(outputs, inputs)
        codes, state = _library().functional.quantize_4bit(_finite(weight), blocksize=self.BLOCK, quant_type="nf4")
        return {"weight": codes.view(outputs, -1), "absmax": state.absmax.view(outputs, -1)}

    def dequantize(self, stored: Tensors) -> Tensor:
        weight = stored["weight"].contiguous()
        out: Tensor = _library().functional.dequantize_4bit(weight.view(-1, 1), self._state(weight, stored["absmax"]))
        return out

    def narrow(self, name: str, dim: int, start: int, length: int) -> Cut | None:
        if dim == 0:
            return 0, start, length
        if start % self.BLOCK or length % self.BLOCK:
            raise ValueError(f"a cut of inputs at {start} + {length} goes through a block of {self.BLOCK}")
        size = 2 if name == "weight" else self.BLOCK
        return 1, start // size, length // size

    def pack(self, stored: Tensors) -> Tensors:
        weight, absmax = stored["weight"].contiguous(), stored["absmax"].contiguous()
        functional = _library().functional
        if weight.is_cuda or weight.shape[0] % self._OUTPUTS or not functional.has_avx512bf16():
            return {"weight": weight, "absmax": absmax}
        pieces = [slice(start, start + _ROWS) for start in range(0, len(weight), _ROWS)]
        parts = [
            functional._convert_weight_packed_for_cpu(weight[piece], self._state(weight[piece], absmax[piece]))
            for piece in pieces
        ]
        return {
            "weight": torch.cat([codes for codes, _ in parts]),
            "absmax": torch.cat([state.absmax for _, state in parts], dim=1),
        }

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        weight, state = packed["weight"], self._state(packed["weight"], packed["absmax"])
        flat = x.reshape(-1, x.shape[-1])
        rows = len(flat)
        flat = flat if flat.dtype in _FLOATS else flat.float()
        if not rows:
            return x.new_empty(*x.shape[:-1], out_features)
        if not weight.is_cuda and not state.packing_format_for_cpu:
            flat = F.pad(flat, (0, 0, 0, max(_MIN_ROWS - rows, 0)))
        bias = bias if bias is None else bias.to(flat.dtype)
        out: Tensor = _library().matmul_4bit(flat.contiguous(), weight, state, bias=bias)
        return out[:rows].to(x.dtype).reshape(*x.shape[:-1], out_features)

    def _state(self, weight: Tensor, absmax: Tensor) -> Any:
        """What bitsandbytes knows of codes [out, in/2]; absmax is bfloat16 [blocks, out] for its fused CPU kernel."""
        functional = _library().functional
        fused = absmax.dtype == torch.bfloat16
        state = functional.QuantState(
            absmax if fused else absmax.contiguous().view(-1),
            torch.Size((weight.shape[0], weight.shape[1] * 2)),
            functional.get_4bit_type("nf4", device=weight.device),
            self.BLOCK,
            "nf4",
            torch.float32,
        )
        state.packing_format_for_cpu = fused
        return state


class LlmInt8(Int8):
    """LLM.int8(): stored as `Int8`, multiplied by inputs in int8, but for those with an outlier (arXiv 2208.07339).

    An input that is 6 or more in any row of a call is multiplied as a float in all of them. So rows do depend on their
    company, by the method itself, on every device: a request's numbers change a little with the requests beside it.
    Inputs have one int8 scale a row; without AVX-512 and where inputs are no multiple of 4 on a GPU, bitsandbytes makes
    a float copy of the weight at each call.
    """

    name = "llm-int8"
    THRESHOLD = 6.0

    def __init__(self) -> None:
        _needed_by(self.name)

    def pack(self, stored: Tensors) -> Tensors:
        return {name: tensor.contiguous() for name, tensor in stored.items()}

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        flat = flat if flat.dtype in _FLOATS else flat.float()
        if not len(flat):
            return x.new_empty(*x.shape[:-1], out_features)
        library = _library()
        state = library.MatmulLtState()
        state.CB, state.SCB = packed["weight"], packed["weight_scale"].float() * 127  # the rows' absmax
        state.threshold, state.has_fp16_weights, state.is_training = self.THRESHOLD, False, False
        bias = bias if bias is None else bias.to(flat.dtype)
        # A copy: outliers are taken out of it for a moment.
        out: Tensor = library.matmul(flat.clone(), packed["weight"], bias=bias, state=state)
        return out.to(x.dtype).reshape(*x.shape[:-1], out_features)
