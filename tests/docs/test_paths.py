"""The files that the texts for contributors name are there, also after files have moved."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`((?:deploy|server|engine|training|model|quant|tests|benchmarks|docs|examples)/[\w./*-]+\.\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_file_is_there(page: Path) -> None:
    named = {path for path in NAMED.findall(page.read_text("utf-8")) if not re.search(r"NAME|FAMILY", path)}
    assert [path for path in sorted(named) if not any(ROOT.glob(path))] == []
