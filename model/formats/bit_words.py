"""Codes of a few bits in int32 words, as GPTQ, AWQ and compressed-tensors pack them: the lowest bits first."""

import torch
from torch import Tensor

WORD = 32


def words_for(count: int, bits: int) -> int:
    """Words that hold `count` codes of so many bits."""
    return -(-count * bits // WORD)


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 words [rows, words] → uint8 codes [rows, words · 32 / bits], for 4 or 8 bits."""
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # a single column has any stride
    if bits == 8:
        return octets
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(-2)


def covering(start: int, count: int, bits: int) -> tuple[int, int, int]:
    """Where `count` codes from `start` on lie: the first word, the number of words, the place of the first code."""
    a_word = WORD // bits
    first = start // a_word
    return first, -(-(start + count) // a_word) - first, start % a_word
