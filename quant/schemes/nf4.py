"""NF4, a scheme of bitsandbytes."""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from quant import bitsandbytes
from quant.rows import MIN_ROWS, finite
from quant.scheme import SPREAD, Narrowing, ReduceMax, Scheme, Stored, Tensors, identity
from quant.scheme_facts import SchemeFacts
from quant.usage import UsageError

FACTS = SchemeFacts(
    description="half a byte a weight, levels of a normal distribution", bits=4, default_head="int8", extra="bnb"
)
_ROWS = 1024  # outputs repacked at once, a multiple of `Nf4._OUTPUTS`: what is unpacked for a moment stays small


class Nf4(Scheme):
    """NF4: 16 levels of equal probability under a normal distribution, one absmax per 64 inputs (arXiv 2305.14314).

    The stored form is bitsandbytes' own, without double quantization: two codes a byte, element 2i in the high nibble,
    and absmaxes. On a CPU with AVX-512 bfloat16 instructions, for multiples of 32 outputs, products round inputs and
    absmaxes to bfloat16 (a relative error of 0.3 %; NF4's own is 9 %). Otherwise a CPU multiplies by a float copy of
    the weight. Both keep the promise that an output row depends on its own input row only. On a GPU bitsandbytes
    chooses kernels by the number of rows, so the last bits of a row depend on it.
    """

    name = "nf4"
    facts = FACTS
    BLOCK = 64  # inputs that share an absmax
    _OUTPUTS = 32  # outputs of a tile of the fused CPU kernel

    def __init__(self) -> None:
        bitsandbytes.require(self.name)

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls()

    @classmethod
    def kernels(cls) -> str:
        return bitsandbytes.describe()

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features % self.BLOCK:
            raise UsageError(f"nf4 needs a multiple of {self.BLOCK} inputs, not {in_features}")
        return {
            "weight": ((out_features, in_features // 2), torch.uint8),
            "absmax": ((out_features, in_features // self.BLOCK), torch.float32),
        }

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        outputs, inputs = weight.shape
        self.tensors(outputs, inputs)
        codes, state = bitsandbytes.library().functional.quantize_4bit(
            finite(weight), blocksize=self.BLOCK, quant_type="nf4"
        )
        return {"weight": codes.view(outputs, -1), "absmax": state.absmax.view(outputs, -1)}

    def dequantize(self, stored: Tensors) -> Tensor:
        weight = stored["weight"].contiguous()
        out: Tensor = bitsandbytes.library().functional.dequantize_4bit(
            weight.view(-1, 1), self._state(weight, stored["absmax"])
        )
        return out

    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        shapes = {name: shape for name, (shape, _) in self.tensors(out_features, in_features).items()}
        return {
            "weight": torch.randint(0, 256, shapes["weight"], dtype=torch.uint8, generator=generator),
            "absmax": torch.full(shapes["absmax"], 2 * SPREAD),
        }

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        if dim == 0:
            return 0, start, length
        if start % self.BLOCK or length % self.BLOCK:
            raise UsageError(f"a cut of inputs at {start} + {length} goes through a block of {self.BLOCK}")
        size = 2 if name == "weight" else self.BLOCK
        return 1, start // size, length // size

    def pack(self, stored: Tensors) -> Tensors:
        weight, absmax = stored["weight"].contiguous(), stored["absmax"].contiguous()
        functional = bitsandbytes.library().functional
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

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        blocks = out_features * in_features // self.BLOCK
        fused = (
            device == "cpu" and not out_features % self._OUTPUTS and bitsandbytes.library().functional.has_avx512bf16()
        )
        return blocks * (self.BLOCK // 2 + (2 if fused else 4))

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        weight, state = packed["weight"], self._state(packed["weight"], packed["absmax"])
        flat = x.reshape(-1, x.shape[-1])
        rows = len(flat)
        flat = flat if flat.dtype in bitsandbytes.FLOATS else flat.float()
        if not rows:
            return x.new_empty(*x.shape[:-1], out_features)
        if not weight.is_cuda and not state.packing_format_for_cpu:
            flat = F.pad(flat, (0, 0, 0, max(MIN_ROWS - rows, 0)))
        bias = bias if bias is None else bias.to(flat.dtype)
        out: Tensor = bitsandbytes.library().matmul_4bit(flat.contiguous(), weight, state, bias=bias)
        return out[:rows].to(x.dtype).reshape(*x.shape[:-1], out_features)

    def _state(self, weight: Tensor, absmax: Tensor) -> Any:
        """bitsandbytes' state of codes [out, in/2]. absmax is bfloat16 [blocks, out] for its fused CPU kernel."""
        functional = bitsandbytes.library().functional
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

    def activation_bytes(self, in_features: int, device: str) -> int:
        return 2 * in_features if device == "cpu" else 0  # a bfloat16 copy of the row


SCHEME = Nf4
