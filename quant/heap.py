"""The heap of this process: free memory goes back to the system. Does not import torch."""

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Returns freed heap memory to the system, if the C library is glibc. After packing a GLM-6B that is some 200
    MB."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
