"""Float weights, without quantization."""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.rows import finite, linear
from quant.scheme import SPREAD, HeadScheme, Narrowing, ReduceMax, Stored, Tensors, identity, num_bytes
from quant.scheme_facts import SchemeFacts

FACTS = SchemeFacts(description="weights as the checkpoint has them", bits=16, head=True)


class Float(HeadScheme):
    """The float weight itself."""

    name = "none"
    facts = FACTS

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls(dtype or torch.float32)

    @classmethod
    def kernels(cls) -> str:
        return "torch in float32; rows are padded to 16, so that bits do not depend on the batch"

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
        return linear(x, packed["weight"], bias)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        return F.embedding(index, packed["weight"])


SCHEME = Float
