"""The process's heap: what is free of it goes back to the system. Does not import torch."""

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Gives the system back what has been freed on the heap, where the C library is glibc: after the weights are
    packed, some 200 MB for a GLM-6B."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
