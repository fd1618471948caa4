"""Float weights, without quantization."""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from quant import cpu
from quant.operators.float_linear import DTYPES, float_linear
from quant.rows import finite
from quant.scheme import SPREAD, HeadScheme, Narrowing, ReduceMax, Stored, Tensors, identity, num_bytes
from quant.scheme_facts import SchemeFacts

FACTS = SchemeFacts(description="weights as the checkpoint has them", bits=16, head=True)


class Float(HeadScheme):
    """The float weight itself, in `dtype`. The rows that it multiplies may be in another one."""

    name = "none"
    facts = FACTS

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls(dtype or torch.float32)

    @classmethod
    def kernels(cls) -> str:
        if cpu.variant() is None:
            return "torch in float32; rows are padded to 16, so that bits do not depend on the batch"
        return f"{cpu.describe()}; weights stay as they are stored"

    @staticmethod
    def kept(found: torch.dtype) -> torch.dtype:
        """The dtype in which a CPU keeps weights that are `found` in a file: the same one if its kernels read it."""
        return found if cpu.variant() is not None and found in DTYPES else torch.float32

    def tensors(self, out_features: int, in_features: int) -> Stored:
        return {"weight": ((out_features, in_features), self.dtype)}

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        return {"weight": finite(weight, self.dtype)}

    def dequantize(self, stored: Tensors) -> Tensor:
        return stored["weight"].float()

    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        numbers = torch.randn(out_features, in_features, generator=generator)
        return {"weight": numbers.mul_(SPREAD).to(self.dtype)}

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        return dim, start, length

    def pack(self, stored: Tensors) -> Tensors:
        return stored

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        return num_bytes(self.tensors(out_features, in_features))

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        weight = packed["weight"]
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):  # kernels have no gradients
            return F.linear(x, weight.to(x.dtype), bias)
        return float_linear(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], out_features)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        return F.embedding(index, packed["weight"])


SCHEME = Float
