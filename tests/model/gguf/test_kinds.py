"""The kinds of blocks: the numbers are gguf-py's, bit for bit, whatever the bytes are."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from model.gguf.kinds import BY_NUMBER, Kind

HALVES = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (208,)}  # where float16 numbers are; 0 and 2 elsewhere
QUANTIZED = {number: kind for number, kind in BY_NUMBER.items() if kind.dequantized is not None}


def blocks(kind: Kind, seed: int, rows: int = 3, count: int = 2) -> np.ndarray:
    """Random blocks whose scales are finite."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, count, kind.num_bytes), dtype=np.uint8)
    for at in HALVES.get(kind.name, (0, 2)):
        raw[..., at : at + 2] = rng.normal(0, 0.02, (rows, count, 1)).astype(np.float16).view(np.uint8)
    return raw


@pytest.mark.parametrize("number", QUANTIZED, ids=lambda number: BY_NUMBER[number].name)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_numbers_are_those_of_gguf_py(number: int, seed: int) -> None:
    kind = BY_NUMBER[number]
    assert (kind.name, (kind.block, kind.num_bytes)) == (
        gguf.GGMLQuantizationType(number).name,
        gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)],
    )
    raw = blocks(kind, seed)
    theirs = dequantize(raw.reshape(len(raw), -1), gguf.GGMLQuantizationType(number))
    assert torch.equal(kind.numbers(torch.from_numpy(raw)).flatten(1), torch.from_numpy(theirs))


@pytest.mark.parametrize("number", [n for n, kind in BY_NUMBER.items() if kind.scheme], ids=lambda n: BY_NUMBER[n].name)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_kept_form_has_exactly_the_same_numbers(number: int, seed: int) -> None:
    kind = BY_NUMBER[number]
    assert kind.scheme is not None
    assert kind.stored is not None
    raw = torch.from_numpy(blocks(kind, seed))
    stored = kind.stored(raw)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()}
    assert shapes == kind.scheme.tensors(len(raw), raw.shape[1] * kind.block)
    assert torch.equal(kind.scheme.dequantize(stored), kind.numbers(raw).flatten(1))


def test_every_kind_of_gguf_py_is_known_by_its_number() -> None:
    for number, kind in BY_NUMBER.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
