"""Llama's pieces: sentencepiece's byte-pair encoding with byte fallback, without normalization.

A space is the mark ▁, which a text's own ▁ is read as too; else decode(encode(text)) == text. `encode` is of a text
inside a document; before one that begins a document sentencepiece puts a space (`opened`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import sentencepiece

from model.config import CheckpointError
from model.tokenizers.files import pieces_of, read_bytes
from model.tokenizers.interface import Tokenizer

SPACE_MARK = "\u2581"
_SENTINEL = re.compile(f"{SPACE_MARK}<[A-Z]+>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# A field that comes again replaces the one before: ModelProto.normalizer_spec (3), add_dummy_prefix (3) false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class LlamaPieces(Tokenizer):
    """Ids of text by `encode`, which must not add a space before a text."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        vocab: Mapping[str, int],
        special: Mapping[str, int],
        names: Mapping[int, str],
        ends: Sequence[str],
    ) -> None:
        """`vocab` maps all pieces to their ids, `names` ids to special tokens."""
        self._pieces = {i: piece for piece, i in vocab.items() if i not in names}
        super().__init__(special, names, max(self._pieces) + 1, ends)
        self._encode = encode

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def text_ids(self) -> Sequence[int]:
        return sorted(self._pieces)

    def _entry(self, token_id: int) -> str:
        return self._pieces.get(token_id, "")

    def _bytes(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id, "")
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE_MARK, " ").encode()


def read_pieces(path: Path) -> tuple[sentencepiece.SentencePieceProcessor, bool]:
    """The pieces of a `tokenizer.model` that encodes texts inside a document, and whether a document has a space before
    it.

    Raises CheckpointError for an unreadable file, and for pieces of another kind.
    """
    proto = read_bytes(path)
    given, pieces = pieces_of(proto, path), pieces_of(proto + _NO_DUMMY_PREFIX, path)
    if not pieces.is_byte(pieces.piece_to_id("<0x00>")):
        raise CheckpointError(f"{path}: not Llama's kind of pieces, it has none for bytes")
    return pieces, given.encode("a") != pieces.encode("a")


def special_pieces(pieces: sentencepiece.SentencePieceProcessor) -> dict[int, str]:
    """Id → name of the pieces that are no text: control pieces, and Code Llama's such as ▁<PRE>."""
    kinds = (pieces.is_control, pieces.is_unknown, pieces.is_unused)
    names = {i: pieces.id_to_piece(i) for i in range(pieces.get_piece_size())}
    return {i: name for i, name in names.items() if _SENTINEL.fullmatch(name) or any(is_kind(i) for is_kind in kinds)}


def encoder(pieces: sentencepiece.SentencePieceProcessor, names: Mapping[int, str]) -> Callable[[str], list[int]]:
    """The encoding of texts. Where sentencepiece reads one of these tokens in a text, it is spelled in two parts."""
    cuts = re.compile("|".join(f"(?<={re.escape(name[:2])})(?={re.escape(name[2:])})" for name in names.values()))

    def encode(text: str) -> list[int]:
        ids: list[int] = pieces.encode(text)
        if any(i in names for i in ids):
            text = text.replace(" ", SPACE_MARK)
            ids = [i for part in cuts.split(text) for i in pieces.encode(part)]
        return ids

    return encode
