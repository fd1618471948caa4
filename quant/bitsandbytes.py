"""bitsandbytes, the optional dependency of two schemes: imported on first use, quietly and without the network.

Measured with bitsandbytes 0.50.2 on one core, a 4096 × 4096 weight, one row: NF4 takes 0.4 ms on a CPU with AVX-512
bfloat16 instructions, 50 ms on another, where each call makes a float copy of the weight.
"""

import importlib
import importlib.metadata
import logging
import sys
from functools import cache
from typing import Any

import torch

from quant.usage import UsageError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)  # that bitsandbytes computes in
_INSTALL = "pip install 'glm-infill[bnb]'"


@cache
def library() -> Any:
    """Imports bitsandbytes on first use and returns it. Raises ImportError if it is not installed."""
    # bitsandbytes logs that a package is missing, and warns at every product that it rounds to float16.
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    # With the package `kernels`, its import would fetch a kernel from the Hugging Face hub.
    had = "kernels" in sys.modules
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if had:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]


def require(scheme: str) -> None:
    """Raises UsageError, naming the scheme, if bitsandbytes is not installed."""
    try:
        library()
    except ImportError as error:
        raise UsageError(f"{scheme} needs bitsandbytes: {_INSTALL}") from error


def describe() -> str:
    """One line for people: the installed version, or how to install it."""
    try:
        return f"bitsandbytes {importlib.metadata.version('bitsandbytes')}"
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: {_INSTALL}"
