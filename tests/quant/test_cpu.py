"""The CPU kernels: every variant that this machine has against plain integer sums, and the library around them."""

import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from quant import cpu
from quant.operators.attention import attention
from quant.operators.gelu_tanh import gelu_tanh
from quant.operators.quantize_vectors import quantize_vectors
from quant.operators.tiled import quantize_rows
from quant.packing import unpack_nibbles
from quant.scheme import Tensors
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8
from quant.usage import UsageError
from tests.quant.conftest import drawn, product, running

KERNELS = cpu.kernels().supported()
SCHEMES: dict[str, Int4 | Int8] = {
    **{f"int8-{size or 'row'}": Int8(size) for size in Int8.facts.group_sizes},
    **{f"int4-{size or 'row'}": Int4(size) for size in Int4.facts.group_sizes},
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
every_kernel = pytest.mark.parametrize("variant", KERNELS)
needs_kernels = pytest.mark.skipif(not KERNELS, reason=f"no CPU kernels: {cpu.kernels().reason}")

activation_groups = st.sampled_from([16, 32, 64, 128])
seeds = st.integers(0, 2**31)


# ---- plain references


def plain_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes int64 [rows, groups, group] and scales float32 [rows, groups] of quantized activations."""
    grouped = F.pad(x, (0, -x.shape[1] % group)).unflatten(1, (-1, group))
    most = grouped.abs().amax(-1)
    inverse = torch.full_like(most, 127) / most  # `127 / most` would multiply by a rounded reciprocal
    inverse = torch.where(torch.isfinite(inverse), inverse, 0)
    return (grouped * inverse[..., None]).round().long(), most / 127


def bits_and_group(scheme: Int4 | Int8) -> tuple[int, int]:
    """Bits of a weight, inputs that share an activation scale."""
    return 4 if isinstance(scheme, Int4) else 8, scheme.group_size or scheme.ROW_GROUP


def plain_product(scheme: Int4 | Int8, x: Tensor, stored: Tensors, bias: Tensor | None) -> Tensor:
    """Exact integer sums over a group, their sum over groups in double precision."""
    bits, group = bits_and_group(scheme)
    weight = unpack_nibbles(stored["weight"]) if bits == 4 else stored["weight"]
    codes, scales = plain_rows(x, group)
    weight = F.pad(weight, (0, -weight.shape[1] % group)).long().unflatten(1, (-1, group))
    sums = torch.einsum("rgi,ogi->rgo", codes, weight)
    weight_scale = stored["weight_scale"].double().reshape(len(weight), -1).expand(-1, weight.shape[1])
    out = torch.einsum("rgo,rg,og->ro", sums.double(), scales.double(), weight_scale)
    return out if bias is None else out + bias


def magnitude(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What errors of single outputs are measured by: |row| · |row of the weight| + |bias|."""
    size = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    return size if bias is None else size + bias.abs()


# ---- quantized rows


@needs_kernels
@given(st.sampled_from([4, 8]), st.integers(1, 9), st.integers(1, 300), activation_groups, seeds)
@settings(max_examples=60, deadline=None)
def test_rows_are_quantized_as_a_plain_function_does_it(
    bits: int, num_rows: int, features: int, group: int, seed: int
) -> None:
    x = drawn(seed, num_rows, features)
    x[:, features // 2 : features // 2 + 40] = 0  # whole groups too
    codes, scales = plain_rows(x, group)
    for variant in KERNELS:
        with running(variant):
            rows = quantize_rows(x, bits, group)
        assert torch.equal(rows.codes.long(), codes.flatten(1))
        assert torch.equal(rows.scales, scales)
        assert torch.equal(rows.starts.long(), codes.sum(-1) * -(2 ** (bits - 1)))


@every_kernel
def test_rounding_is_to_the_nearest_even(variant: str) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5]])
    with running(variant):
        codes = quantize_rows(x, 8, 16).codes
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, 0, 0, 0, 0, 0, 0, 0]]


@every_kernel
def test_the_smallest_and_largest_floats_are_quantized(variant: str) -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[largest, -largest, largest / 2], [1e-45, 0.0, -1e-45], [3e-37, -3e-37, 1e-37], [1.0, 0.0, -0.0]])
    with running(variant):
        rows = quantize_rows(x, 8, 16)
    assert rows.codes[:, :3].tolist() == [[127, -127, 64], [0, 0, 0], [0, 0, 0], [127, 0, 0]]
    assert torch.equal(rows.scales[:, 0], x.abs().amax(1) / 127)


