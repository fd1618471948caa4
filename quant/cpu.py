"""The CPU kernels: loading the library, choosing a variant, calling a function (`quant.operators` has them).

`quant/cpu_kernels.cpp` is an optional part of the build. Its OpenMP symbols are unresolved until torch has loaded its
own runtime, so that both share one pool of threads: two pools on the same cores would fight.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from quant.usage import UsageError

VARIANTS = ("portable", "avx2", "avx-vnni", "avx512-vnni")  # by their numbers in cpu_kernels.cpp
CHOICE = "GLM_INFILL_CPU_KERNEL"

POINTER, INT32, INT64, UINT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
FLOAT32, FLOAT64 = ctypes.c_float, ctypes.c_double


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library, or the reason why it is missing."""

    library: ctypes.CDLL | None
    reason: str = ""

    def supported(self) -> list[str]:
        """Names of the variants that this machine can run, the fastest last."""
        if self.library is None:
            return []
        return [name for number, name in enumerate(VARIANTS) if self.library.glm_infill_supports(number)]


@cache
def kernels() -> Kernels:
    """Loads the library that the package's build made, once."""
    spec = importlib.util.find_spec("quant._cpu")
    if spec is None or spec.origin is None:
        return Kernels(None, "built without a C++ compiler")
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        return Kernels(None, str(error).splitlines()[0])
    return Kernels(library)


def variant() -> str | None:
    """The variant in use: the fastest, or the one in GLM_INFILL_CPU_KERNEL. None stands for torch's own kernels.

    Raises UsageError for a name that is unknown or that this machine cannot run.
    """
    return _chosen(os.environ.get(CHOICE))


@cache
def _chosen(asked: str | None) -> str | None:
    supported = kernels().supported()
    if not asked:
        return supported[-1] if supported else None
    if asked == "torch":
        return None
    if asked not in supported:
        raise UsageError(f"{CHOICE}={asked}: this machine can run {', '.join([*supported, 'torch'])}")
    return asked


def describe() -> str:
    """One line for people: which kernels multiply by weights, and why."""
    chosen = variant()
    if chosen is not None:
        return f"{chosen} kernels"
    reason = kernels().reason or f"{CHOICE}=torch"
    return f"torch's own kernels, slower ({reason})"


def number() -> int | None:
    """The number of the variant in use; None for torch's own kernels. Raises UsageError as `variant` does."""
    return _numbered(os.environ.get(CHOICE))


@cache
def _numbered(asked: str | None) -> int | None:
    name = _chosen(asked)
    return None if name is None else VARIANTS.index(name)


class Kernel:
    """A function of the library. Its first argument is the variant's number; if it is `threaded`, its last is torch's
    number of threads."""

    def __init__(self, name: str, *arguments: type, returns: type | None = None, threaded: bool = True) -> None:
        self._name, self._arguments, self._returns, self._threaded = name, arguments, returns, threaded
        self._function: Callable[..., Any] | None = None

    def __call__(self, variant: int | None, *arguments: object) -> Any:
        """Calls the function and returns its result. Tensors become pointers. Raises RuntimeError for the variant
        None."""
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        return self.bound(variant)(*values, torch.get_num_threads())

    def bound(self, variant: int | None) -> Callable[..., Any]:
        """The function for a variant, for calls without tensors. Raises RuntimeError for None."""
        if variant is None:
            raise RuntimeError("the CPU kernels are not in use on this machine")
        if self._function is None:
            function = getattr(kernels().library, f"glm_infill_{self._name}")
            function.argtypes = [INT32, *self._arguments, *([INT32] if self._threaded else [])]
            function.restype = self._returns
            self._function = function
        return partial(self._function, variant)
