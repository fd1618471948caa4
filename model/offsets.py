"""Where tokens begin in the text that they were made of, in characters.

Of a tokenizer that loses nothing the decoded text tells it exactly. One that folds characters or white space gives
another text than it was given; the two are then walked through side by side, character by folded character. Does not
import torch.
"""

import unicodedata
from collections.abc import Sequence

from model.tokenizer import Tokenizer

# How far a character is looked for that the decoded text has and the original spells otherwise.
_WINDOW = 64


def offsets(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The first character of each token. They never decrease; a token within a character begins with it."""
    data = tokenizer.decode_bytes(token_ids)
    decoded = data.decode("utf-8", errors="replace")
    starts = _starts(token_ids, data, len(decoded), tokenizer)
    if decoded == text:
        return starts
    if decoded == f" {text}":  # a space that encoding put there
        return [max(start - 1, 0) for start in starts]
    places = _aligned(text, decoded)
    return [places[start] for start in starts]


def _starts(token_ids: Sequence[int], data: bytes, length: int, tokenizer: Tokenizer) -> list[int]:
    """How many whole characters of the decoded bytes come before each token."""
    starts: list[int] = []
    num_bytes = num_chars = 0
    for token_id in token_ids:
        inside = num_bytes < len(data) and data[num_bytes] & 0xC0 == 0x80
        starts.append(min(max(num_chars - inside, 0), length))
        piece = tokenizer.decode_bytes([token_id])
        num_bytes += len(piece)
        num_chars += sum(byte & 0xC0 != 0x80 for byte in piece)
    return starts


def _aligned(text: str, decoded: str) -> list[int]:
    """For each character of the decoded text, and its end, how much of the text comes before it."""
    source = [(c, at) for at, char in enumerate(text) for c in _folded(char)]
    places, step, reached = [], 0, 0
    for char in decoded:
        places.append(reached)
        for folded in _folded(char):
            found = next((n for n in range(step, min(step + _WINDOW, len(source))) if source[n][0] == folded), None)
            if found is not None:
                step, reached = found + 1, source[found][1] + 1
    return [*places, len(text)]


def _folded(char: str) -> str:
    """A character without case, accents, compatibility forms; nothing of white space."""
    plain = unicodedata.normalize("NFKD", char).casefold()
    return "".join(c for c in plain if not unicodedata.combining(c) and not c.isspace())
