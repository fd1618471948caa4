"""A sentencepiece tokenizer for GLM: plain text to ids and back without loss, special tokens apart.

Text is never read as a special token: masks are put in by `model.layout`. Does not import torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from model.config import CheckpointError

_SPACE_MARK = "\u2581"  # what sentencepiece writes for a space, so the character itself needs another way in
ROLES = ("eos", "cls", "mask", "sop", "eop")
MASK_ROLES = {"[MASK]": "mask", "[sMASK]": "smask", "[gMASK]": "gmask"}


class Tokenizer:
    """Ids of text pieces from sentencepiece, ids of special tokens from `tokenizer_config.json`."""

    def __init__(self, pieces: sentencepiece.SentencePieceProcessor, special: dict[str, int]) -> None:
        if not isinstance(special, dict) or any(type(i) is not int or i < 0 for i in special.values()):
            raise CheckpointError("tokenizer_config.json: special_tokens must map names to token ids")
        missing = [role for role in ROLES if role not in special]
        if missing:
            raise CheckpointError(f"tokenizer_config.json: special_tokens lacks {', '.join(missing)}")
        self._pieces = pieces
        self.special = special
        self.num_pieces: int = pieces.get_piece_size()
        self.size = max(self.num_pieces, *(i + 1 for i in special.values()))
        self.eos, self.cls, self.sop, self.eop = (special[r] for r in ("eos", "cls", "sop", "eop"))
        self.masks = {name: special[role] for name, role in MASK_ROLES.items() if role in special}
        self._names = {i: f"[{role}]" for role, i in special.items()} | {i: n for n, i in self.masks.items()}
        self._space_mark = [pieces.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    @classmethod
    def read(cls, folder: Path) -> "Tokenizer":
        """Reads `tokenizer.model` and `tokenizer_config.json`. Raises CheckpointError."""
        model, config = folder / "tokenizer.model", folder / "tokenizer_config.json"
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes() or b"empty")
            special = json.loads(config.read_text(encoding="utf-8"))["special_tokens"]
        except FileNotFoundError as error:
            raise CheckpointError(f"{error.filename}: no such file") from None
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: unreadable tokenizer ({error})") from None
        return cls(pieces, special)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; decode(encode(text)) == text for every string without lone surrogates."""
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE_MARK)):
            if number:
                ids += self._space_mark
            ids += self._pieces.encode(part)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids; special tokens and ids past the vocabulary give nothing, broken UTF-8 gives U+FFFD."""
        return self.decode_bytes(token_ids).decode("utf-8", errors="replace")

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of ids, which may end within a character."""
        return b"".join(self._bytes(i) for i in token_ids)

    def piece(self, token_id: int) -> str:
        """What one token looks like: its text, or the name of a special token."""
        if token_id in self._names:
            return self._names[token_id]
        raw = self._bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def _bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.num_pieces:
            return b""
        if self._pieces.is_byte(token_id):
            return bytes([int(self._pieces.id_to_piece(token_id)[3:5], 16)])
        if self._pieces.is_unknown(token_id):
            return b""
        piece: str = self._pieces.id_to_piece(token_id)
        return piece.replace(_SPACE_MARK, " ").encode()
