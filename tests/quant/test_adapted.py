"""Low-rank products and biases of some rows: against plain products, and bit for bit whatever the neighbours are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import cpu
from quant.adapted import Adapted, LowRank, Selection
from quant.linear import Linear
from quant.operators.add_low_rank import add_low_rank
from quant.schemes.int4 import Int4
from quant.schemes.none import Float


@pytest.fixture(params=[*cpu.kernels().supported(), "torch"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(cpu.CHOICE, request.param)
    return str(request.param)


def adapted(inputs: int, outputs: int, ranks: list[int]) -> Adapted:
    """A layer with adapters 1, 2, …; one of rank 0 has a bias alone."""
    draw = torch.Generator().manual_seed(0)
    layer = Adapted(Selection(torch.device("cpu")))
    for number, rank in enumerate(ranks, 1):
        if rank:
            first, width = (0, outputs) if number % 2 else (outputs // 3, outputs // 2)
            down, up = torch.randn(rank, inputs, generator=draw), torch.randn(rank, width, generator=draw)
            layer.pieces[number] = (LowRank(down, up, first),)
        else:
            layer.biases[number] = torch.randn(outputs, generator=draw)
    return layer


def plain(layer: Adapted, out: torch.Tensor, x: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    out = out.double()
    for row, number in enumerate(numbers):
        for piece in layer.pieces.get(number, ()):
            out[row, piece.first : piece.last] += piece.up.double().T @ (piece.down.double() @ x[row].double())
        out[row] += layer.biases.get(number, torch.zeros(1))
    return out


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (50, 7), (3, 4100)])
def test_rows_get_what_their_adapter_adds(variant: str, inputs: int, outputs: int) -> None:
    layer = adapted(inputs, outputs, [8, 3, 0, 17])
    numbers = [1, 0, 2, 4, 3, 1, 0, 4, 5]
    x, out = torch.randn(len(numbers), inputs), torch.randn(len(numbers), outputs)
    layer.selection.select(numbers)
    expected = plain(layer, out, x, numbers)
    found = layer.added(out.clone(), x)
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-5)
    assert torch.equal(found[1], out[1])  # without an adapter nothing is added


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 10**6))
def test_a_row_s_bits_are_its_own(numbers: list[int], seed: int) -> None:
    layer = adapted(80, 200, [8, 1, 6, 4])
    draw = torch.Generator().manual_seed(seed)
    x, out = torch.randn(len(numbers), 80, generator=draw), torch.randn(len(numbers), 200, generator=draw)
    layer.selection.select(numbers)
    together = layer.added(out.clone(), x)
    for row, number in enumerate(numbers):
        layer.selection.select([number])
        alone = layer.added(out[row : row + 1].clone(), x[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_bits_are_the_same_on_any_variant_s_own(variant: str) -> None:
    layer = adapted(256, 500, [8, 1, 7])
    numbers = [1 + n % 3 for n in range(133)]
    x, out = torch.randn(133, 256), torch.randn(133, 500)
    layer.selection.select(numbers)
    together = layer.added(out.clone(), x)
    for row in range(0, 133, 4):
        layer.selection.select([numbers[row]])
        assert torch.equal(layer.added(out[row : row + 1].clone(), x[row : row + 1])[0], together[row])


def test_a_linear_without_adapters_on_a_row_is_as_it_was() -> None:
    layer = Linear(64, 48, Int4(32), torch.float32)
    layer.assign(layer.scheme.quantize(torch.randn(48, 64)))
    x = torch.randn(5, 64)
    before = layer(x)
    layer.adapted = adapted(64, 48, [4])
    assert torch.equal(layer(x), before)
    layer.adapted.selection.select([0, 1, 0, 0, 1])
    after = layer(x)
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(after[1], before[1])


def test_what_is_not_there_is_refused() -> None:
    if cpu.variant() is None:
        pytest.skip("no kernels")
    out, x, down, up = torch.zeros(2, 8), torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3, 8)
    for entry, first in (((2, 0), 0), ((0, 1), 0), ((-1, 0), 0), ((0, 0), 1)):
        with pytest.raises(IndexError, match="not there"):
            add_low_rank(out, x, torch.tensor([entry]), [1], [down], [up], [first])
    with pytest.raises(ValueError, match="do not fit"):
        add_low_rank(out, x, torch.tensor([(0, 0)]), [1], [torch.zeros(3, 5)], [up], [0])
    with pytest.raises(ValueError, match="float32"):
        add_low_rank(out, x, torch.tensor([(0, 0)]), [1], [down.double()], [up], [0])


def test_float_layers_too() -> None:
    layer = Linear(16, 8, Float(), torch.float32)
    layer.assign({"weight": torch.randn(8, 16)})
    layer.adapted = adapted(16, 8, [2])
    layer.requires_grad_(False)
    layer.adapted.selection.select([1])
    x = torch.randn(1, 16)
    piece = layer.adapted.pieces[1][0]
    expected = x @ layer.weight.T + layer.bias + x @ piece.down.T @ piece.up  # type: ignore[operator]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
