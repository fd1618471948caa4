"""The registry of schemes: their names, and their facts, known without an import. Does not import torch.

A scheme is a file in `quant/schemes/` with `FACTS`, a `SchemeFacts` of literals, and `SCHEME`, its class
(`quant.scheme.Scheme`). The registry reads `FACTS` from the source, so that the server and its options know names
without torch.
"""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import quant.schemes
from quant.scheme_facts import SchemeFacts
from quant.usage import UsageError

if TYPE_CHECKING:
    import torch

    from quant.scheme import HeadScheme, Scheme

FLOAT = "none"  # the scheme that leaves a weight as it is


def scheme_names() -> tuple[str, ...]:
    """The names of all schemes, the float one first."""
    found = (module.name.replace("_", "-") for module in pkgutil.iter_modules(quant.schemes.__path__))
    return tuple(sorted(found, key=lambda name: (name != FLOAT, name)))


def head_names() -> tuple[str, ...]:
    """The names of the schemes that can store the embedding and head."""
    return tuple(name for name in scheme_names() if scheme_facts(name).head)


def group_sizes() -> tuple[int, ...]:
    """The group sizes, in inputs, that some scheme has, ascending; 0 is a whole row."""
    return tuple(sorted({size for name in scheme_names() for size in scheme_facts(name).group_sizes}))


def scheme_facts(name: str) -> SchemeFacts:
    """The facts of a scheme. Raises UsageError for an unknown name."""
    if name not in scheme_names():
        raise UsageError(f"no such scheme: {name}; the schemes are {', '.join(scheme_names())}")
    spec = find_spec(_module(name))
    if spec is None or spec.origin is None:
        raise UsageError(f"no such scheme: {name}; the schemes are {', '.join(scheme_names())}")
    return _read_facts(Path(spec.origin))


def smaller_schemes(name: str) -> tuple[str, ...]:
    """The schemes that a plan proposes in place of `name`: fewer bits and no extra, the largest first.

    Raises UsageError for an unknown name.
    """
    return _smaller(scheme_names(), scheme_facts(name).bits)


def smaller_heads(name: str) -> tuple[str, ...]:
    """Like `smaller_schemes`, for the embedding and head. Raises UsageError for an unknown name."""
    return _smaller(head_names(), scheme_facts(name).bits)


def published_as(bits: int) -> str:
    """The scheme that stores published weights of `bits` bits with one scale per row. Raises ValueError if there is
    none."""
    found = next((name for name in scheme_names() if scheme_facts(name).published_bits == bits), None)
    if found is None:
        raise ValueError(f"no scheme stores published weights of {bits} bits")
    return found


def scheme_class(name: str) -> "type[Scheme]":
    """Imports a scheme's class. Raises UsageError for an unknown name."""
    if name not in scheme_names():
        raise UsageError(f"no such scheme: {name}; the schemes are {', '.join(scheme_names())}")
    return cast("type[Scheme]", importlib.import_module(_module(name)).SCHEME)


def build(name: str, dtype: "torch.dtype | None" = None, group_size: int | None = None) -> "Scheme":
    """Builds a scheme. `dtype` (None: float32) is that of float weights; `group_size` counts inputs (None: the
    scheme's own default).

    Raises UsageError for an unknown name, an unknown group size, and a missing optional dependency.
    """
    return scheme_class(name).build(dtype, scheme_facts(name).group_size if group_size is None else group_size)


def build_head(name: str, dtype: "torch.dtype | None", device: str, group_size: int | None = None) -> "HeadScheme":
    """Builds the scheme of the embedding and head on a "cpu" or "cuda" device. `group_size` is that of `build`.

    Raises UsageError for a scheme that cannot be a head, or whose rows this machine cannot read.
    """
    if name not in head_names():
        raise UsageError(f"no such scheme for the embedding: {name}; the schemes are {', '.join(head_names())}")
    scheme = cast("HeadScheme", build(name, dtype, group_size))
    scheme.check_head(device)
    return scheme


def _module(name: str) -> str:
    return f"{quant.schemes.__name__}.{name.replace('-', '_')}"


def _smaller(names: tuple[str, ...], bits: int) -> tuple[str, ...]:
    facts = {name: scheme_facts(name) for name in names}
    found = [name for name, own in facts.items() if own.bits < bits and own.extra is None]
    return tuple(sorted(found, key=lambda name: -facts[name].bits))


@cache
def _read_facts(path: Path) -> SchemeFacts:
    """`FACTS` of a scheme's file, without running it. Raises ValueError for a file that has none of literals."""
    try:
        values = {k: ast.literal_eval(v) for k, v in _keywords(ast.parse(path.read_text(encoding="utf-8")))}
        return SchemeFacts(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: needs FACTS = SchemeFacts(...) with keywords of literals: {error}") from None


def _keywords(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="FACTS")], value=ast.Call(args=[], keywords=keywords)):
                yield from ((keyword.arg or "**", keyword.value) for keyword in keywords)
