"""The tables of docs/planning.md are those that the program makes."""

from pathlib import Path

from benchmarks.plan_against_published import tables

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"


def test_the_page_has_today_s_predictions() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in tables().split("\n\n"):
        assert table in page, "run python -m benchmarks.plan_against_published"
