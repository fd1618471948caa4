"""Packing: GLM-130B's bytes and the kernels' tiles, each against a plain loop and its inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.cpu import CHOICE
from quant.packing import TILE, pack_nibbles, pair_halves, tiled_scale, tiles, unpack_nibbles, untile

counts = st.one_of(st.integers(1, 40), st.sampled_from([48, 63, 64, 65, 128]))
seeds = st.integers(0, 2**31)


def random_codes(bits: int, outputs: int, inputs: int, seed: int) -> Tensor:
    """All codes of so many bits, the most negative one too: a file of others may hold it."""
    generator = torch.Generator().manual_seed(seed)
    most = 2 ** (bits - 1)
    return torch.randint(-most, most, (outputs, inputs), generator=generator, dtype=torch.int8)


def plain_tiles(codes: Tensor, bits: int, inputs: int) -> Tensor:
    """`tiles`, number by number."""
    width = 8 if bits == 4 else 4
    num_tiles = -(-len(codes) // TILE)
    out = torch.zeros(num_tiles, inputs // width, TILE, 4, dtype=torch.uint8)
    for output in range(num_tiles * TILE):
        for number in range(inputs):
            there = output < len(codes) and number < codes.shape[1]
            unsigned = (int(codes[output, number]) if there else 0) + 2 ** (bits - 1)
            high = bits == 4 and number % 8 >= 4
            out[output // TILE, number // width, output % TILE, number % 4] += unsigned << (4 if high else 0)
    return out


@pytest.mark.parametrize(
    ("codes", "stored"),
    [([1, -2], [0x1E]), ([-1, 7], [0xF7]), ([-8, 0], [0x80]), ([0, 0], [0]), ([3, 4, -7, 5], [0x34, 0x95])],
)
def test_the_first_of_two_numbers_is_the_high_nibble(codes: list[int], stored: list[int]) -> None:
    packed = pack_nibbles(torch.tensor([codes], dtype=torch.int8))
    assert packed.dtype == torch.int8
    assert packed.view(torch.uint8).tolist() == [stored]
    assert unpack_nibbles(packed).tolist() == [codes]


@given(counts, counts, seeds)
@settings(max_examples=40, deadline=None)
def test_packed_nibbles_unpack_to_the_same(rows: int, pairs: int, seed: int) -> None:
    codes = random_codes(4, rows, 2 * pairs, seed)
    packed = pack_nibbles(codes)
    assert (packed.shape, packed.dtype) == ((rows, pairs), torch.int8)
    assert torch.equal(unpack_nibbles(packed), codes)
    assert torch.equal(pack_nibbles(codes.t().contiguous().t()), packed)  # as a transposed weight lies


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "features", "inputs"), [(1, 2, 16), (16, 16, 16), (17, 30, 32), (33, 64, 96)])
def test_tiles_lie_as_the_kernels_read_them(bits: int, outputs: int, features: int, inputs: int) -> None:
    codes = random_codes(bits, outputs, features, 0)
    stored = pack_nibbles(codes) if bits == 4 else codes
    assert torch.equal(tiles(stored, bits, inputs), plain_tiles(codes, bits, inputs))


@given(st.sampled_from([4, 8]), counts, counts, st.sampled_from([16, 32, 64, 128]), seeds)
@settings(max_examples=60, deadline=None)
def test_tiles_untile_to_the_same(bits: int, outputs: int, count: int, group: int, seed: int) -> None:
    features = 2 * count if bits == 4 else count
    codes = random_codes(bits, outputs, features, seed)
    inputs = -(-features // group) * group
    packed = tiles(pack_nibbles(codes) if bits == 4 else codes, bits, inputs)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-outputs // TILE), inputs // (8 if bits == 4 else 4), TILE, 4)
    assert torch.equal(untile(packed, bits, torch.arange(outputs))[:, :features], codes)
    whole = untile(packed, bits, torch.arange(len(packed) * TILE))
    assert not whole[outputs:].any()
    assert not whole[:, features:].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outputs", [1023, 1024, 1025, 2065])
def test_a_weight_of_many_outputs_is_repacked_in_pieces(bits: int, outputs: int) -> None:
    codes = random_codes(bits, outputs, 32, 0)
    packed = tiles(pack_nibbles(codes) if bits == 4 else codes, bits, 32)
    assert torch.equal(untile(packed, bits, torch.arange(outputs)), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cut_of_a_weight_tiles_as_its_copy(bits: int) -> None:
    codes = random_codes(bits, 40, 128, 0)
    stored = pack_nibbles(codes) if bits == 4 else codes
    part = stored[8:35, stored.shape[1] // 4 : stored.shape[1] // 2]
    assert not part.is_contiguous()
    assert torch.equal(tiles(part, bits, 32), tiles(part.contiguous(), bits, 32))


@given(counts, st.integers(1, 9), st.sampled_from([torch.float16, torch.float32]), seeds)
@settings(max_examples=40, deadline=None)
def test_tiled_scales_are_where_their_outputs_are(outputs: int, groups: int, dtype: torch.dtype, seed: int) -> None:
    scale = torch.rand(outputs, groups, generator=torch.Generator().manual_seed(seed)).to(dtype)
    tiled = tiled_scale(scale)
    assert (tiled.shape, tiled.dtype) == ((-(-outputs // TILE), groups, TILE), dtype)
    assert tiled.is_contiguous()
    whole = tiled.transpose(1, 2).flatten(0, 1)
    assert torch.equal(whole[:outputs], scale)
    assert not whole[outputs:].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_tiles_of_torch_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    codes = random_codes(bits, 300, 1100, 0)
    stored = pack_nibbles(codes) if bits == 4 else codes
    made = tiles(stored, bits, 1120)
    monkeypatch.setenv(CHOICE, "torch")
    assert torch.equal(tiles(stored, bits, 1120), made)


@pytest.mark.parametrize("kernel", ["", "torch"])
@given(st.integers(1, 5), st.integers(1, 70), seeds)
@settings(max_examples=20, deadline=None)
def test_halves_of_blocks_become_pairs(kernel: str, rows: int, blocks: int, seed: int) -> None:
    codes = random_codes(4, rows, blocks * 32, seed)
    halves = (codes + 8).view(torch.uint8).view(rows, blocks, 2, 16)
    held = torch.full((rows, blocks, 18), 77, dtype=torch.uint8)
    held[..., 2:] = halves[:, :, 0] | halves[:, :, 1] << 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHOICE, kernel)
        assert torch.equal(pair_halves(held[..., 2:]), pack_nibbles(codes))
        assert torch.equal(pair_halves(held[:, ::2, 2:]), pack_nibbles(codes.view(rows, blocks, 32)[:, ::2].flatten(1)))
