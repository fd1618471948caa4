"""Products with float weights: every variant of the CPU kernels against sums in double precision."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import cpu
from quant.operators.float_linear import DTYPES, float_linear
from quant.schemes.none import Float
from tests.quant.conftest import running

VARIANTS = ["torch", *cpu.kernels().supported()]
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def made(rows: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    return x, weight.to(dtype), torch.randn(outputs, generator=generator)


@every_variant
@every_dtype
@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(st.integers(0, 14), st.integers(1, 150), st.integers(1, 75)), biased=st.booleans())
def test_a_product_is_the_sum_in_double_precision(
    variant: str, dtype: torch.dtype, sizes: tuple[int, int, int], biased: bool
) -> None:
    x, weight, bias = made(*sizes, dtype)
    wanted = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    with running(variant):
        got = float_linear(x, weight, bias if biased else None)
    assert got.dtype == torch.float32
    bound = 2e-6 * (1 + x.double().abs() @ weight.double().abs().T)
    assert bool(((got - wanted).abs() <= bound).all())


@every_variant
@every_dtype
def test_a_row_has_the_same_bits_alone_and_among_others(variant: str, dtype: torch.dtype) -> None:
    x, weight, bias = made(29, 333, 71, dtype)
    with running(variant):
        together = float_linear(x, weight, bias)
        for rows in (1, 2, 3, 5, 13):
            parts = torch.cat([float_linear(part, weight, bias) for part in torch.split(x, rows)])
            assert torch.equal(parts, together), rows


@every_variant
@every_dtype
def test_bits_do_not_depend_on_threads_or_on_other_outputs(variant: str, dtype: torch.dtype) -> None:
    x, weight, _ = made(3, 200, 130, dtype)
    with running(variant):
        alone = float_linear(x, weight, None)
        if variant != "torch":
            assert torch.equal(float_linear(x, weight[17:90], None), alone[:, 17:90])
    with running(variant, num_threads=3):
        assert torch.equal(float_linear(x, weight, None), alone)


@every_variant
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_16_bit_number_is_read_exactly(variant: str, dtype: torch.dtype) -> None:
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()][:, None]
    with running(variant):
        assert torch.equal(float_linear(torch.ones(1, 1), numbers, None)[0], numbers[:, 0].float())


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_nothing_beside_a_weight_is_read(variant: str) -> None:
    """Numbers behind its end would make the results NaN."""
    around = torch.full((2000,), torch.nan, dtype=torch.float16)
    weight = around[500 : 500 + 7 * 45].view(7, 45)
    weight.fill_(1.0)
    with running(variant):
        assert torch.equal(float_linear(torch.ones(2, 45), weight, None), torch.full((2, 7), 45.0))


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_other_sizes_are_refused(variant: str) -> None:
    x, weight, bias = made(2, 8, 3, torch.float16)
    with running(variant):
        with pytest.raises(ValueError, match=r"rows \[2, 7\] for a weight \[3, 8\]"):
            float_linear(x[:, :7], weight, None)
        with pytest.raises(ValueError, match=r"rows \[2, 8\] for a weight \[3, 8\]"):
            float_linear(x, weight, bias[:2])


def test_gradients_pass_a_weight_that_stays_as_it_is_stored() -> None:
    x, weight, bias = made(3, 8, 5, torch.float16)
    x.requires_grad_()
    out = Float(torch.float16).matmul(x, {"weight": weight}, bias, 5)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.float().sum(0).expand(3, 8))
    torch.testing.assert_close(out, float_linear(x.detach(), weight, bias))


@every_variant
def test_a_cpu_keeps_what_its_kernels_read(variant: str) -> None:
    with running(variant):
        kept = [Float.kept(dtype) for dtype in (*DTYPES, torch.float64)]
    assert kept == [*(DTYPES if variant != "torch" else [torch.float32] * 3), torch.float32]
