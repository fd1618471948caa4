"""A piece of a text that is given as token ids. Imports nothing, so that requests can hold it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids that a text contains as such, special tokens included."""

    ids: tuple[int, ...]
