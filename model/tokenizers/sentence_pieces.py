"""The demo's own kind: a lossless sentencepiece vocabulary with byte fallback and no normalization."""

from collections.abc import Mapping
from pathlib import Path

import sentencepiece

from model.config import CheckpointError
from model.tokenizers.files import read_json, read_pieces
from model.tokenizers.interface import MASKS, Tokenizer

_SPACE_MARK = "\u2581"  # what sentencepiece writes for a space, so the character itself needs another way in
ROLES = ("eos", "cls", "mask", "sop", "eop")


class SentencePieces(Tokenizer):
    """Ids of text from sentencepiece, ids of special tokens from `tokenizer_config.json`.

    decode(encode(text)) == text for every string without lone surrogates.
    """

    mask_strips = True

    def __init__(self, pieces: sentencepiece.SentencePieceProcessor, special: Mapping[str, int]) -> None:
        if not isinstance(special, dict) or any(type(i) is not int or i < 0 for i in special.values()):
            raise CheckpointError("tokenizer_config.json: special_tokens must map names to token ids")
        missing = [role for role in ROLES if role not in special]
        if missing:
            raise CheckpointError(f"tokenizer_config.json: special_tokens lacks {', '.join(missing)}")
        self._pieces = pieces
        self._num_pieces: int = pieces.get_piece_size()
        names = {role: f"[{role}]" for role in special} | {"sop": "<sop>", "eop": "<eop>"}
        names |= {role: name for name, role in MASKS.items()}
        super().__init__(special, {i: names[role] for role, i in special.items()}, self._num_pieces)
        self._space_mark = [pieces.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    @classmethod
    def read(cls, folder: Path) -> "SentencePieces":
        """Reads `tokenizer.model` and `special_tokens` of `tokenizer_config.json`. Raises CheckpointError for wrong
        content."""
        pieces = read_pieces(folder / "tokenizer.model")
        config = folder / "tokenizer_config.json"
        fields = read_json(config)
        if "special_tokens" not in fields:
            raise CheckpointError(f"{config}: lacks special_tokens")
        return cls(pieces, fields["special_tokens"])

    @property
    def num_pieces(self) -> int:
        return self._num_pieces

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE_MARK)):
            if number:
                ids += self._space_mark
            ids += self._pieces.encode(part)
        return ids

    def text_ids(self) -> range:
        return range(self._num_pieces)

    def before_mask(self, text: str) -> str:
        """The text without one space at its end, as in the demo's training."""
        return text.removesuffix(" ")

    def _entry(self, token_id: int) -> str:
        return str(self._pieces.id_to_piece(token_id)) if 0 <= token_id < self._num_pieces else ""

    def _bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._num_pieces:
            return b""
        if self._pieces.is_byte(token_id):
            return bytes([int(self._pieces.id_to_piece(token_id)[3:5], 16)])
        if self._pieces.is_unknown(token_id):
            return b""
        piece: str = self._pieces.id_to_piece(token_id)
        return piece.replace(_SPACE_MARK, " ").encode()
