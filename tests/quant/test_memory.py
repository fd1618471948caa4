"""Large tensors and the heap: resident only as far as written, and given back."""

import sys
from pathlib import Path

import pytest
import torch

from quant.heap import give_back
from quant.memory import huge_page_zeros
from quant.packing import tiles


def resident() -> int:
    """Bytes of this process in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2**20, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float32])
def test_small_and_large_tensors_are_zeros_of_their_own(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor, other = huge_page_zeros(shape, dtype), huge_page_zeros(shape, dtype)
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    tensor.fill_(3)
    assert not other.any()
    assert (tensor == 3).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_has_not_been_written_takes_no_memory() -> None:
    give_back()
    before = resident()
    tensor = huge_page_zeros((2**24,), torch.float32)
    assert resident() < before + 4 * 2**20
    tensor[: 2**23] = 1
    assert before + 30 * 2**20 < resident() < before + 40 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_freed_between_what_stays_is_given_back() -> None:
    tensors = [torch.ones(2**16, dtype=torch.uint8) for _ in range(1000)]  # on the heap
    full = resident()
    kept = tensors[::20]
    del tensors
    give_back()
    assert resident() < full - 50 * 2**20
    assert all(bool(tensor.all()) for tensor in kept)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_packed_weight_is_freed_with_its_tensor() -> None:
    stored = torch.ones(4096, 8192, dtype=torch.int8)
    give_back()
    before = resident()
    packed = tiles(stored, 8, 8192)
    assert resident() > before + 30 * 2**20
    assert int(packed[17, 3, 5, 1]) == 129
    del packed
    give_back()
    assert resident() < before + 4 * 2**20
