"""Where tokens begin in the text that they were made of, in characters.

Of a tokenizer that loses nothing the decoded text tells it exactly. One that folds characters or white space gives
another text than it was given; the two are then walked through side by side, character by folded character. Does not
import torch.
"""

import unicodedata
from collections.abc import Sequence

from model.tokenizer import Decoder, Tokenizer

# How far a character is looked for that the decoded text has and the original spells otherwise.
_WINDOW = 64


def offsets(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The first character of each token. They never decrease; a token within a character begins with it."""
    decoder = Decoder(tokenizer)
    starts = [decoder.add(token_id) for token_id in token_ids]
    return aligned(text, decoder.whole, starts)


def aligned(text: str, decoded: str, starts: Sequence[int]) -> list[int]:
    """Offsets in a text, from those in what its tokens are decoded to."""
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
