"""Large tensors in huge pages, and whether an error says that memory ran out."""

import errno
import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

_PAGE = 2 * 1024 * 1024


def huge_page_zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """A tensor of zeros in huge pages where the system gives them.

    Weights and cached keys are read from end to end at every step; with pages of 4 KB, TLB misses cost 20 % of a step.
    A large tensor is a mapping of its own: from the heap, what is freed between tensors while a checkpoint is loaded
    would stay resident. What has not been written takes no memory.
    """
    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes < 2 * _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed; torch's for a CPU has no type of its own."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
