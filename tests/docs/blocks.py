"""Fenced blocks of a page: what a reader would type, and the output shown behind it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ANYTHING = "…"
VARYING = {"id", "created"}


@dataclass(frozen=True)
class Block:
    """A command or program, its line in the page, and the output shown right behind it, if any."""

    page: str
    line: int
    kind: str
    code: str
    shown: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path, kinds: tuple[str, ...]) -> list[Block]:
    """The page's blocks of these kinds; a `json` or `text` block behind one is its output."""
    text = page.read_text("utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for match, after in zip(found, [*found[1:], None], strict=True):
        if match[1] in kinds:
            shown = after[2] if after is not None and after[1] in ("json", "text") else None
            result.append(Block(page.name, text[: match.start()].count("\n") + 1, match[1], match[2], shown))
    return result


def agrees(shown: Any, got: Any) -> bool:
    """Whether a printed answer is the one shown: `…` stands for anything, each request has an id and a time of its own,
    and numbers may differ in their last digits, which are the machine's."""
    if shown == ANYTHING:
        return True
    if isinstance(shown, dict):
        same = isinstance(got, dict) and shown.keys() == got.keys()
        return same and all(agrees(shown[k], got[k]) for k in shown if k not in VARYING)
    if isinstance(shown, list):
        if shown and shown[-1] == ANYTHING:
            return isinstance(got, list) and all(agrees(s, g) for s, g in zip(shown[:-1], got, strict=False))
        return isinstance(got, list) and len(shown) == len(got) and all(map(agrees, shown, got))
    if isinstance(shown, float):
        return bool(got == pytest.approx(shown, abs=2e-3))
    return bool(shown == got)


def check_shown(block: Block, printed: str) -> None:
    """Asserts that what was printed is what the page shows."""
    if block.shown is None:
        return
    if block.shown.startswith(("{", "[")):
        assert agrees(json.loads(block.shown), json.loads(printed)), printed
    else:
        assert block.shown.strip().splitlines()[0] in printed, printed
