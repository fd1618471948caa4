"""Offsets of tokens, in characters of the text that they encode.

With a lossless tokenizer the decoded text gives them exactly. A tokenizer that folds characters or white space decodes
to another text; both texts are then compared side by side, by folded characters. Does not import torch.
"""

import unicodedata
from collections.abc import Sequence

from model.tokenizer import Decoder, Tokenizer

# Characters of the original among which a character of the decoded text is searched.
_WINDOW = 64


def offsets(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Offset of each token's first character, never decreasing. A token inside a character has that character's
    offset."""
    decoder = Decoder(tokenizer)
    starts = [decoder.add(token_id) for token_id in token_ids]
    return aligned(text, decoder.whole, starts)


def aligned(text: str, decoded: str, starts: Sequence[int]) -> list[int]:
    """Offsets in `text`, from offsets in `decoded`, the text that its tokens decode to."""
    if decoded == text:
        return list(starts)
    places = _places(text, decoded)
    return [places[start] for start in starts]


def _places(text: str, decoded: str) -> list[int]:
    """For each character of the decoded text, and its end, how much of the text comes before it."""
    source = [(c, at) for at, char in enumerate(text) for c in _folded(char)]
    places, step, reached, last = [], 0, 0, 0
    for char in decoded:
        begin, first = reached, True
        for folded in _folded(char):
            found = next((n for n in range(step, min(step + _WINDOW, len(source))) if source[n][0] == folded), None)
            if found is not None:
                at = source[found][1]
                begin, first = at if first else begin, False
                step, reached = found + 1, at + 1
        last = max(last, begin)
        places.append(last)
    return [*places, len(text)]


def _folded(char: str) -> str:
    """A character without case, accents, compatibility forms; nothing of white space."""
    plain = unicodedata.normalize("NFKD", char).casefold()
    return "".join(c for c in plain if not unicodedata.combining(c) and not c.isspace())
