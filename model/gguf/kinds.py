"""The kinds of blocks in which ggml stores numbers: how to dequantize them, and which scheme has the same numbers.

A block holds so many successive numbers of a row. Sources: ggml, src/ggml-common.h (layouts) and src/ggml-quants.c
(dequantize_row_*); gguf-py, which the tests hold this against. The products are those of ggml, in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.packing import pair_halves
from quant.scheme import Scheme, Tensors
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8

_SUPER = 256  # numbers of a block of the K kinds


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. `block` numbers take `num_bytes` bytes.

    `dequantized` makes float32 [rows, blocks, block] of uint8 [rows, blocks, num_bytes]. `dtype` is that of a kind
    which is a plain float. `scheme` holds exactly the same numbers, as `stored` makes them from the bytes.
    """

    name: str
    block: int
    num_bytes: int
    dequantized: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype | None = None
    scheme: Scheme | None = None
    stored: Callable[[Tensor], Tensors] | None = None

    def numbers(self, raw: Tensor) -> Tensor:
        """The numbers [..., blocks, block] of bytes [..., blocks, num_bytes]; floats are a view of the bytes."""
        if self.dequantized is not None:
            return self.dequantized(raw)
        assert self.dtype is not None
        return raw.view(self.dtype)


def _half(raw: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, [rows, blocks, 1]: a copy."""
    return raw[..., at : at + 2].contiguous().view(torch.float16)


def _nibbles(codes: Tensor) -> Tensor:
    """Bytes [..., n] → their low nibbles, then their high ones, [..., 2n]."""
    return torch.cat([codes & 15, codes >> 4], dim=-1)


def _fifth_bits(raw: Tensor, at: int) -> Tensor:
    """The bits of the 32-bit word at a byte of each block, shifted to the fifth place: uint8 [rows, blocks, 32]."""
    word = raw[..., at : at + 4, None]
    shifts = torch.arange(8, dtype=torch.uint8)
    return (word >> shifts & 1).flatten(-2) << 4


def _q4_0(raw: Tensor) -> Tensor:
    return (_nibbles(raw[..., 2:]).to(torch.int8) - 8).float() * _half(raw, 0).float()


def _q4_1(raw: Tensor) -> Tensor:
    return _nibbles(raw[..., 4:]).float() * _half(raw, 0).float() + _half(raw, 2).float()


def _q5_0(raw: Tensor) -> Tensor:
    codes = (_nibbles(raw[..., 6:]) | _fifth_bits(raw, 2)).to(torch.int8) - 16
    return codes.float() * _half(raw, 0).float()


def _q5_1(raw: Tensor) -> Tensor:
    codes = _nibbles(raw[..., 8:]) | _fifth_bits(raw, 4)
    return codes.float() * _half(raw, 0).float() + _half(raw, 2).float()


def _q8_0(raw: Tensor) -> Tensor:
    return raw[..., 2:].view(torch.int8).float() * _half(raw, 0).float()


def _steps(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The steps and the offsets of the eight groups of a Q4_K or Q5_K block, float32 [rows, blocks, 8, 1] each.

    Both have 6 bits. Groups 0–3 keep theirs in the low bits of bytes 0–3 and 4–7; groups 4–7 in the nibbles of bytes
    8–11, and their two highest bits in the high bits of the first eight bytes.
    """
    first, second, third = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    steps = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1).float() * _half(raw, 0).float()
    offsets = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1).float() * _half(raw, 2).float()
    return steps[..., None], offsets[..., None]


def _groups(codes: Tensor) -> Tensor:
    """Bytes [..., 128] → the eight groups of 32 nibbles, [..., 8, 32]: the low ones of 32 bytes, then their high
    ones."""
    quarters = codes.reshape(*codes.shape[:-1], 4, 32)
    return torch.stack([quarters & 15, quarters >> 4], dim=-2).flatten(-3, -2)


def _q4_k(raw: Tensor) -> Tensor:
    steps, offsets = _steps(raw)
    return (_groups(raw[..., 16:]).float() * steps - offsets).flatten(-2)


def _q5_k(raw: Tensor) -> Tensor:
    steps, offsets = _steps(raw)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = raw[..., 16:48].unsqueeze(-2) >> shifts & 1  # bit g of a byte belongs to group g
    return ((_groups(raw[..., 48:]) | high << 4).float() * steps - offsets).flatten(-2)


def _q6_k(raw: Tensor) -> Tensor:
    blocks = raw.shape[:-1]
    low = raw[..., :128].reshape(*blocks, 2, 2, 32)  # halves of a block, halves of those, bytes
    low = torch.cat([low & 15, low >> 4], dim=-2)  # [..., 2, 4, 32]
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = raw[..., 128:192].reshape(*blocks, 2, 1, 32) >> shifts & 3
    codes = (low | high << 4).to(torch.int8) - 32
    steps = raw[..., 192:208].contiguous().view(torch.int8).float() * _half(raw, 208).float()
    return (codes.reshape(*blocks, 16, 16).float() * steps[..., None]).flatten(-2)


def _int4(raw: Tensor) -> Tensors:
    """The stored form of `Int4(32)`."""
    return {"weight": pair_halves(raw[..., 2:]), "weight_scale": _half(raw, 0).squeeze(-1)}


def _int8(raw: Tensor) -> Tensors:
    """The stored form of `Int8(32)`."""
    return {"weight": raw[..., 2:].flatten(-2).view(torch.int8), "weight_scale": _half(raw, 0).squeeze(-1)}


# By the numbers of ggml_type.
BY_NUMBER = {
    0: Kind("F32", 1, 4, dtype=torch.float32),
    1: Kind("F16", 1, 2, dtype=torch.float16),
    2: Kind("Q4_0", 32, 18, _q4_0, scheme=Int4(32), stored=_int4),
    3: Kind("Q4_1", 32, 20, _q4_1),
    6: Kind("Q5_0", 32, 22, _q5_0),
    7: Kind("Q5_1", 32, 24, _q5_1),
    8: Kind("Q8_0", 32, 34, _q8_0, scheme=Int8(32), stored=_int8),
    12: Kind("Q4_K", _SUPER, 144, _q4_k),
    13: Kind("Q5_K", _SUPER, 176, _q5_k),
    14: Kind("Q6_K", _SUPER, 210, _q6_k),
    30: Kind("BF16", 1, 2, dtype=torch.bfloat16),
}
# Kinds that are not read, for messages.
NAMES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