@every_kernel
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("features", [128, 103])
def test_a_group_that_is_not_finite_has_the_scale_nan(variant: str, value: float, features: int) -> None:
    clean = drawn(0, 5, features)
    for place in (0, 47, 48, features - 1):
        x = clean.clone()
        x[2, place] = value
        with running(variant):
            expected, rows = quantize_rows(clean, 8, 16), quantize_rows(x, 8, 16)
        others = torch.ones_like(rows.scales, dtype=torch.bool)
        others[2, place // 16] = False
        assert torch.isnan(rows.scales[~others]).all()
        assert torch.equal(rows.scales[others], expected.scales[others])
        assert torch.equal(rows.starts[others], expected.starts[others])
        assert torch.equal(rows.codes.unflatten(1, (-1, 16))[others], expected.codes.unflatten(1, (-1, 16))[others])


@every_kernel
def test_rows_that_do_not_lie_together_are_quantized_as_their_copy(variant: str) -> None:
    x = drawn(0, 64, 7).t()
    with running(variant):
        rows, copied = quantize_rows(x, 4, 32), quantize_rows(x.contiguous(), 4, 32)
    assert torch.equal(rows.codes, copied.codes)
    assert torch.equal(rows.scales, copied.scales)


# ---- products


@needs_kernels
@given(st.data(), st.sampled_from(list(SCHEMES.values())), st.integers(1, 70), st.integers(1, 20), st.booleans(), seeds)
@settings(max_examples=80, deadline=None)
def test_products_are_exact_in_their_codes_and_variants_agree(
    data: st.DataObject, scheme: Int4 | Int8, out_features: int, num_rows: int, with_bias: bool, seed: int
) -> None:
    step = scheme.group_size or (2 if isinstance(scheme, Int4) else 1)
    in_features = max(2, step * data.draw(st.integers(1, max(4, 200 // step))))
    x, weight = drawn(seed, num_rows, in_features), drawn(seed + 1, out_features, in_features)
    bias = drawn(seed + 2, out_features) if with_bias else None
    stored = scheme.quantize(weight)
    expected = plain_product(scheme, x, stored, bias)
    allowed = 1e-6 * magnitude(x, weight, bias)
    outs = []
    for variant in KERNELS:
        with running(variant):
            outs.append(product(scheme, x, stored, bias))
        assert outs[-1].dtype == torch.float32
        assert ((outs[-1] - expected).abs() <= allowed).all()
        assert ((outs[-1] - outs[0]).abs() <= allowed).all()


@needs_kernels
@every_scheme
@pytest.mark.parametrize(
    ("num_rows", "out_features", "groups"),
    [(1, 1, 1), (1, 15, 3), (2, 17, 1), (4, 31, 2), (5, 33, 1), (6, 16, 3), (9, 1, 33), (300, 35, 2), (600, 33, 16)],
)
def test_sizes_at_the_borders_of_tiles_and_blocks(
    scheme: Int4 | Int8, num_rows: int, out_features: int, groups: int
) -> None:
    in_features = groups * 128  # 16 groups of 600 rows: more than what is kept near at once
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator)
        for shape in ((num_rows, in_features), (out_features, in_features), (out_features,))
    )
    stored = scheme.quantize(weight)
    expected = plain_product(scheme, x, stored, bias)
    for variant in KERNELS:
        with running(variant):
            out = product(scheme, x, stored, bias)
        assert (out - expected).norm() <= 1e-5 * expected.norm()
        assert ((out - expected).abs() <= 1e-6 * magnitude(x, weight, bias)).all()
        with running(variant, num_threads=2):
            assert torch.equal(product(scheme, x, stored, bias), out)


@every_scheme
@every_kernel
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("lowest", [True, False])
def test_sums_of_the_largest_codes_do_not_saturate(scheme: Int4 | Int8, variant: str, sign: int, lowest: bool) -> None:
    """Activations ±127 times the lowest or the highest code everywhere, −128 among them, scales of either sign."""
    stored = scheme.quantize(drawn(0, 20, 128))
    byte = (-128 if lowest else 127) if isinstance(scheme, Int8) else (-120 if lowest else 0x77)  # −8 −8, 7 7
    stored["weight"] = torch.full_like(stored["weight"], byte)
    stored["weight_scale"] = stored["weight_scale"].abs() * sign
    x = drawn(1, 9, 1).abs().expand(-1, 128)
    x = torch.cat([x, -x, x * torch.tensor([1.0, -1.0]).repeat(64)])
    with running(variant):
        out = product(scheme, x, stored, None)
    expected = plain_product(scheme, x, stored, None)
    assert ((out - expected).abs() <= 1e-6 * magnitude(x, scheme.dequantize(stored), None)).all()


@needs_kernels
@every_scheme
def test_the_bias_is_any_float_that_can_be_added(scheme: Int4 | Int8) -> None:
    stored, x = scheme.quantize(drawn(0, 20, 128)), drawn(1, 3, 128)
    bias = torch.randn(20, generator=torch.Generator().manual_seed(0)).half()
    expected = product(scheme, x, stored, bias.float())
    assert torch.equal(product(scheme, x, stored, bias), expected)
    assert torch.equal(product(scheme, x, stored, bias.float().repeat_interleave(2)[::2]), expected)


@every_scheme
@every_kernel
def test_a_weight_without_outputs_gives_nothing(scheme: Int4 | Int8, variant: str) -> None:
    stored = {name: tensor[:0] for name, tensor in scheme.quantize(drawn(0, 4, 128)).items()}
    for num_threads in (2, 1):
        with running(variant, num_threads):
            assert product(scheme, torch.ones(3, 128), stored, None).shape == (3, 0)


# ---- GELU and attention


@needs_kernels
@given(st.integers(0, 200), st.sampled_from([0.01, 1.0, 5.0, 100.0, 1e30]), seeds)
@settings(max_examples=40, deadline=None)
def test_gelu_is_its_tanh_approximation(count: int, magnitude: float, seed: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * magnitude
    expected = F.gelu(x.double(), approximate="tanh")
    for variant in KERNELS:
        with running(variant):
            out = gelu_tanh(x)
        assert ((out - expected).abs() <= 2e-6 * expected.abs() + 1e-7).all()


@every_kernel
def test_an_element_has_the_same_gelu_wherever_it_lies(variant: str) -> None:
    x = drawn(0, 5, 10_001)
    x[0, :4] = torch.tensor([torch.nan, torch.inf, 0.0, -0.0])
    with running(variant):
        whole = gelu_tanh(x)
        for start, stop in [(0, 1), (1, 18), (3, 10_000), (9_990, 10_001)]:
            torch.testing.assert_close(
                gelu_tanh(x[:, start:stop]), whole[:, start:stop], rtol=0, atol=0, equal_nan=True
            )
    with running(variant, num_threads=3):
        torch.testing.assert_close(gelu_tanh(x), whole, rtol=0, atol=0, equal_nan=True)
    assert whole[0, :3].isnan().tolist() == [True, False, False]
    assert whole[0, 1:3].tolist() == [torch.inf, 0]


@needs_kernels
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=6),
    st.sampled_from([1, 2, 8, 9, 17, 33]),
    st.sampled_from([1, 8, 15, 16, 40, 64, 80, 128, 200]),
    st.sampled_from([1, 3, 16]),
    st.booleans(),
    seeds,
)
@settings(max_examples=80, deadline=None)
def test_attention_is_what_a_plain_loop_gives(
    seen: list[tuple[int, int]], heads: int, head_dim: int, block_size: int, in_codes: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots: list[list[int]] = []  # of the cache, for every row
    rows, blocks = [], list[int]()
    num_blocks = 64 // block_size + 2
    for context, more in seen:
        own = torch.randperm(num_blocks, generator=generator).tolist()
        first = -(-context // block_size) * block_size
        last = first + more - 1 if context and more < 2 else first + more  # a row may see its context alone
        rows.append((len(blocks), context, first, last))
        blocks += own
        slots.append(
            [own[i // block_size] * block_size + i % block_size for i in (*range(context), *range(first, last + 1))]
        )
    query, keys, values = (
        torch.randn(count, heads, head_dim, generator=generator) * 2
        for count in (len(rows), num_blocks * block_size, num_blocks * block_size)
    )
    where = torch.tensor(rows), torch.tensor(blocks)
    scales: list[Tensor] = []
    floats = keys, values
    if in_codes:
        (keys, key_scales), (values, value_scales) = quantize_vectors(keys), quantize_vectors(values)
        scales = [key_scales, value_scales]
        floats = keys * key_scales[..., None], values * value_scales[..., None]
    expected = torch.empty_like(query, dtype=torch.float64)
    for row, own in enumerate(slots):
        scores = torch.einsum("hd,jhd->hj", query[row].double(), floats[0][own].double()) / head_dim**0.5
        expected[row] = torch.einsum("hj,jhd->hd", scores.softmax(1), floats[1][own].double())
    for variant in KERNELS:
        with running(variant):
            out = attention(query, keys, values, *where, block_size, *scales)
            last_row = attention(query[-1:], keys, values, where[0][-1:], where[1], block_size, *scales)
        assert ((out - expected).abs() <= 2e-5).all()
        assert torch.equal(last_row, out[-1:])
        with running(variant, num_threads=3):
            many = where[0].repeat(5, 1), where[1]
            repeated = attention(query.repeat(5, 1, 1), keys, values, *many, block_size, *scales)
        assert torch.equal(repeated, out.repeat(5, 1, 1))


@every_kernel
@pytest.mark.parametrize("spoiled", ["key", "value"])
def test_a_scale_of_nan_makes_its_head_nan_for_the_rows_that_see_it(variant: str, spoiled: str) -> None:
    query, (codes, scales) = drawn(0, 2, 3, 64), quantize_vectors(drawn(1, 8, 3, 64))
    bad = scales.clone()
    bad[6, 1] = torch.nan
    rows, blocks = torch.tensor([[0, 3, 4, 5], [0, 3, 4, 6]]), torch.tensor([0, 1])
    by = (bad, scales) if spoiled == "key" else (scales, bad)
    with running(variant):
        out = attention(query, codes, codes, rows, blocks, 4, *by)
    assert out.isnan().all(-1).tolist() == [[False, False, False], [False, True, False]]
    assert out.isnan().any(-1).sum() == 1


@every_kernel
@pytest.mark.parametrize(
    ("row", "blocks"),
    [
        ([0, 9, 12, 11], [0, 1]),  # a context longer than its blocks
        ([0, 3, 4, 8], [0, 1]),  # a last slot behind them
        ([1, 5, 8, 7], [0, 1]),
        ([2, 1, 4, 3], [0, 1]),
        ([-1, 1, 4, 3], [0, 1]),
        ([0, 3, 4, 5], [0, 2]),  # blocks that the cache does not have
        ([0, 3, 4, 5], [-1, 1]),
        ([0, 0, 0, -1], [0, 1]),  # nothing at all
        ([0, 0, -4, -1], [0, 1]),
        ([0, -1, 0, 2], [0, 1]),
    ],
)
def test_a_row_that_would_read_outside_the_cache_is_refused(variant: str, row: list[int], blocks: list[int]) -> None:
    query, (codes, scales) = drawn(0, 2, 3, 8), quantize_vectors(drawn(1, 8, 3, 8))
    rows = torch.tensor([[0, 3, 4, 4], row])
    for keys, by in ((codes.float(), ()), (codes, (scales, scales))):
        with running(variant), pytest.raises(IndexError, match="outside its blocks or the cache"):
            attention(query, keys, keys, rows, torch.tensor(blocks), 4, *by)


@needs_kernels
def test_attention_refuses_tensors_of_other_shapes_and_dtypes() -> None:
    query, (codes, scales) = drawn(0, 2, 3, 8), quantize_vectors(drawn(1, 8, 3, 8))
    where = torch.tensor([[0, 3, 4, 5]] * 2), torch.tensor([0, 1])
    for keys, values, by in (
        (codes, codes, ()),
        (codes.float(), codes.float(), (scales, scales)),
        (codes, codes, (scales,)),
        (codes, codes[:4], (scales, scales)),
        (codes, codes[..., :4], (scales, scales)),
        (codes[:, :2], codes[:, :2], (scales, scales)),
        (codes, codes.transpose(0, 1).contiguous().transpose(0, 1), (scales, scales)),
        (codes, codes, (scales.double(), scales)),
        (codes, codes, (scales, scales[:4])),
    ):
        with pytest.raises(ValueError, match="attention takes"):
            attention(query, keys, values, *where, 4, *by)
    for rows, blocks in ((where[0][:1], where[1]), (where[0].int(), where[1]), (where[0], where[1].int())):
        with pytest.raises(ValueError, match="attention takes"):
            attention(query, codes, codes, rows, blocks, 4, scales, scales)


# ---- operators


@needs_kernels
@pytest.mark.parametrize("scheme", [Int8(), Int8(32), Int4(64)], ids=["int8", "int8-32", "int4-64"])
def test_operators_keep_what_torch_asks_of_them(scheme: Int4 | Int8) -> None:
    bits, group = bits_and_group(scheme)
    packed = scheme.pack(scheme.quantize(drawn(0, 20, 256)))
    weight, weight_scale = packed["weight"], packed["weight_scale"]
    x, bias = drawn(1, 3, 256), drawn(2, 20)
    product = getattr(torch.ops.glm_infill, f"int{bits}_linear").default
    torch.library.opcheck(product, (x, weight, weight_scale, bias, group, 20))
    torch.library.opcheck(product, (x, weight, weight_scale, None, group, 20))


@needs_kernels
def test_the_other_operators_keep_what_torch_asks_of_them() -> None:
    query, cache = drawn(0, 2, 3, 8), drawn(1, 8, 3, 8)
    where = torch.tensor([[0, 3, 4, 5], [0, 3, 4, 6]]), torch.tensor([1, 0])
    torch.library.opcheck(torch.ops.glm_infill.attention.default, (query, cache, cache, *where, 4))
    codes, scales = quantize_vectors(cache)
    torch.library.opcheck(torch.ops.glm_infill.attention.default, (query, codes, codes, *where, 4, scales, scales))
    torch.library.opcheck(torch.ops.glm_infill.gelu_tanh.default, (drawn(0, 3, 8),))
    torch.library.opcheck(torch.ops.glm_infill.quantize_vectors.default, (cache,))
    low_rank = (drawn(0, 2, 8), drawn(1, 2, 4), torch.tensor([(0, 0)]), [1], [drawn(2, 3, 4)], [drawn(3, 3, 8)], [0])
    torch.library.opcheck(torch.ops.glm_infill.add_low_rank.default, low_rank)


@needs_kernels
@every_scheme
@pytest.mark.parametrize("features", [128, 256])
def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(scheme: Int4 | Int8, features: int) -> None:
    stored, x, bias = scheme.quantize(drawn(0, 20, features)), drawn(1, 3, features), drawn(2, 20)
    packed = scheme.pack(stored)
    real = scheme.matmul(x, packed, bias, 20)
    on_meta = scheme.matmul(
        x.to("meta"), {name: tensor.to("meta") for name, tensor in packed.items()}, bias.to("meta"), 20
    )
    assert (on_meta.shape, on_meta.dtype, on_meta.device.type) == (real.shape, real.dtype, "meta")
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in packed.items()}
        fake = scheme.matmul(mode.from_tensor(x), fakes, mode.from_tensor(bias), 20)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


# ---- the library


def test_without_a_choice_the_fastest_variant_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for unset in (lambda: monkeypatch.delenv(cpu.CHOICE, raising=False), lambda: monkeypatch.setenv(cpu.CHOICE, "")):
        unset()
        assert cpu.variant() == (KERNELS[-1] if KERNELS else None)
    order = [cpu.VARIANTS.index(name) for name in KERNELS]
    assert order == sorted(order)


@every_kernel
def test_the_environment_chooses_a_variant(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setenv(cpu.CHOICE, variant)
    assert cpu.variant() == variant
    assert cpu.describe() == f"{variant} kernels"


@pytest.mark.parametrize("asked", ["avx9", "AVX2", "avx2 ", "none"])
def test_an_unknown_variant_is_refused_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv(cpu.CHOICE, asked)
    expected = f"GLM_INFILL_CPU_KERNEL={asked}: this machine can run {', '.join([*KERNELS, 'torch'])}"
    for refused in (cpu.variant, cpu.describe, lambda: Int8().pack(Int8().quantize(torch.ones(2, 2)))):
        with pytest.raises(UsageError, match="GLM_INFILL_CPU_KERNEL=") as error:
            refused()
        assert str(error.value) == expected


def test_torch_takes_torchs_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.CHOICE, "torch")
    assert cpu.variant() is None
    reason = cpu.kernels().reason or "GLM_INFILL_CPU_KERNEL=torch"
    assert cpu.describe() == f"torch's own kernels, slower ({reason})"
    stored = Int8().quantize(drawn(0, 20, 32))
    assert Int8().pack(stored)["weight"] is stored["weight"]


@needs_kernels
@every_scheme
def test_a_weight_packed_for_the_kernels_is_refused_without_them(scheme: Int4 | Int8) -> None:
    packed = scheme.pack(scheme.quantize(drawn(0, 20, 128)))
    with running("torch"), pytest.raises(RuntimeError, match="the CPU kernels are not in use on this machine"):
        scheme.matmul(torch.ones(3, 128), packed, None, 20)


def test_a_missing_library_has_no_variants() -> None:
    assert cpu.Kernels(None, "built without a C++ compiler").supported() == []


@needs_kernels
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_library_brings_no_openmp_of_its_own() -> None:
    library = cpu.kernels().library
    assert library is not None
    shown = subprocess.run(
        ["readelf", "--dynamic", "--wide", library._name], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in shown.splitlines() if "(NEEDED)" in line]
    assert not [name for name in needed if "omp" in name]
