"""LLM.int8(), a scheme of bitsandbytes."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from quant import bitsandbytes
from quant.scheme import Tensors
from quant.scheme_facts import SchemeFacts
from quant.schemes.int8 import Int8

FACTS = SchemeFacts(
    description="a byte a weight, inputs with outliers multiplied as floats",
    bits=8,
    calibrates=True,
    default_head="int8",
    extra="bnb",
)


class LlmInt8(Int8):
    """LLM.int8() (arXiv 2208.07339): stored like `Int8`, multiplied by int8 inputs except those with an outlier.

    An input that is 6 or more in any row of a call is a float in all rows of that call. So by its method a row depends
    on the rows beside it, on every device: a request's numbers change a little with the requests in its batch. Other
    inputs have one int8 scale per row. Without AVX-512, and on a GPU if the number of inputs is no multiple of 4,
    bitsandbytes makes a float copy of the weight at each call.
    """

    name = "llm-int8"
    facts = FACTS
    THRESHOLD = 6.0

    def __init__(self) -> None:
        super().__init__()
        bitsandbytes.require(self.name)

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls()

    @classmethod
    def kernels(cls) -> str:
        return bitsandbytes.describe()

    def pack(self, stored: Tensors) -> Tensors:
        return {name: tensor.contiguous() for name, tensor in stored.items()}

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        return super().packed_bytes(out_features, in_features, "cuda")  # as stored

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        flat = flat if flat.dtype in bitsandbytes.FLOATS else flat.float()
        if not len(flat):
            return x.new_empty(*x.shape[:-1], out_features)
        library = bitsandbytes.library()
        state = library.MatmulLtState()
        state.CB, state.SCB = packed["weight"], packed["weight_scale"].float() * 127  # the rows' absmax
        state.threshold, state.has_fp16_weights, state.is_training = self.THRESHOLD, False, False
        bias = bias if bias is None else bias.to(flat.dtype)
        # A copy: outliers are taken out of it for a moment.
        out: Tensor = library.matmul(flat.clone(), packed["weight"], bias=bias, state=state)
        return out.to(x.dtype).reshape(*x.shape[:-1], out_features)

    def activation_bits(self, device: str) -> int:
        return 8

    def copies_weight(self, capability: float | None, rows: int) -> bool:
        return False


SCHEME = LlmInt8
