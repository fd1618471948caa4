"""Vectors of a cache: what they are read back as, in every kind, by the kernels and without them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import cpu
from quant.cache_tensor import CacheTensor, kept_dtype, num_bytes
from quant.operators.quantize_vectors import quantize_vectors
from quant.usage import UsageError
from tests.quant.conftest import drawn, running

VARIANTS = [*cpu.kernels().supported(), "torch"]
sizes = st.sampled_from([1, 7, 16, 40, 64, 80, 128, 200])
CPU = torch.device("cpu")


@given(st.integers(0, 9), st.integers(1, 5), sizes, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_number_is_off_by_half_a_scale_at_most(slots: int, heads: int, size: int, seed: int) -> None:
    x = drawn(seed, slots, heads, size)
    x[: slots // 2, 0] = 0
    with running("torch"):
        plain_codes, plain_scales = quantize_vectors(x)
    for variant in VARIANTS:
        with running(variant):
            codes, scales = quantize_vectors(x)
        assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
        assert (codes.shape, scales.shape) == (x.shape, x.shape[:-1])
        assert torch.equal(codes, plain_codes)
        assert torch.equal(scales, plain_scales)
    error = (plain_codes.double() * plain_scales.double()[..., None] - x.double()).abs()
    assert (error <= 0.5001 * plain_scales.double()[..., None]).all()
    assert torch.equal(plain_codes.abs().amax(-1) == 127, x.abs().amax(-1) > 0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [16, 40, 128])
def test_zeros_stay_zeros_and_what_is_not_finite_is_nan(variant: str, size: int) -> None:
    x = drawn(0, 6, 2, size)
    x[0, 0] = 0
    x[1, 1, size - 1] = torch.nan
    x[2, 0, 0] = torch.inf
    x[3, 1, size // 2] = -torch.inf
    x[4, 0] = 1e-45  # too small for a scale
    x[5, 1] = torch.finfo(torch.float32).max / 2
    kept = CacheTensor.zeros((8, 2, size), torch.int8, CPU)
    with running(variant):
        kept.write(torch.tensor([7, 1, 2, 3, 4, 5]), x)
    read = kept.read(torch.tensor([7, 1, 2, 3, 4, 5]), torch.float32)
    assert read.isnan().all(-1).nonzero().tolist() == [[1, 1], [2, 0], [3, 1]]
    assert read.isnan().any(-1).sum() == 3
    assert not read[0, 0].any()
    assert not read[4, 0].any()
    assert (read[5, 1] / x[5, 1] - 1).abs().max() < 1e-6
    assert not kept.read(torch.tensor([0, 6]), torch.float32).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_slots_of_any_shape_are_read_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    x = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(0))
    kept = CacheTensor.zeros((2, 10, 3, 16), dtype, CPU)
    kept[1].write(torch.tensor([9, 3, 1, 4, 0, 5]), x)
    for computed in (torch.float32, torch.float16):
        read = kept[1].read(torch.tensor([[9, 3], [5, 2]]), computed)
        assert (read.shape, read.dtype) == ((2, 2, 3, 16), computed)
        torch.testing.assert_close(read[0].float(), x[:2], rtol=0.01, atol=0.02)
        torch.testing.assert_close(read[1, 0].float(), x[5], rtol=0.01, atol=0.02)
        assert not read[1, 1].any()
    assert not kept[0].read(torch.arange(10), torch.float32).any()


@given(st.integers(0, 40), st.integers(1, 9), sizes, st.sampled_from([torch.float32, torch.bfloat16, torch.int8]))
def test_bytes_are_those_of_the_tensors(slots: int, heads: int, size: int, dtype: torch.dtype) -> None:
    kept = CacheTensor.zeros((slots, heads, size), dtype, CPU)
    scales = 0 if kept.scales is None else kept.scales.nbytes
    assert num_bytes((slots, heads, size), dtype) == kept.numbers.nbytes + scales


def test_kinds() -> None:
    assert kept_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert kept_dtype("int8", torch.bfloat16) == torch.int8
    with pytest.raises(UsageError, match=r"^kv_cache_type: one of auto, int8, not 'fp8'$"):
        kept_dtype("fp8", torch.float32)
