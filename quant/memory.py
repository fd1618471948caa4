"""Large tensors in huge pages, and the test whether an error means that memory ran out."""

import errno
import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

_PAGE = 2 * 1024 * 1024


def huge_page_zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Zeros of `shape` [...], in huge pages if the system gives them.

    Every step reads all weights and cached keys; with pages of 4 KB, TLB misses cost 20 % of a step. A large tensor has
    a memory mapping of its own: a heap would keep what is freed between tensors while a checkpoint loads. Pages that
    nobody has written take no memory.
    """
    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes < 2 * _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed. On a CPU torch has no error type for that."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
