"""Operators: a kernel and its plain twin agree, and a file there is an operator that torch knows."""

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

import quant.operators
from quant import cpu
from quant.operators.add_low_rank import add_low_rank
from quant.operators.attention import attention
from quant.operators.gelu_tanh import gelu_tanh
from quant.operators.quantize_vectors import quantize_vectors
from tests.quant.conftest import drawn, running

KERNELS = cpu.kernels().supported()


def test_every_file_is_an_operator_but_the_product_in_tiles_and_the_sampler_s_draw() -> None:
    names = {module.name for module in pkgutil.iter_modules(quant.operators.__path__)} - {"tiled", "draw"}
    assert names == {
        "add_low_rank", "attention", "float_linear", "gelu_tanh", "int4_linear", "int8_linear", "quantize_vectors",
    }  # fmt: skip
    for name in names:
        importlib.import_module(f"quant.operators.{name}")
        operator = getattr(torch.ops.glm_infill, name).default
        assert f"glm_infill::{name}(" in str(operator._schema)


@pytest.mark.parametrize("variant", KERNELS)
def test_gelu(variant: str) -> None:
    x = torch.linspace(-9, 9, 1001)
    with running("torch"):
        expected = gelu_tanh(x)
    with running(variant):
        torch.testing.assert_close(gelu_tanh(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", KERNELS)
def test_vectors_to_the_bit(variant: str) -> None:
    x = drawn(0, 7, 3, 48)
    with running("torch"):
        expected = quantize_vectors(x)
    with running(variant):
        assert all(torch.equal(a, b) for a, b in zip(quantize_vectors(x), expected, strict=True))


@pytest.mark.parametrize("variant", KERNELS)
@pytest.mark.parametrize("in_int8", [False, True])
def test_attention(variant: str, in_int8: bool) -> None:
    query, keys, values = (torch.randn(n, 3, 16, generator=torch.Generator().manual_seed(n)) for n in (4, 24, 25))
    cache: list[Tensor] = [keys, values[:24].contiguous()]
    scales: list[Tensor] = []
    if in_int8:
        (keys, key_scales), (values, value_scales) = map(quantize_vectors, cache)
        cache, scales = [keys, values], [key_scales, value_scales]
    rows = torch.tensor([[0, 3, 4, 5], [0, 3, 4, 6], [2, 4, 4, 4], [1, 0, 0, 7]])
    blocks = torch.tensor([5, 0, 3, 1])
    operands: list[Any] = [query, *cache, rows, blocks, 4, *scales]
    with running("torch"):
        expected = attention(*operands)
    with running(variant):
        torch.testing.assert_close(attention(*operands), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [[[0, 0, 0, -1]], [[0, 3, 4, 99]], [[-1, 3, 4, 5]]])
def test_plain_attention_refuses_what_is_not_there(rows: list[list[int]]) -> None:
    query, cache = drawn(0, 1, 3, 8), drawn(1, 8, 3, 8)
    with running("torch"), pytest.raises(IndexError, match="a row of attention sees nothing"):
        attention(query, cache, cache, torch.tensor(rows), torch.tensor([1, 0]), 4)


@pytest.mark.parametrize("variant", KERNELS)
def test_low_rank(variant: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, out = (torch.randn(20, n, generator=generator) for n in (32, 48))
    down, up = ([torch.randn(r, n, generator=generator) for r in (4, 2)] for n in (32, 24))
    entries = torch.tensor([*((row, 0) for row in range(18)), *((row, 1) for row in (3, 19))])
    arguments = (x, entries, [18, 2], down, up, [0, 24])
    plain, fast = out.clone(), out.clone()
    with running("torch"):
        add_low_rank(plain, *arguments)
    with running(variant):
        add_low_rank(fast, *arguments)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    assert not torch.equal(fast, out)
