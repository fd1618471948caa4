"""Schemes: small errors, what is stored and how it is cut, and rows that do not depend on their company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant import cpu
from quant.packing import unpack_nibbles
from quant.registry import build, build_head
from quant.rows import linear
from quant.scheme import Scheme, Tensors
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8
from quant.schemes.none import Float
from quant.usage import UsageError
from tests.quant.conftest import drawn, product, running

SCHEMES: dict[str, Scheme] = {
    "none": Float(),
    **{f"int8-{size or 'row'}": Int8(size) for size in Int8.facts.group_sizes},
    **{f"int4-{size or 'row'}": Int4(size) for size in Int4.facts.group_sizes},
}
QUANTIZED = {name: scheme for name, scheme in SCHEMES.items() if name != "none"}
KERNELS = cpu.kernels().supported()
VARIANTS = [*KERNELS, "torch"]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
every_quantized = pytest.mark.parametrize("scheme", QUANTIZED.values(), ids=QUANTIZED)
HALF_SCALES = {name: scheme for name, scheme in QUANTIZED.items() if name != "int8-row"}
every_int4 = pytest.mark.parametrize("group_size", Int4.facts.group_sizes)
every_half_scale = pytest.mark.parametrize("scheme", HALF_SCALES.values(), ids=HALF_SCALES)
every_variant = pytest.mark.parametrize("variant", VARIANTS)
needs_kernels = pytest.mark.skipif(not KERNELS, reason=f"no CPU kernels: {cpu.kernels().reason}")

# From 2: with one input, torch._int_mm reads past its operands (2.13); no network has such a layer.
sizes = st.one_of(st.integers(2, 40), st.sampled_from([63, 64, 65, 97, 128, 192, 255, 256]))
seeds = st.integers(0, 2**31)


def widths(scheme: Scheme) -> st.SearchStrategy[int]:
    """Numbers of inputs that a scheme holds."""
    if scheme.group_size or isinstance(scheme, Int4):
        step = scheme.group_size or 2
        return st.integers(1, max(4, 80 // step)).map(lambda count: step * count)
    if isinstance(scheme, Int8):
        return sizes
    # A float row has fixed bits if it begins at a multiple of 64 bytes, as it does at every network's widths.
    return st.integers(1, 24).map(lambda count: 16 * count)


def width(scheme: Scheme) -> int:
    """One such number: two groups and more."""
    return 2 * scheme.group_size or 48


def steps(scheme: Scheme, stored: Tensors, in_features: int) -> Tensor:
    """The distance of two neighbouring codes, in double precision, for every weight."""
    scale = stored["weight_scale"].double().abs().reshape(len(stored["weight"]), -1)
    return scale.repeat_interleave(in_features // scale.shape[1], dim=1)


# ---- what is stored


@given(st.data(), st.sampled_from(list(QUANTIZED.values())), sizes, seeds)
@settings(max_examples=80, deadline=None)
def test_a_weight_is_off_by_half_a_step_at_most(
    data: st.DataObject, scheme: Scheme, out_features: int, seed: int
) -> None:
    weight = drawn(seed, out_features, data.draw(widths(scheme)))
    stored = scheme.quantize(weight)
    error = (scheme.dequantize(stored).double() - weight.double()).abs()
    assert (error <= steps(scheme, stored, weight.shape[1]) * (0.5 + 1e-5)).all()


@every_quantized
@pytest.mark.parametrize(
    "most",
    [
        2.0**-20,
        7.45 * 8 * 2.0**-24,
        6.45 * 7 * 2.0**-24,
        1.4 * 7 * 2.0**-24,
        1e-12,
        1.4 * 127 * 2.0**-149,
        1e-45,
    ],
)
@pytest.mark.parametrize("least", [-1.0, -0.5, 0.5])
def test_a_weight_too_small_for_its_scale_is_off_by_half_a_step_at_most(
    scheme: Scheme, most: float, least: float
) -> None:
    weight = torch.linspace(least, 1, width(scheme)).mul(most).repeat(2, 1)
    weight[1] *= -1
    stored = scheme.quantize(weight)
    assert (stored["weight_scale"] != 0).all()
    error = (scheme.dequantize(stored).double() - weight.double()).abs()
    assert (error <= steps(scheme, stored, weight.shape[1]) * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("code", [-128, -127, 127])
@every_variant
def test_every_code_of_a_file_of_others_counts(code: int, variant: str) -> None:
    """llama.cpp's own Q8_0 has codes −127 … 127; nothing forbids −128."""
    scheme = Int8(32)
    codes = torch.full((20, 64), code, dtype=torch.int8)
    stored = scheme.stored(codes, torch.full((20, 2), 0.5).half())
    with running(variant):
        packed = scheme.pack(stored)
        assert (scheme.rows(packed, torch.tensor([0, 19]), 64) == code / 2).all()
        torch.testing.assert_close(
            scheme.matmul(torch.ones(3, 64), packed, None, 20), torch.full((3, 20), 32.0 * code), rtol=1e-6, atol=0
        )


