"""The scheme that has the codes of symmetric integers with one scale for a group of inputs or a whole row."""

from quant.scheme import IntegerScheme
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8


def keeping(bits: int, inputs: int, group_size: int) -> IntegerScheme | None:
    """The scheme for codes of so many bits, `group_size` inputs sharing a scale (0: all of a row).

    Its own groups may be smaller, and then repeat a scale. None if no scheme has these codes.
    """
    schemes: dict[int, IntegerScheme] = {4: Int4(0), 8: Int8(0)}
    rows = schemes.get(bits)
    if rows is None or (bits == 4 and inputs % 2) or inputs % (group_size or 1):
        return None
    grouped = rows.grouped_by([group_size]) if group_size else rows
    return rows if bits == 8 and group_size == inputs else grouped
