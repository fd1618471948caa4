"""The tables of the pages that are made of fields: `python -m docs.tables` writes them anew, and a test compares."""

import typing
from collections.abc import Iterable
from pathlib import Path

from server.commands.flags import Flag, bounds, flags_of
from server.exchange.sampling import SamplingFields
from server.protocols.native.schemas import InfillRequest
from server.settings import PREFIX, Settings

DOCS = Path(__file__).parent
END = "<!-- end of table -->"


def sampling() -> str:
    """The sampling fields of `/v1/infill`."""
    flags = flags_of(InfillRequest, SamplingFields.model_fields)
    rows = [f"| `{f.name}` | {f.default or 'none'} | {_range(f)} | {f.field.description} |" for f in flags]
    return _table("| field | default | values | means |", rows)


def settings() -> str:
    """All settings of a server, a table for each group."""
    parts: list[str] = []
    flags = flags_of(Settings, prefix=PREFIX)
    for panel in dict.fromkeys(flag.panel for flag in flags):
        rows = [
            f"| {'`MODEL`' if f.name == 'model' else f'`{f.option}`'} | `{f.variable}` | {f.default or 'none'} "
            f"| {f.field.description} |"
            for f in flags
            if f.panel == panel
        ]
        parts.append(f"### {panel}\n\n" + _table("| flag | variable | default | means |", rows))
    return "\n\n".join(parts)


TABLES = {("api.md", "sampling"): sampling, ("settings.md", "settings"): settings}


def written(page: str, name: str, text: str) -> str:
    """A page's text with a table in its place. Raises ValueError for a page without that place."""
    begin = f"<!-- table: {name}, made by docs/tables.py -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{page} has no place for the table {name}")
    return f"{before}{begin}\n\n{TABLES[page, name]()}\n\n{END}{after}"


def _range(flag: Flag) -> str:
    if flag.kind is bool:
        return "true or false"
    if typing.get_origin(flag.kind) is list:
        return "list of integers"
    if flag.repeated:
        return "object: amounts by id" if "=" in flag.repeated.value else "string or list"
    kind = "integer" if flag.kind is int else "number"
    low, high = bounds(flag.field)
    return kind if low is None and high is None else f"{kind}, {_side('from', low)}{_side('to', high)}".rstrip()


def _side(word: str, bound: float | None) -> str:
    return "" if bound is None else f"{word} {bound:g} "


def _table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


if __name__ == "__main__":
    for page, name in TABLES:
        path = DOCS / page
        path.write_text(written(page, name, path.read_text("utf-8")), "utf-8")