@given(sizes, sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_int8_uses_its_whole_range(out_features: int, in_features: int, seed: int) -> None:
    weight = drawn(seed, out_features, in_features)
    stored = Int8().quantize(weight)
    assert stored["weight"].abs().amax(-1).tolist() == [127] * out_features
    torch.testing.assert_close(stored["weight_scale"], weight.abs().amax(-1) / 127)


def test_int4_by_row_is_what_glm_130b_stores() -> None:
    weight = torch.tensor([[3.5, -7.0, 1.0, 0.4], [0.0, 0.0, 0.0, 0.0]])
    stored = Int4(0).quantize(weight)
    assert stored["weight"].view(torch.uint8).tolist() == [[0x49, 0x10], [0, 0]]  # 4 −7 1 0
    assert stored["weight_scale"].tolist() == [1.0, 1.0]
    assert stored["weight_scale"].dtype == torch.float16


@given(st.sampled_from([32, 64, 128]), st.integers(1, 9), st.integers(1, 3), seeds)
@settings(max_examples=40, deadline=None)
def test_a_group_s_larger_side_reaches_8_and_its_smaller_one_7_at_most(
    group_size: int, out_features: int, groups: int, seed: int
) -> None:
    weight = drawn(seed, out_features, groups, group_size) + drawn(seed + 1, out_features, groups, 1) / 4
    stored = Int4(group_size).quantize(weight.flatten(1))
    codes = unpack_nibbles(stored["weight"]).view(out_features, groups, group_size)
    for group, own, scale in zip(
        weight.flatten(0, 1).tolist(), codes.flatten(0, 1), stored["weight_scale"].flatten().tolist(), strict=True
    ):
        high, low = max(group), -min(group)
        most = max(max(high, low) / 8, min(high, low) / 7)
        assert abs(scale) == pytest.approx(most, rel=2**-10, abs=2**-24)
        assert (scale < 0) == (high > low)
        assert own.min() < 0
        if max(high, low) / 8 > min(high, low) / 7 > 0.01:
            assert own.min() == -8


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_a_group_as_high_as_it_is_low_has_a_positive_scale(group_size: int) -> None:
    weight = torch.linspace(-7, 7, group_size).repeat(2, 1)
    stored = Int4(group_size).quantize(weight)
    assert (stored["weight_scale"] == 1).all()
    codes = unpack_nibbles(stored["weight"])
    assert (codes.min(), codes.max()) == (-7, 7)  # type: ignore[comparison-overlap]


def test_a_zero_row_has_scale_1_and_gives_the_bias() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    stored = Int8().quantize(weight)
    assert stored["weight"].tolist() == [[0, 0, 0], [64, -127, 32]]
    assert stored["weight_scale"].tolist() == [1.0, pytest.approx(2 / 127)]
    out = product(Int8(), torch.ones(1, 3), stored, torch.tensor([7.0, 0.0]))
    assert out[0, 0] == 7


@every_half_scale
def test_a_zero_group_has_scale_1_and_gives_the_bias(scheme: Int4 | Int8) -> None:
    lowest, highest = scheme.code_range
    weight = torch.zeros(3, 256)
    weight[1, -1] = 14
    stored = scheme.quantize(weight)
    scale = 14 / (lowest if lowest != -highest else highest)
    assert stored["weight_scale"].reshape(3, -1)[1, -1] == torch.tensor(scale).half()
    assert (stored["weight_scale"].reshape(3, -1)[[0, 2]] == 1).all()
    torch.testing.assert_close(scheme.dequantize(stored), weight, rtol=2**-11, atol=0)
    for variant in VARIANTS:
        with running(variant):
            out = product(scheme, torch.ones(1, 256), stored, torch.tensor([7.0, 1.0, -3.0]))
        assert out[0, ::2].tolist() == [7, -3]
        assert out[0, 1] == pytest.approx(15, rel=2**-11)


@every_half_scale
def test_weights_too_large_for_float16_scales_are_refused(scheme: Int4 | Int8) -> None:
    weight = torch.zeros(2, 128)
    weight[1, 3] = -scheme.code_range[0] * 65504
    assert torch.equal(scheme.dequantize(scheme.quantize(weight)), weight)
    weight[1, 3] *= -1.001
    with pytest.raises(UsageError, match="the weight is too large for float16 scales"):
        scheme.quantize(weight)


@every_scheme
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(scheme: Scheme, value: float) -> None:
    weight = torch.ones(4, width(scheme))
    weight[2, 3] = value
    with pytest.raises(UsageError, match="the weight holds NaN or infinity"):
        scheme.quantize(weight)


@every_int4
@pytest.mark.parametrize("in_features", [1, 33, 129])
def test_int4_refuses_an_odd_number_of_inputs(group_size: int, in_features: int) -> None:
    for refused in (lambda s: s.tensors(4, in_features), lambda s: s.quantize(torch.ones(4, in_features))):
        with pytest.raises(UsageError, match=f"int4 needs an even number of inputs, not {in_features}"):
            refused(Int4(group_size))


@pytest.mark.parametrize(
    ("scheme", "in_features"),
    [(Int4(32), 48), (Int4(64), 32), (Int4(64), 160), (Int4(128), 64), (Int4(128), 4160), (Int8(32), 48)],
)
def test_a_group_that_does_not_divide_the_inputs_is_refused(scheme: Int4 | Int8, in_features: int) -> None:
    expected = f"group_size {scheme.group_size} does not divide the {in_features} inputs"
    for refused in (lambda: scheme.tensors(4, in_features), lambda: scheme.quantize(torch.ones(4, in_features))):
        with pytest.raises(UsageError, match=expected):
            refused()


@pytest.mark.parametrize("group_size", [-32, 1, 16, 48, 256])
def test_groups_that_no_kernel_has_are_refused(group_size: int) -> None:
    for scheme, sizes in ((Int4, "0, 32, 64, 128"), (Int8, "0, 32")):
        with pytest.raises(UsageError, match=rf"group_size must be one of {sizes} \(0: whole rows\)"):
            scheme(group_size)


def test_int8_refuses_one_input() -> None:
    with pytest.raises(UsageError, match="int8 needs at least 2 input features"):
        Int8().tensors(4, 1)


def test_schemes_are_built_by_name() -> None:
    assert [build(name).name for name in ("none", "int8", "int4")] == ["none", "int8", "int4"]
    assert build("none", torch.float16).tensors(1, 1) == {"weight": ((1, 1), torch.float16)}
    assert build("int4", group_size=128).tensors(1, 256)["weight_scale"] == ((1, 2), torch.float16)
    assert [build(name).group_size for name in ("none", "int8", "int4")] == [0, 0, 32]
    assert build("int8", group_size=32).tensors(1, 256)["weight_scale"] == ((1, 8), torch.float16)
    with pytest.raises(UsageError, match="no such scheme: int3"):
        build("int3")


def test_schemes_of_the_embedding_are_built_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [build_head(name, torch.float16, "cpu").name for name in ("none", "int8")] == ["none", "int8"]
    assert build_head("none", torch.float16, "cpu").tensors(1, 1) == {"weight": ((1, 1), torch.float16)}
    assert build_head("int4", torch.float16, "cuda").name == "int4"
    with pytest.raises(UsageError, match="no such scheme for the embedding: int3"):
        build_head("int3", torch.float32, "cpu")
    monkeypatch.setenv(cpu.CHOICE, "torch")
    with pytest.raises(UsageError, match="an int4 embedding needs the CPU kernels"):
        build_head("int4", torch.float32, "cpu")


@given(st.data(), st.sampled_from(list(SCHEMES.values())), st.integers(1, 40), seeds)
@settings(max_examples=40, deadline=None)
def test_what_is_stored_is_what_was_announced(
    data: st.DataObject, scheme: Scheme, out_features: int, seed: int
) -> None:
    in_features = data.draw(widths(scheme))
    stored = scheme.quantize(drawn(seed, out_features, in_features))
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()}
    assert found == scheme.tensors(out_features, in_features)
    assert scheme.dequantize(stored).shape == (out_features, in_features)
    assert scheme.dequantize(stored).dtype == torch.float32


