"""The words of a text, runs of characters other than white space, and the tokens of each. Does not import torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from model.offsets import offsets
from model.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Words:
    """The words' places in a text, (first character, one past the last), and the word of each token.

    A token belongs to the word in which it begins, or to the word after the white space in which it begins. White space
    behind the last word belongs to that word.
    """

    spans: tuple[tuple[int, int], ...]
    owners: tuple[int, ...]  # a word's number for each token; empty for a text without words

    @staticmethod
    def of(text: str, token_ids: Sequence[int], tokenizer: Tokenizer, spaced: bool = False) -> "Words":
        """The words of a text with these tokens. `spaced`: the text was encoded behind a space that is not part of
        it."""
        spans = tuple(match.span() for match in _WORD.finditer(text))
        if not spans:
            return Words((), ())
        owners = _by_parts(text, spans, token_ids, tokenizer, spaced)
        return Words(spans, tuple(owners or _by_offsets(text, spans, token_ids, tokenizer)))


def _by_parts(
    text: str, spans: Sequence[tuple[int, int]], token_ids: Sequence[int], tokenizer: Tokenizer, spaced: bool
) -> list[int]:
    """By each word's own tokens, if together they are the text's: exact also where decoding loses something."""
    cuts = [0, *(end for _, end in spans[:-1]), len(text)]
    parts = [text[start:end] for start, end in pairwise(cuts)]
    encoded = [tokenizer.encode(f" {part}" if spaced and not n else part) for n, part in enumerate(parts)]
    if list(chain.from_iterable(encoded)) != list(token_ids):
        return []
    return [number for number, ids in enumerate(encoded) for _ in ids]


def _by_offsets(
    text: str, spans: Sequence[tuple[int, int]], token_ids: Sequence[int], tokenizer: Tokenizer
) -> list[int]:
    owners, number = [], 0
    for start in offsets(text, token_ids, tokenizer):
        match = _WORD.search(text, start)
        while match and number + 1 < len(spans) and spans[number][1] <= match.start():
            number += 1
        owners.append(number if match else len(spans) - 1)
    return owners
