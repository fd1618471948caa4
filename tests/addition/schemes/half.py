"""A toy scheme: every weight a bfloat16, in a file of its own."""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.rows import finite, linear
from quant.scheme import SPREAD, HeadScheme, Narrowing, ReduceMax, Stored, Tensors, identity, num_bytes
from quant.scheme_facts import SchemeFacts

FACTS = SchemeFacts(description="two bytes a weight", bits=12, head=True)


class Half(HeadScheme):
    """The upper half of a float32's bits."""

    name = "half"
    facts = FACTS

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls()

    @classmethod
    def kernels(cls) -> str:
        return "torch linear over float32 copies"

    def tensors(self, out_features: int, in_features: int) -> Stored:
        return {"halves": ((out_features, in_features), torch.bfloat16)}

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        return {"halves": finite(weight, torch.bfloat16)}

    def dequantize(self, stored: Tensors) -> Tensor:
        return stored["halves"].float()

    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        return self.quantize(torch.randn(out_features, in_features, generator=generator) * SPREAD)

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        return dim, start, length

    def pack(self, stored: Tensors) -> Tensors:
        return stored

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        return num_bytes(self.tensors(out_features, in_features))

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        return linear(x, packed["halves"].to(x.dtype), bias)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        return F.embedding(index, packed["halves"]).float()


SCHEME = Half
