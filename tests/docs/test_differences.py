"""Each row of the page of differences has a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/differences.md").read_text("utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| one would guess")]


def test_every_row_is_held_by_a_test() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        cells = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert len(cells) == 5, row
        file, _, name = cells[4].strip("`").partition("::")
        assert (ROOT / file).is_file(), row
        if name:
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), row
