"""Compensation: never worse than plain rounding on what it was calibrated for, and in the scheme's own form."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.calibrate import compensate
from quant.scheme import IntegerScheme
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8
from quant.schemes.none import Float
from quant.usage import UsageError

SCHEMES: dict[str, Callable[[], IntegerScheme]] = {
    "int8": Int8,
    "int8 32": lambda: Int8(32),
    "int4 32": lambda: Int4(32),
    "int4 64": lambda: Int4(64),
    "int4 128": lambda: Int4(128),
    "int4 rows": lambda: Int4(0),
}
schemes = st.sampled_from(sorted(SCHEMES)).map(lambda name: SCHEMES[name]())
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(seed: int, rows: int, inputs: int) -> Tensor:
    """Inputs [rows, inputs] that share a few directions, as a network's do, and differ in size."""
    made = generator(seed)
    shared = torch.randn(rows, 4, generator=made) @ torch.randn(4, inputs, generator=made)
    x = shared + 0.3 * torch.randn(rows, inputs, generator=made)
    return x * 10.0 ** torch.randint(-1, 2, (inputs,), generator=made)


def loss(error: Tensor, x: Tensor) -> Tensor:
    """Σ (e·x)² of each output."""
    return (error.double() @ x.double().t()).square().sum(1)


@given(schemes, st.integers(1, 9), st.integers(1, 3), st.integers(1, 300), st.booleans(), seeds)
@settings(max_examples=40, deadline=None)
def test_outputs_change_no_more_than_by_plain_rounding(
    scheme: IntegerScheme, outputs: int, blocks: int, rows: int, dead: bool, seed: int
) -> None:
    inputs = 128 * blocks
    x = correlated(seed, rows, inputs)  # fewer rows than inputs: a Hessian without full rank
    if dead:
        x[:, torch.randperm(inputs, generator=generator(seed))[: inputs // 3]] = 0.0
    weight = torch.randn(outputs, inputs, generator=generator(seed + 1))
    stored = compensate(weight, x.t() @ x, scheme)
    expected = scheme.tensors(outputs, inputs)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == expected
    codes = scheme.codes(stored["weight"])
    lowest, highest = scheme.code_range
    assert lowest <= codes.min()
    assert codes.max() <= highest
    assert torch.isfinite(stored["weight_scale"]).all()
    assert (stored["weight_scale"] != 0).all()
    plain = loss(weight - scheme.dequantize(scheme.quantize(weight)), x)
    assert (loss(weight - scheme.dequantize(stored), x) <= plain * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("name", ["int4 32", "int4 128", "int4 rows"])
def test_correlated_inputs_halve_the_error(name: str) -> None:
    scheme = SCHEMES[name]()
    x, weight = correlated(0, 2000, 256), torch.randn(64, 256, generator=generator(1))
    plain = loss(weight - scheme.dequantize(scheme.quantize(weight)), x).sum()
    assert loss(weight - scheme.dequantize(compensate(weight, x.t() @ x, scheme)), x).sum() < plain / 2


@pytest.mark.parametrize("name", SCHEMES)
def test_what_changed_the_inputs_is_taken_back(name: str) -> None:
    """Inputs that come smaller and mixed: the weight undoes it before it is rounded."""
    scheme, made = SCHEMES[name](), generator(2)
    y, weight = correlated(0, 2000, 256), torch.randn(64, 256, generator=made)
    x = 0.9 * y + 0.1 * y @ torch.randn(256, 256, generator=made) / 16
    hessian, target = x.t() @ x, y.double() @ weight.double().t()

    def error(drift: Tensor | None) -> float:
        stored = compensate(weight, hessian, scheme, drift)
        return float((target - x.double() @ scheme.dequantize(stored).double().t()).square().sum())

    assert error((y - x).t() @ x) < error(None) / 2
    assert error(torch.zeros(256, 256)) == error(None)


@pytest.mark.parametrize("name", SCHEMES)
def test_inputs_that_never_came_are_rounded_plainly(name: str) -> None:
    scheme = SCHEMES[name]()
    weight = torch.randn(5, 128, generator=generator(0))
    stored, plain = compensate(weight, torch.zeros(128, 128), scheme), scheme.quantize(weight)
    assert all(torch.equal(stored[name], plain[name]) for name in plain)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_hessian_s_size_does_not_matter(factor: float) -> None:
    x, weight = correlated(0, 500, 128), torch.randn(6, 128, generator=generator(1))
    stored = compensate(weight, x.t() @ x, Int4(32))
    scaled = compensate(weight, (x.t() @ x) * factor, Int4(32))
    assert (stored["weight"] == scaled["weight"]).float().mean() > 0.98  # but for ties


def test_zero_rows_stay_zero() -> None:
    x, weight = correlated(0, 500, 128), torch.randn(6, 128, generator=generator(1))
    weight[2] = 0.0
    assert not Int4(32).dequantize(compensate(weight, x.t() @ x, Int4(32)))[2].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    hessian, weight = torch.eye(128), torch.ones(4, 128)
    hessian[3, 3] = value
    with pytest.raises(UsageError, match="the layer's inputs hold NaN or infinity"):
        compensate(weight, hessian, Int4(32))
    weight[1, 5] = value
    with pytest.raises(UsageError, match="the weight holds NaN or infinity"):
        compensate(weight, torch.eye(128), Int4(32))


def test_other_schemes_are_refused() -> None:
    with pytest.raises(UsageError, match="none weights cannot be calibrated; these can: int4, int8, llm-int8"):
        compensate(torch.ones(4, 128), torch.eye(128), Float())


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="group_size 64 does not divide the 96 inputs"):
        compensate(torch.ones(4, 96), torch.eye(96), Int4(64))
