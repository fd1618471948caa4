"""Public names have docstrings, and a docstring of a function with tensors names a shape (docs/style.md, rule 13)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("quant", "model", "engine", "server", "training", "deploy")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef


def public(body: list[ast.stmt]) -> Iterator[Documented]:
    return (node for node in body if isinstance(node, Documented) and not node.name.startswith("_"))


def methods(node: Documented) -> Iterator[Function]:
    members = public(node.body) if isinstance(node, ast.ClassDef) else iter(())
    return (member for member in members if isinstance(member, Function))


TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
# A method without a docstring implements one that has it: that of a base class or a protocol, ours or a library's.
INTERFACES = {
    *(m.name for tree in TREES.values() for c in public(tree.body) for m in methods(c) if ast.get_docstring(m)),
    *("connection_lost", "connection_made", "data_received", "pause_writing", "resume_writing"),  # asyncio.Protocol
    *("on_response_complete", "send_400_response"),  # uvicorn's H11Protocol
    *("invoke", "on_broken_pipe", "filter"),  # click's Group, rich's Console, logging's Filter
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_have_docstrings(path: Path) -> None:
    tree = TREES[path]
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in public(tree.body):
        if not ast.get_docstring(node):
            missing.append(node.name)
        missing += [m.name for m in methods(node) if not ast.get_docstring(m) and m.name not in INTERFACES]
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_with_tensors_name_a_shape(path: Path) -> None:
    found = [f for node in public(TREES[path].body) for f in (node, *methods(node)) if isinstance(f, Function)]
    assert not [f.name for f in found if _takes_tensors(f) and "[" not in (ast.get_docstring(f) or "[")]


def _takes_tensors(function: Function) -> bool:
    arguments = function.args
    annotations = [a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    named = {
        n.id for a in (*annotations, function.returns) if a is not None for n in ast.walk(a) if isinstance(n, ast.Name)
    }
    return "Tensor" in named
