"""Byte-level BPE (GPT-2): every byte has a token, so encoding is lossless and nothing is unknown.

The files spell pieces with GPT-2's 256 characters for bytes.
"""

from collections.abc import Mapping, Sequence

import tokenizers

from model.config import CheckpointError
from model.tokenizers.interface import Tokenizer


def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


def piece_bytes(ids: Mapping[str, int], where: str) -> dict[int, bytes]:
    """The bytes of pieces by id. Raises CheckpointError, with `where`, for a piece with another character."""
    alphabet = byte_alphabet()
    try:
        return {i: bytes(alphabet[c] for c in piece) for piece, i in ids.items()}
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is no character of a byte-level piece") from None


class ByteLevelBPE(Tokenizer):
    """Byte-level BPE by the `tokenizers` library, which has no special token and so never reads one in a text.

    decode(encode(text)) == text for every string without lone surrogates.
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        pieces: Mapping[int, bytes],
        special: Mapping[str, int],
        names: Mapping[int, str],
        ends: Sequence[str] = ("eop", "eos"),
        mask_strips: bool = True,
    ) -> None:
        """`pieces` has the bytes of the ids that are text."""
        super().__init__(special, names, max(pieces) + 1, ends)
        self.mask_strips = mask_strips
        self._model = model
        self._pieces = pieces

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def text_ids(self) -> Sequence[int]:
        return sorted(self._pieces)

    def _entry(self, token_id: int) -> str:
        return self._model.id_to_token(token_id) or ""

    def _bytes(self, token_id: int) -> bytes:
        return self._pieces.get(token_id, b"")
