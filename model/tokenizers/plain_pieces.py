"""The text of sentencepiece's pieces, for vocabularies that are a sentencepiece model with tokens behind it."""

import sentencepiece

from model.tokenizers.interface import Tokenizer

SPACE_MARK = "\u2581"  # what sentencepiece writes for a space


class PlainPieces(Tokenizer):
    """Ids of a sentencepiece model, the first `_num_pieces`."""

    _pieces: sentencepiece.SentencePieceProcessor
    _num_pieces: int

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._pieces.encode(text)
        return ids

    def text_ids(self) -> list[int]:
        special = (self._pieces.is_control, self._pieces.is_unknown, self._pieces.is_unused)
        return [i for i in range(self._num_pieces) if not any(is_kind(i) for is_kind in special)]

    def _entry(self, token_id: int) -> str:
        return str(self._pieces.id_to_piece(token_id)) if 0 <= token_id < self._num_pieces else ""

    def _bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._num_pieces or self._pieces.is_control(token_id):
            return b""
        if self._pieces.is_unknown(token_id):
            return " ⁇ ".encode()
        piece: str = self._pieces.id_to_piece(token_id)
        if self._pieces.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode()
