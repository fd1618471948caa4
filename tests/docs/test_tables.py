"""The pages have the tables that the fields make."""

import pytest

from docs.tables import DOCS, TABLES, written


@pytest.mark.parametrize(("page", "name"), TABLES)
def test_a_page_has_what_the_fields_say(page: str, name: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    assert text == written(page, name, text), "python -m docs.tables writes it anew"
