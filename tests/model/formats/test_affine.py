"""Codes with scales and zeros: which scheme has them, and how words hold them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import CheckpointError
from model.formats.affine import Affine, Parts, group_order
from model.formats.bit_words import covering, unpack
from model.formats.keeping import keeping
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8
from tests.model.formats.packed import changed, folder_of, golden, in_words, weights_of

Q = "model.layers.0.self_attn.q_proj"


def affine(bits: int, group_size: int, scales: Tensor, zeros: Tensor | None = None) -> Affine:
    """A matrix of 8 × 128 made-up codes."""
    low = -(2 ** (bits - 1))
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(low, -low, (8, 128), dtype=torch.int8, generator=generator)
    codes[0, 0] = low
    parts = Parts(
        lambda start, count: codes[start : start + count],
        lambda start, count: scales[start : start + count],
        None if zeros is None else lambda start, count: zeros[start : start + count],
    )
    return Affine((8, 128), "codes", parts, keeping(bits, 128, group_size))


@pytest.mark.parametrize(
    ("bits", "group_size", "kept", "groups"),
    [
        (4, 0, Int4, 0), (4, 32, Int4, 32), (4, 64, Int4, 64), (4, 128, Int4, 128),
        (8, 0, Int8, 0), (8, 32, Int8, 32), (8, 64, Int8, 32), (8, 128, Int8, 0),
    ],
)  # fmt: skip
def test_what_is_kept_has_the_same_numbers(bits: int, group_size: int, kept: type, groups: int) -> None:
    """Also the lowest code, and where the scheme's groups are smaller than the file's."""
    scales = torch.rand(8, 128 // (group_size or 128), generator=torch.Generator().manual_seed(0)).half()
    matrix = affine(bits, group_size, scales)
    form = matrix.form
    assert form is not None
    assert (type(form), form.group_size) == (kept, groups)
    stored = matrix.stored(2, 5)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == form.tensors(5, 128)
    assert torch.equal(form.dequantize(stored), matrix.numbers(2, 5))


@pytest.mark.parametrize(
    ("bits", "group_size", "scales", "zeros"),
    [
        (4, 16, torch.ones(8, 8).half(), None),  # no such groups
        (4, 32, torch.full((8, 4), 1e-9).bfloat16(), None),  # not in float16
        (4, 32, torch.full((8, 4), 0.1), None),
        (4, 32, torch.full((8, 4), 1e6).bfloat16(), None),
        (4, 32, torch.ones(8, 4).half(), torch.eye(8, 4, dtype=torch.int8)),  # one zero is enough
        (8, 16, torch.ones(8, 8).half(), None),
    ],
)
def test_what_no_scheme_has(bits: int, group_size: int, scales: Tensor, zeros: Tensor | None) -> None:
    assert affine(bits, group_size, scales, zeros).form is None


def test_zeros_that_are_all_zero_do_not_matter() -> None:
    assert affine(4, 32, torch.ones(8, 4).half(), torch.zeros(8, 4, dtype=torch.int8)).form is not None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from((4, 8)), st.integers(1, 40), st.integers(0, 99), st.data())
def test_words_hold_what_was_packed(bits: int, count: int, seed: int, data: st.DataObject) -> None:
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(seed))
    words = in_words(codes, bits)
    assert torch.equal(unpack(words, bits)[:, :count].long(), codes)
    start = data.draw(st.integers(0, count - 1))
    length = data.draw(st.integers(1, count - start))
    first, number, skipped = covering(start, length, bits)
    found = unpack(words[:, first : first + number], bits)[:, skipped : skipped + length]
    assert torch.equal(found.long(), codes[:, start : start + length])


def test_group_orders() -> None:
    inputs = torch.arange(64)
    assert group_order(inputs // 32, "g", 2, 32) is None
    assert group_order(inputs.flip(0) // 32, "g", 2, 32) is not None
    assert group_order(inputs[:50] // 32, "g", 2, 32) is not None  # the last group is smaller
    with pytest.raises(CheckpointError, match=r"g names groups from 0 to 1, there are 1"):
        group_order(inputs // 32, "g", 1, 32)


def test_zeros_of_version_1_borrow_from_their_neighbours(tmp_path: Path) -> None:
    """As GPTQModel writes them: it subtracts ones from whole words, so that 0, 8 becomes 15, 6."""
    zeros = torch.full((2, 64), 8)
    zeros[:, 0] = 0
    words = in_words(zeros, 4) - 0x11111111
    assert unpack(words, 4)[0, :3].tolist() == [15, 6, 7]
    folder = changed(folder_of("gptq_g32", tmp_path), {f"{Q}.qzeros": words})
    whole = weights_of(folder).read("transformer.layers.0.attention.query_key_value.weight")[:64]
    qweight, scales = (golden("gptq_g32", f"weights.{Q}.")[leaf] for leaf in ("qweight", "scales"))
    codes = unpack(qweight.T, 4).float().view(64, 2, 32)
    expected = (codes - zeros.T[:, :, None]) * scales.T.float()[:, :, None]
    assert torch.equal(whole, expected.flatten(1))
