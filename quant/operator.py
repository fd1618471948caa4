"""Registration of an operator with torch, which dispatches it by the device of its tensors."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
NAMESPACE = "glm_infill"

# `Library.impl`, not `torch.library.custom_op`, whose calls cost 1.7 times as much.
_library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def operator(
    name: str,
    plain: Callable[P, R],
    fake: Callable[P, R],
    cpu: Callable[P, R] | None = None,
    cuda: Callable[P, R] | None = None,
    mutates: tuple[str, ...] = (),
) -> Callable[P, R]:
    """Registers `torch.ops.glm_infill.NAME` and returns it. Its signature is that of `plain`.

    `plain` is the implementation in torch for every device; `cpu` and `cuda` replace it there. `fake` returns a result
    of the same shape, dtype and device from tensors without data. `mutates` names the arguments that the operator
    writes to. The operator has no gradient.
    """
    schema = torch.library.infer_schema(plain, mutates_args=mutates)
    _library.define(f"{name}{schema}")  # type: ignore[no-untyped-call]
    for key, run in (("CompositeExplicitAutograd", plain), ("CPU", cpu), ("CUDA", cuda)):
        if run is not None:
            _library.impl(name, run, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return cast(Callable[P, R], getattr(getattr(torch.ops, NAMESPACE), name).default)