@given(st.data(), st.sampled_from(list(SCHEMES.values())), st.integers(1, 40), st.sampled_from(VARIANTS))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_has_the_bytes_that_were_announced(
    data: st.DataObject, scheme: Scheme, out_features: int, variant: str
) -> None:
    in_features = data.draw(widths(scheme))
    stored = scheme.quantize(drawn(0, out_features, in_features))
    with running(variant):
        packed = scheme.pack(stored)
        assert scheme.packed_bytes(out_features, in_features, "cpu") == sum(t.nbytes for t in packed.values())
    assert scheme.packed_bytes(out_features, in_features, "cuda") == sum(t.nbytes for t in stored.values())


@every_scheme
def test_a_transposed_weight_is_stored_as_its_copy(scheme: Scheme) -> None:
    weight = drawn(0, width(scheme), 20).t()
    stored, copied = scheme.quantize(weight), scheme.quantize(weight.contiguous())
    assert all(torch.equal(stored[name], copied[name]) for name in copied)
    x = drawn(1, 3, width(scheme))
    assert torch.equal(product(scheme, x, stored, None), product(scheme, x, copied, None))


# ---- cuts


def cut(scheme: Scheme, stored: Tensors, dim: int, start: int, length: int) -> Tensors:
    """Every stored tensor as a rank that holds a part of the weight takes it."""
    cuts = {name: scheme.narrow(name, dim, start, length) for name in stored}
    return {name: stored[name] if at is None else stored[name].narrow(*at) for name, at in cuts.items()}


