"""How an operator is made known to torch, which then chooses what computes it by the device of its tensors."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
NAMESPACE = "glm_infill"

# `Library.impl`, not `torch.library.custom_op`: a call of that one costs 1.7 times as much.
_library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def operator(
    name: str,
    plain: Callable[P, R],
    fake: Callable[P, R],
    cpu: Callable[P, R] | None = None,
    cuda: Callable[P, R] | None = None,
    mutates: tuple[str, ...] = (),
) -> Callable[P, R]:
    """The operator `torch.ops.glm_infill.NAME`, called as `plain` is, whose signature it has.

    `plain` computes it on every device that has no computation of its own, `cpu` and `cuda` on those. `fake` makes a
    result of the same shape, dtype and device from tensors without data. `mutates` names the arguments that are
    written to. Has no gradient.
    """
    schema = torch.library.infer_schema(plain, mutates_args=mutates)
    _library.define(f"{name}{schema}")  # type: ignore[no-untyped-call]
    for key, run in (("CompositeExplicitAutograd", plain), ("CPU", cpu), ("CUDA", cuda)):
        if run is not None:
            _library.impl(name, run, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return cast(Callable[P, R], getattr(getattr(torch.ops, NAMESPACE), name).default)
