"""Schemes: small errors, exact products, and rows that do not depend on their company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.linear import Linear
from quant.schemes import SCHEMES, Float, Int8, linear, quantize_rows

# From 2: with one input, torch._int_mm reads past its operands (2.13); no network has such a layer.
sizes = st.one_of(st.integers(2, 40), st.sampled_from([63, 64, 65, 97, 128, 192, 255, 256]))
# A float row has fixed bits if it begins at a multiple of 64 bytes, as it does at every network's widths.
float_widths = st.integers(1, 24).map(lambda count: 16 * count)
seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal numbers whose rows have very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * 10.0 ** torch.randint(-3, 4, (*shape[:-1], 1), generator=generator)


@given(sizes, sizes, seeds)
@settings(max_examples=60, deadline=None)
def test_int8_is_off_by_half_a_step_at_most(out_features: int, in_features: int, seed: int) -> None:
    weight = drawn(seed, out_features, in_features)
    stored = Int8().quantize(weight)
    step = stored["weight_scale"][:, None].double()
    error = (stored["weight"].double() * step - weight.double()).abs()
    assert (error <= step * (0.5 + 1e-5)).all()
    assert stored["weight"].abs().amax() == 127
    torch.testing.assert_close(stored["weight_scale"], weight.abs().amax(-1) / 127)


def test_a_zero_row_has_scale_1_and_gives_the_bias() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    stored = Int8().quantize(weight)
    assert stored["weight"].tolist() == [[0, 0, 0], [64, -127, 32]]
    assert stored["weight_scale"].tolist() == [1.0, pytest.approx(2 / 127)]
    out = Int8().matmul(torch.ones(1, 3), stored, torch.tensor([7.0, 0.0]))
    assert out[0, 0] == 7


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_zero_input_row_gives_the_bias(scheme: str) -> None:
    made = SCHEMES[scheme]()
    bias = torch.arange(5.0)
    out = made.matmul(torch.zeros(2, 8), made.quantize(drawn(0, 5, 8)), bias)
    assert out.tolist() == [bias.tolist()] * 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_int8_refuses_weights_that_are_not_finite(value: float) -> None:
    weight = torch.ones(4, 4)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="the weight holds NaN or infinity"):
        Int8().quantize(weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bad_input_row_spoils_no_other(scheme: str) -> None:
    made = SCHEMES[scheme]()
    stored = made.quantize(drawn(0, 6, 16))
    x = drawn(1, 20, 16)
    clean = made.matmul(x, stored, None)
    x[3, 5] = torch.nan
    dirty = made.matmul(x, stored, None)
    assert torch.isnan(dirty[3]).all()
    others = [row for row in range(20) if row != 3]
    assert torch.equal(dirty[others], clean[others])


@given(sizes, sizes, st.integers(1, 40), st.booleans(), seeds)
@settings(max_examples=60, deadline=None)
def test_the_int8_product_is_exact_in_its_codes(
    out_features: int, in_features: int, rows: int, with_bias: bool, seed: int
) -> None:
    stored = Int8().quantize(drawn(seed, out_features, in_features))
    x, bias = drawn(seed + 1, rows, in_features), drawn(seed + 2, out_features) if with_bias else None
    codes, scale = quantize_rows(x)
    expected = (codes.double() @ stored["weight"].double().t()).float() * scale * stored["weight_scale"]
    if bias is not None:
        expected = expected + bias
    torch.testing.assert_close(Int8().matmul(x, stored, bias), expected, rtol=1e-6, atol=1e-6)


@given(st.data(), st.sampled_from(sorted(SCHEMES)), sizes, st.booleans(), seeds)
@settings(max_examples=60, deadline=None)
def test_a_row_has_the_same_bits_alone_among_7_and_among_64(
    data: st.DataObject, scheme: str, out_features: int, with_bias: bool, seed: int
) -> None:
    in_features = data.draw(float_widths if scheme == "none" else sizes)
    made = SCHEMES[scheme]()
    stored = made.quantize(drawn(seed, out_features, in_features))
    bias = drawn(seed + 1, out_features) if with_bias else None
    x = drawn(seed + 2, 64, in_features)
    full = made.matmul(x, stored, bias)
    for first, last in [(0, 1), (5, 6), (63, 64), (0, 7), (3, 10), (57, 64), (1, 18)]:
        assert torch.equal(made.matmul(x[first:last], stored, bias), full[first:last])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 300, 2500])
def test_wide_rows_have_the_same_bits_at_every_height(rows: int) -> None:
    x, weight, bias = drawn(0, 2500, 384), drawn(1, 1152, 384), drawn(2, 1152)
    assert torch.equal(linear(x[:rows], weight, bias), linear(x, weight, bias)[:rows])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_leading_dimensions_are_kept(scheme: str) -> None:
    made = SCHEMES[scheme]()
    stored = made.quantize(drawn(0, 6, 16))
    x = drawn(1, 2, 3, 16)
    out = made.matmul(x, stored, None)
    assert out.shape == (2, 3, 6)
    assert torch.equal(out, made.matmul(x.reshape(6, 16), stored, None).reshape(2, 3, 6))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_near_the_float_product(scheme: str) -> None:
    made = SCHEMES[scheme]()
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 256, generator=generator), torch.randn(64, 256, generator=generator)
    out = made.matmul(x, made.quantize(weight), None)
    assert (out - x @ weight.t()).norm() / (x @ weight.t()).norm() < 0.02


def test_a_layer_registers_what_its_scheme_stores() -> None:
    assert dict(Linear(3, 5, Float(), torch.float32).named_parameters()).keys() == {"weight", "bias"}
    layer = Linear(3, 5, Int8(), torch.float32)
    shapes = {name: (tuple(p.shape), p.dtype) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight": ((5, 3), torch.int8),
        "weight_scale": ((5,), torch.float32),
        "bias": ((5,), torch.float32),
    }
    assert not layer.weight.requires_grad
