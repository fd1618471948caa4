"""What the tests of schemes and of kernels share: a variant to run in, numbers, and the way through a packed form."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from quant import cpu
from quant.scheme import Scheme, Tensors


@contextmanager
def running(variant: str, num_threads: int = 1) -> Iterator[None]:
    """What runs inside takes one variant of the kernels, or torch's own, with so many threads."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.CHOICE, variant)
        torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal numbers whose rows have very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * 10.0 ** torch.randint(-3, 4, (*shape[:-1], 1), generator=generator)


def product(scheme: Scheme, x: Tensor, stored: Tensors, bias: Tensor | None = None) -> Tensor:
    """Through the packed form, as a layer does it."""
    return scheme.matmul(x, scheme.pack(stored), bias, len(stored["weight"]))
