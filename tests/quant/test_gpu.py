"""The Triton kernels: against the plain product, in Triton's interpreter or on a card, and compiled for two cards.

Triton decides at import whether it interprets, and other tests may have imported it: so the tests marked `gpu` run on a
card, or in a process of their own that `test_the_kernels_in_the_interpreter` starts.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant.scheme import Scheme, Tensors
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from quant import gpu  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret
CARD = torch.cuda.is_available() and not INTERPRETED
on_a_card_or_interpreted = pytest.mark.skipif(
    not CARD and not INTERPRETED, reason="no CUDA device; test_the_kernels_in_the_interpreter runs it"
)
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
DEVICE = torch.device("cuda" if CARD else "cpu")
SHARED_MEMORY = {75: 64 << 10, 86: 99 << 10}  # bytes of a program, CUDA programming guide, "Technical specifications"
# Outputs that end inside a tile, inputs that end inside a block, one part and several.
CASES = [
    (Int4(32), 70, 128),
    (Int4(32), 33, 1056),
    (Int4(64), 130, 192),
    (Int4(128), 70, 2176),
    (Int4(0), 65, 1058),
    (Int4(0), 3, 98),
    (Int8(), 130, 1031),
    (Int8(), 17, 40),
    (Int8(32), 70, 128),
    (Int8(32), 33, 1056),
]
SMALLER_CASES = [(Int4(32), 70, 128), (Int4(64), 33, 640), (Int4(0), 3, 98), (Int8(), 17, 301), (Int8(32), 33, 640)]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(scheme: Scheme, x: Tensor, stored: Tensors, bias: Tensor | None = None) -> Tensor:
    """On the device under test; back on the CPU."""
    linear = gpu.int4_linear if isinstance(scheme, Int4) else gpu.int8_linear
    weight, scale = stored["weight"].to(DEVICE), stored["weight_scale"].to(DEVICE)
    return linear(x.to(DEVICE), weight, scale, None if bias is None else bias.to(DEVICE)).cpu()


def check(scheme: Scheme, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    """Right at all numbers of rows, and the same bits at all of them.

    The interpreter multiplies by numpy, which sums in another order for tiles of another shape.
    """
    stored = scheme.quantize(drawn(0, outputs, inputs))
    x, bias = drawn(1, 40, inputs).to(dtype), drawn(2, outputs).to(dtype)
    expected = x.float() @ scheme.dequantize(stored).t()
    rounding = 4 * torch.finfo(dtype).eps
    full = product(scheme, x, stored, bias)
    assert full.dtype == dtype
    torch.testing.assert_close(full.float(), expected + bias.float(), rtol=rounding, atol=rounding)
    torch.testing.assert_close(product(scheme, x, stored).float(), expected, rtol=rounding, atol=rounding)
    few = product(scheme, x[:16], stored, bias)
    torch.testing.assert_close(few, full[:16], rtol=rounding, atol=rounding)
    assert INTERPRETED or torch.equal(few, full[:16])
    for first, last in [(0, 1), (5, 8), (3, 20)]:
        some, whole = product(scheme, x[first:last], stored, bias), few if last <= 16 else full
        torch.testing.assert_close(some, whole[first:last], rtol=rounding, atol=rounding)
        alike = gpu.tile(last - first, gpu.has_tensor_cores(DEVICE)) == gpu.tile(
            len(whole), gpu.has_tensor_cores(DEVICE)
        )
        assert not alike or torch.equal(some, whole[first:last])


@pytest.mark.gpu
@on_a_card_or_interpreted
@pytest.mark.parametrize(("scheme", "outputs", "inputs"), CASES)
def test_products_are_right_and_their_bits_independent_of_the_rows(scheme: Scheme, outputs: int, inputs: int) -> None:
    check(scheme, outputs, inputs, torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not INTERPRETED, reason="a card is what it is; test_the_kernels_in_the_interpreter runs it")
@pytest.mark.parametrize(("scheme", "outputs", "inputs"), SMALLER_CASES)
def test_products_without_tensor_cores(
    scheme: Scheme, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "has_tensor_cores", lambda device: False)
    check(scheme, outputs, inputs, torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not CARD or not gpu.has_tensor_cores(DEVICE), reason="the interpreter cannot multiply bfloat16")
@pytest.mark.parametrize(("scheme", "outputs", "inputs"), SMALLER_CASES)
def test_bfloat16_products(scheme: Scheme, outputs: int, inputs: int) -> None:
    check(scheme, outputs, inputs, torch.bfloat16)


@pytest.mark.gpu
@on_a_card_or_interpreted
@pytest.mark.parametrize("scheme", [Int4(32), Int8()])
def test_no_rows_give_no_rows(scheme: Scheme) -> None:
    stored = scheme.quantize(drawn(0, 6, 64))
    assert product(scheme, torch.empty(0, 64, dtype=torch.float16), stored).shape == (0, 6)


@pytest.mark.gpu
@on_a_card_or_interpreted
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("scheme", [Int4(32), Int8()])
@pytest.mark.parametrize("rows", [4, 20])
def test_a_bad_row_spoils_no_other(scheme: Scheme, rows: int) -> None:
    stored = scheme.quantize(drawn(0, 6, 64))
    x = drawn(1, rows, 64).half()
    clean = product(scheme, x, stored)
    x[2, 5] = torch.nan
    dirty = product(scheme, x, stored)
    assert torch.isnan(dirty[2]).all()
    others = [row for row in range(rows) if row != 2]
    assert torch.equal(dirty[others], clean[others])


@pytest.mark.gpu
@on_a_card_or_interpreted
def test_extreme_codes_and_tensors_that_are_not_contiguous() -> None:
    codes = torch.tensor([[-8, 7, 0, -1] * 16, [7, 7, -8, -8] * 16, [-7, 1, 2, 3] * 16], dtype=torch.int8)
    stored = Int4(0).stored(codes, torch.tensor([[0.5], [2.0], [1.0]]).half())
    x = drawn(1, 64, 5).half().t()
    expected = x.float() @ Int4(0).dequantize(stored).t()
    torch.testing.assert_close(product(Int4(0), x, stored).float(), expected, rtol=1e-3, atol=1e-2)
    stored["weight"] = stored["weight"].t().contiguous().t()
    torch.testing.assert_close(product(Int4(0), x, stored).float(), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not CARD, reason="no CUDA device")
@pytest.mark.parametrize("scheme", [Int4(32), Int4(0), Int8(), Int8(32)])
def test_schemes_reach_the_kernels(scheme: Scheme) -> None:
    stored = scheme.quantize(drawn(0, 70, 256))
    x = drawn(1, 2, 3, 256).half()
    packed = scheme.pack({name: tensor.cuda() for name, tensor in stored.items()})
    out = scheme.matmul(x.cuda(), packed, None, 70).cpu()
    assert torch.equal(out.view(6, 70), product(scheme, x.view(6, 256), stored))


def test_the_kernels_in_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("it is this process")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--noconftest", "-p", "no:cacheprovider", "-x", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout), done.stdout


@pytest.mark.parametrize(("scheme", "outputs", "inputs"), CASES)
def test_chunks_of_floats_give_the_same_products(
    scheme: Scheme, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "COPIED_OUTPUTS", 32)
    stored = scheme.quantize(drawn(0, outputs, inputs))
    x, bias = drawn(1, 5, inputs).half(), drawn(2, outputs).half()
    out = gpu.chunked(x, stored["weight"], stored["weight_scale"], bias, 4 if isinstance(scheme, Int4) else 8)
    expected = x.float() @ scheme.dequantize(stored).t() + bias.float()
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), expected, rtol=2e-3, atol=0.05)  # weights rounded to float16


def test_float32_is_refused() -> None:
    stored = Int8().quantize(drawn(0, 6, 64))
    with pytest.raises(ValueError, match="the GPU kernels take float16 or bfloat16"):
        gpu._linear(torch.ones(1, 64), stored["weight"], stored["weight_scale"], None, 8)


@pytest.mark.parametrize("scheme", [Int4(32), Int8()])
def test_shapes_are_known_without_a_device(scheme: Scheme) -> None:
    stored = {name: tensor.to("meta") for name, tensor in scheme.quantize(drawn(0, 6, 64)).items()}
    x = torch.empty(3, 64, dtype=torch.float16, device="meta")
    out = scheme.matmul(x, stored, None, 6)
    assert out.shape == (3, 6)
    assert out.dtype == torch.float16


@pytest.mark.parametrize("tensor_cores", [True, False])
@pytest.mark.parametrize(
    ("outputs", "width"), [(9216, 6144), (4096, 2048), (150528, 2048), (64, 16), (64, 8), (1, 9000)]
)
def test_parts_fill_the_card_and_are_not_too_short(outputs: int, width: int, tensor_cores: bool) -> None:
    blocks = triton.cdiv(width, gpu.block(0, tensor_cores))
    steps = gpu.part_steps(outputs, blocks, tensor_cores)
    parts = triton.cdiv(blocks, steps)
    tiles = triton.cdiv(outputs, gpu.tile(1, tensor_cores).outputs)
    assert min(8, blocks) <= steps <= blocks
    assert parts == 1 or tiles * (parts - 1) < 256


@compiled
@pytest.mark.parametrize(("capability", "rows"), [(75, 1), (75, 16), (75, 17), (86, 16), (86, 17)])
@pytest.mark.parametrize(("bits", "group"), [(4, 64), (4, 0), (8, 0), (8, 32)])
def test_tiles_fit_their_cards(
    bits: int, group: int, rows: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert_fits(bits, group, rows, capability, tl.float16, tmp_path)


@compiled
@pytest.mark.parametrize("bits", [4, 8])
def test_bfloat16_compiles(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert_fits(bits, 0, 17, 86, tl.bfloat16, tmp_path)


@compiled
def test_the_sum_of_parts_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"parts": "*fp32", "scale": "*fp16", "bias": "constexpr", "out": "*fp16", "rows": "i32"}
    signature |= {"outputs": "i32", "splits": "i32", "GROUP": "constexpr", "OUTPUTS": "constexpr"}
    source = ASTSource(gpu.sum_parts, signature, {(2,): None, (7,): 0, (8,): 128})
    triton.compile(source, GPUTarget("cuda", 75, 32), {"enable_fp_fusion": True})


def assert_fits(bits: int, group: int, rows: int, capability: int, dtype: tl.dtype, folder: Path) -> None:
    """Compiled as for the card: shared memory, no spilled registers, and tensor cores where Triton has them."""
    tensor_cores = capability >= 80
    tile, block, parts = gpu.tile(rows, tensor_cores), gpu.block(group, tensor_cores), rows <= gpu.NARROW
    floats = "*fp16" if dtype == tl.float16 else "*bf16"
    signature = {
        **{"x": "*i32" if bits == 4 else floats, "weight": "*u8", "scale": "*fp16" if bits == 4 or group else "*fp32"},
        **{"bias": floats, "out": "*fp32" if parts else floats},
        **dict.fromkeys(["rows", "outputs", "width", "splits", "steps"], "i32"),
    }
    constants = {"BITS": bits, "GROUP": group, "PARTS": parts, "DTYPE": dtype}
    constants |= {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "BLOCK": block}
    aligned = [(number,) for number, name in enumerate(signature) if name not in ("rows", "splits", "steps")]
    source = ASTSource(
        gpu.products,
        signature | dict.fromkeys(constants, "constexpr"),
        {(len(signature) + number,): value for number, value in enumerate(constants.values())},
        {index: [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    kernel = triton.compile(source, GPUTarget("cuda", capability, 32), options)
    assert kernel.metadata.shared <= SHARED_MEMORY[capability]
    assert ("mma.sync" in kernel.asm["ptx"]) == tensor_cores
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "STACK:0 " in usage, usage