@given(st.data(), st.sampled_from(list(SCHEMES.values())), st.integers(1, 40), seeds)
@settings(max_examples=60, deadline=None)
def test_cut_outputs_are_stored_as_if_quantized_alone(
    data: st.DataObject, scheme: Scheme, out_features: int, seed: int
) -> None:
    weight = drawn(seed, out_features, data.draw(widths(scheme)))
    start = data.draw(st.integers(0, out_features - 1))
    length = data.draw(st.integers(1, out_features - start))
    alone = scheme.quantize(weight.narrow(0, start, length))
    part = cut(scheme, scheme.quantize(weight), 0, start, length)
    assert part.keys() == alone.keys()
    assert all(torch.equal(part[name], alone[name]) for name in alone)


@given(st.data(), st.sampled_from(list(SCHEMES.values())), st.integers(1, 6), seeds)
@settings(max_examples=60, deadline=None)
def test_cut_inputs_stand_for_the_same_weights(data: st.DataObject, scheme: Scheme, count: int, seed: int) -> None:
    by_group = isinstance(scheme, Float) or scheme.group_size
    step = scheme.group_size or (2 if isinstance(scheme, Int4) else 1)
    weight = drawn(seed, 5, (count + 1) * step)
    start = data.draw(st.integers(0, count)) * step
    length = data.draw(st.integers(1, count + 1 - start // step)) * step
    stored = scheme.quantize(weight)
    part = cut(scheme, stored, 1, start, length)
    assert torch.equal(scheme.dequantize(part), scheme.dequantize(stored).narrow(1, start, length))
    if by_group:
        alone = scheme.quantize(weight.narrow(1, start, length))
        assert all(torch.equal(part[name], alone[name]) for name in alone)
    else:
        assert part["weight_scale"] is stored["weight_scale"]
        assert part["weight"].shape[1] == stored["weight"].shape[1] * length // weight.shape[1]


@pytest.mark.parametrize("scheme", [Int4(32), Int4(64), Int4(128), Int8(32)])
@pytest.mark.parametrize("name", ["weight", "weight_scale"])
def test_a_cut_through_a_group_is_refused(scheme: Int4 | Int8, name: str) -> None:
    size = scheme.group_size
    for start, length in [(0, size + 2), (size // 2, size), (size - 1, size + 1)]:
        with pytest.raises(UsageError, match=rf"a cut of inputs at {start} \+ {length} goes through a group of"):
            scheme.narrow(name, 1, start, length)


def test_a_cut_through_a_byte_is_refused() -> None:
    for start, length in [(1, 2), (0, 3)]:
        with pytest.raises(UsageError, match=rf"a cut of inputs at {start} \+ {length} goes through a group of 2"):
            Int4(0).narrow("weight", 1, start, length)


@needs_kernels
@every_quantized
@pytest.mark.parametrize("dim", [0, 1])
def test_two_halves_of_a_weight_give_the_whole_product(scheme: Scheme, dim: int) -> None:
    weight, x = drawn(0, 34, 256), drawn(1, 5, 256)
    stored = scheme.quantize(weight)
    half = weight.shape[dim] // 2
    parts = [cut(scheme, stored, dim, start, half) for start in (0, half)]
    for variant in KERNELS:
        with running(variant):
            whole = product(scheme, x, stored, None)
            if dim == 0:
                assert torch.equal(torch.cat([product(scheme, x, part, None) for part in parts], 1), whole)
            else:
                shares = [product(scheme, half, part, None) for half, part in zip(x.chunk(2, 1), parts, strict=True)]
                magnitude = x.norm(dim=1)[:, None] * weight.norm(dim=1)
                assert ((shares[0] + shares[1] - whole).abs() <= 1e-6 * magnitude).all()


# ---- products


@every_scheme
@every_variant
def test_a_zero_input_row_gives_the_bias(scheme: Scheme, variant: str) -> None:
    bias = torch.arange(5.0)
    with running(variant):
        out = product(scheme, torch.zeros(2, width(scheme)), scheme.quantize(drawn(0, 5, width(scheme))), bias)
    assert out.tolist() == [bias.tolist()] * 2


@every_scheme
@every_variant
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_input_row_spoils_no_other(scheme: Scheme, variant: str, value: float) -> None:
    # The kernels' scale of that row's group is NaN; elsewhere an infinity may stay one.
    stored = scheme.quantize(drawn(0, 18, width(scheme)))
    x = drawn(1, 20, width(scheme))
    others = [row for row in range(20) if row != 3]
    with running(variant):
        clean = product(scheme, x, stored, torch.ones(18))
        x[3, 5] = value
        dirty = product(scheme, x, stored, torch.ones(18))
    spoilt = torch.isnan if variant in KERNELS and scheme.name != "none" else lambda out: ~torch.isfinite(out)
    assert spoilt(dirty[3]).all()
    assert torch.isfinite(clean).all()
    assert torch.equal(dirty[others], clean[others])


@given(st.data(), st.sampled_from(list(SCHEMES.values())), sizes, st.booleans(), seeds)
@settings(max_examples=40, deadline=None)
def test_a_row_has_the_same_bits_alone_among_7_and_among_64(
    data: st.DataObject, scheme: Scheme, out_features: int, with_bias: bool, seed: int
) -> None:
    in_features = data.draw(widths(scheme))
    stored = scheme.quantize(drawn(seed, out_features, in_features))
    bias = drawn(seed + 1, out_features) if with_bias else None
    x = drawn(seed + 2, 64, in_features)
    for variant in ["torch"] if scheme.name == "none" else VARIANTS:
        with running(variant):
            packed = scheme.pack(stored)
            full = scheme.matmul(x, packed, bias, out_features)
            for first, last in [(0, 1), (5, 6), (63, 64), (2, 6), (7, 12), (0, 7), (3, 10), (57, 64), (1, 18)]:
                assert torch.equal(scheme.matmul(x[first:last], packed, bias, out_features), full[first:last])


@every_quantized
@every_variant
def test_a_row_has_the_same_bits_at_1_2_and_3_threads(scheme: Scheme, variant: str) -> None:
    out_features, in_features = 217, 5 * 128 if isinstance(scheme, Int4) or scheme.group_size else 601
    stored, bias = scheme.quantize(drawn(0, out_features, in_features)), drawn(1, out_features)
    x = drawn(2, 64, in_features)
    with running(variant):
        packed = scheme.pack(stored)
        full = scheme.matmul(x, packed, bias, out_features)
    for num_threads in (1, 2, 3):
        with running(variant, num_threads):
            for first, last in [(0, 64), (0, 1), (63, 64), (2, 6), (3, 10), (41, 58)]:
                assert torch.equal(scheme.matmul(x[first:last], packed, bias, out_features), full[first:last])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 300, 2500])
def test_wide_rows_have_the_same_bits_at_every_height(rows: int) -> None:
    x, weight, bias = drawn(0, 2500, 384), drawn(1, 1152, 384), drawn(2, 1152)
    assert torch.equal(linear(x[:rows], weight, bias), linear(x, weight, bias)[:rows])


@every_scheme
def test_leading_dimensions_are_kept(scheme: Scheme) -> None:
    stored = scheme.quantize(drawn(0, 6, width(scheme)))
    x = drawn(1, 2, 3, width(scheme))
    for variant in VARIANTS:
        with running(variant):
            out = product(scheme, x, stored, None)
            assert out.shape == (2, 3, 6)
            assert torch.equal(out, product(scheme, x.reshape(6, -1), stored, None).reshape(2, 3, 6))
            assert torch.equal(product(scheme, x[1, 2], stored, None), out[1, 2])
            assert torch.equal(product(scheme, x.transpose(0, 1), stored, None), out.transpose(0, 1))


@every_scheme
def test_no_rows_give_no_rows(scheme: Scheme) -> None:
    stored = scheme.quantize(drawn(0, 6, width(scheme)))
    for variant in VARIANTS:
        with running(variant):
            assert product(scheme, torch.empty(0, width(scheme)), stored, None).shape == (0, 6)


@every_scheme
@pytest.mark.parametrize("factor", [0.5, 2])
def test_inputs_of_another_width_are_refused(scheme: Scheme, factor: float) -> None:
    stored = scheme.quantize(drawn(0, 6, width(scheme)))
    for variant in VARIANTS:
        with running(variant), pytest.raises((ValueError, RuntimeError)):
            product(scheme, torch.ones(3, int(width(scheme) * factor)), stored, None)


MOST_OFF = {
    "none": 1e-6,
    "int8-row": 0.02,
    "int8-32": 0.02,
    "int4-32": 0.10,
    "int4-64": 0.115,
    "int4-128": 0.13,
    "int4-row": 0.16,
}


@pytest.mark.parametrize(("name", "most"), MOST_OFF.items(), ids=MOST_OFF)
@every_variant
def test_products_are_near_the_float_product(name: str, most: float, variant: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 256, generator=generator), torch.randn(64, 256, generator=generator)
    with running(variant):
        out = product(SCHEMES[name], x, SCHEMES[name].quantize(weight), None)
    assert (out - x @ weight.t()).norm() / (x @ weight.t()).norm() < most


@needs_kernels
@every_quantized
def test_outliers_in_some_inputs_leave_the_others_precise(scheme: Scheme) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 4096, generator=generator), torch.randn(128, 4096, generator=generator)
    x[:, torch.randperm(4096, generator=generator)[: 4096 * 3 // 100]] *= 50
    expected = x.double() @ weight.double().t()
    stored = scheme.quantize(weight)
    by_float = (x.double() @ scheme.dequantize(stored).double().t() - expected).norm()
    # INT8 weights in groups are as exact as the activations, whose groups of 32 have an outlier more often than not.
    most = 2.5 if scheme.name == "int8" and scheme.group_size else 1.5
    for variant in KERNELS:
        with running(variant):
            assert (product(scheme, x, stored, None) - expected).norm() <= most * by_float
