"""The decoder: the text of token ids that come one after the other."""

import codecs
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.tokenizers.interface import Tokenizer

REPLACEMENT = "\ufffd"


class Decoder:
    """The text of some ids, and the bytes at its end that are no complete character yet.

    Only an unfinished character is `pending`: at most 3 bytes that further bytes can complete. All other text is final.
    Bytes that can no longer become a character give U+FFFD, as many as `bytes.decode("utf-8", "replace")`.
    """

    def __init__(self, tokenizer: "Tokenizer", spaced: bool = False, continues: bool = False) -> None:
        """`spaced`: a space of the text stands before it, so that the decoder omits its own first space. `continues`:
        it goes on from a text, so that its first space is part of it."""
        self.pending = b""
        self.length = 0  # characters of the final text
        self._tokenizer = tokenizer
        self._parts: list[str] = []
        self._opening = not continues  # no id had bytes yet
        self._spaced = spaced
        self._behind_lost = False

    @property
    def text(self) -> str:
        """The final text, which later ids never change."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    @property
    def whole(self) -> str:
        """The text if no more ids come; an unfinished character gives U+FFFD."""
        return self.text + REPLACEMENT if self.pending else self.text

    def spell(self, token_id: int) -> bytes:
        """The bytes that an id would add to the text here."""
        return self._closed_up(self._opened(token_id, self._tokenizer.decode_bytes((token_id,))))

    def add(self, token_id: int) -> int:
        """Adds an id. Returns the offset of the character that contains its first byte."""
        raw = self._tokenizer.decode_bytes((token_id,))
        opened = self._opened(token_id, raw)
        data = self._closed_up(opened)
        if opened:
            self._spaced = False
        if raw:
            self._opening = False
            lost = self._tokenizer.space_lost_behind
            self._behind_lost = bool(lost) and raw.endswith(lost.encode())
        is_behind = bool(self.pending and data) and not _goes_on(self.pending, data[:1])
        start = self.length + is_behind
        self._take(data)
        return start

    def extend(self, token_ids: Sequence[int]) -> None:
        """Adds ids without computing their offsets."""
        for number, token_id in enumerate(token_ids):
            if not (self._opening or self._spaced or self._tokenizer.space_lost_behind):
                self._take(self._tokenizer.decode_bytes(token_ids[number:]))
                return
            self.add(token_id)

    def forget(self) -> None:
        """Drops the final text. An unfinished character begins the new text."""
        self._parts, self.length = [], 0

    def copy(self) -> "Decoder":
        """An independent copy."""
        decoder = copy(self)
        decoder._parts = list(self._parts)
        return decoder

    def _opened(self, token_id: int, raw: bytes) -> bytes:
        """An id's bytes, without a space that is there only because the id opens the text."""
        return raw[1:] if raw and self._opening and self._tokenizer.opens_text(token_id) else raw

    def _closed_up(self, opened: bytes) -> bytes:
        """Bytes without their first space, where one stands before them already."""
        return opened[1:] if (self._spaced or self._behind_lost) and opened.startswith(b" ") else opened

    def _take(self, data: bytes) -> None:
        text, self.pending = _read(self.pending + data)
        self._parts.append(text)
        self.length += len(text)


def _read(data: bytes) -> tuple[str, bytes]:
    """The final text of bytes, and an unfinished character at their end."""
    text, used = codecs.utf_8_decode(data, "replace", False)
    rest = data[used:]
    # Python also waits for more behind the first half of a surrogate, which begins no character.
    shown = rest.decode("utf-8", "replace")
    return (text + shown, b"") if len(shown) > 1 else (text, rest)


def _goes_on(pending: bytes, byte: bytes) -> bool:
    """Whether a byte is in the same character as the unfinished bytes before it."""
    text, rest = _read(pending + byte)
    return not text or (not rest and len(text) == 1)
