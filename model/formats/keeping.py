"""The scheme that has the codes of symmetric integers with one scale for a group of inputs or a whole row."""

from quant.registry import scheme_facts
from quant.scheme import IntegerScheme
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8


def keeping(bits: int, inputs: int, group_size: int) -> IntegerScheme | None:
    """The scheme for codes of so many bits, `group_size` inputs sharing a scale (0: all of a row); None if none has
    them."""
    if bits == 8:
        return Int8() if group_size in (0, inputs) else None
    fits = group_size in scheme_facts("int4").group_sizes and inputs % 2 == 0
    return Int4(group_size) if bits == 4 and fits and inputs % (group_size or 1) == 0 else None
