"""icetk, the tokenizer of GLM-130B and ChatGLM-6B: sentencepiece's `ice_text.model` and the ids added to it.

After its 130,000 pieces come 8 special tokens, a tab, blanks of 2 to 80 spaces and the 256 bytes. A file from before 6
April 2023 has the pieces only, and the reader adds the rest; a newer file has all of them.

decode(encode(text)) is lossy: sentencepiece folds compatibility characters, drops a space at the very end, and reads
white space other than newline, tab and space as a space; a text that spells <n>, <|tab|> or <|blank_2|> comes back as
white space. With `ignore_linebreak` newlines, tabs and runs of spaces become one space too, and unknown characters ⁇.
"""

import re
import struct
from pathlib import Path

from model.config import CheckpointError
from model.tokenizers.files import pieces_of, read_bytes, read_json
from model.tokenizers.interface import Tokenizer, role_of

_SPACE_MARK = "\u2581"
_NEWLINE, _TAB = "<n>", "<|tab|>"
_LONGEST_BLANK = 80
_BLANKS = re.compile(f" {{2,{_LONGEST_BLANK}}}")
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # sentencepiece_model.proto, SentencePiece.Type
_GLM130B = ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_CHATGLM = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
# Ids below this are codes of images, which GLM-130B and the first ChatGLM-6B have rows for
_IMAGE_TOKENS = 20000


class IcePieces(Tokenizer):
    """Ids of sentencepiece, plus `offset`.

    `ignore_linebreak` is icetk's own reading, with which GLM-130B was released: no ids for white space and bytes.
    Without it a newline, a tab and runs of spaces keep their ids, as in SwissArmyTransformer from 0.3 on.
    """

    def __init__(self, path: Path, names: tuple[str, ...], offset: int, ignore_linebreak: bool = False) -> None:
        proto = read_bytes(path)
        pieces = pieces_of(proto, path)
        if pieces.piece_to_id(_NEWLINE) == pieces.unk_id():
            raise CheckpointError(f"{path}: not icetk's vocabulary, it has no {_NEWLINE}")
        if pieces.piece_to_id(names[0]) == pieces.unk_id():
            pieces = pieces_of(proto + _appended(names, not ignore_linebreak), path)
        self._pieces = pieces
        self._num_pieces: int = pieces.get_piece_size()
        self.offset = offset
        self.ignore_linebreak = ignore_linebreak
        found = {name: pieces.piece_to_id(name) for name in (*names, "<pad>")}
        special = {role_of(name): offset + i for name, i in found.items() if i != pieces.unk_id()}
        special |= {"eos": offset + pieces.piece_to_id("</s>"), "unk": offset + pieces.unk_id()}
        shown = {offset + i: name for name, i in found.items() if i != pieces.unk_id()}
        super().__init__(special, shown | {special["eos"]: "</s>", special["unk"]: "<unk>"}, offset + self._num_pieces)
        white = {_NEWLINE: "\n", _TAB: "\t"} | {_blank(n): " " * n for n in range(2, _LONGEST_BLANK + 1)}
        self._white = {pieces.piece_to_id(name): text.encode() for name, text in white.items()}
        self._white.pop(pieces.unk_id(), None)

    @classmethod
    def read_glm130b(cls, folder: Path) -> "IcePieces":
        """Reads `ice_text.model`, and `ignore_linebreak` (default true) of tokenizer_config.json.

        Raises CheckpointError for unreadable files and another vocabulary.
        """
        fields = read_json(folder / "tokenizer_config.json", {})
        return cls(folder / "ice_text.model", _GLM130B, _IMAGE_TOKENS, bool(fields.get("ignore_linebreak", True)))

    @classmethod
    def read_chatglm(cls, folder: Path) -> "IcePieces":
        """Reads `ice_text.model`, and `num_image_tokens` of tokenizer_config.json.

        Folders from before 6 April 2023 lack that field, and their ids are 20,000 higher. Raises CheckpointError for
        unreadable files, another vocabulary and another number.
        """
        fields = read_json(folder / "tokenizer_config.json", {})
        offset = fields.get("num_image_tokens", _IMAGE_TOKENS)
        if type(offset) is not int or offset < 0:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: num_image_tokens must be a count, not {offset!r}"
            )
        return cls(folder / "ice_text.model", _CHATGLM, offset)

    def encode(self, text: str, dummy_prefix: bool = True) -> list[int]:
        """Ids of a plain text. `dummy_prefix` False encodes it as the middle of a longer text."""
        if not self.ignore_linebreak:
            text = text.replace("\n", _NEWLINE).replace("\t", _TAB)
            text = _BLANKS.sub(lambda blanks: _blank(len(blanks.group())), text)
        # As in the originals: a newline before the text takes the space that sentencepiece adds.
        ids = self._pieces.encode(text) if dummy_prefix else self._pieces.encode(_NEWLINE + text)[2:]
        return [self.offset + i for i in ids]

    def text_ids(self) -> list[int]:
        p = self._pieces
        special = (p.is_control, p.is_unknown, p.is_unused)
        pieces = (i for i in range(self._num_pieces) if not any(is_kind(i) for is_kind in special))
        return [self.offset + i for i in pieces if self.offset + i not in self._names]

    def piece(self, token_id: int) -> str:
        return f"<image_{token_id}>" if 0 <= token_id < self.offset else super().piece(token_id)

    def _entry(self, token_id: int) -> str:
        i = token_id - self.offset
        return str(self._pieces.id_to_piece(i)) if 0 <= i < self._num_pieces else self.piece(token_id)

    def _bytes(self, token_id: int) -> bytes:
        i = token_id - self.offset
        if not 0 <= i < self._num_pieces or self._pieces.is_control(i):
            return b""
        if i in self._white:
            return self._white[i]
        if self._pieces.is_unknown(i):
            return " ⁇ ".encode()
        piece: str = self._pieces.id_to_piece(i)
        if self._pieces.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return b"" if token_id in self._names else piece.replace(_SPACE_MARK, " ").encode()

    def opens_text(self, token_id: int) -> bool:
        return bool(self._pieces.id_to_piece(token_id - self.offset).startswith(_SPACE_MARK))


def _blank(length: int) -> str:
    return f"<|blank_{length}|>"


def _appended(names: tuple[str, ...], white_space: bool) -> bytes:
    """A serialized suffix that adds pieces to a ModelProto: protobuf joins repeated fields."""
    pieces = b"".join(_piece(name, _CONTROL) for name in names)
    if not white_space:
        return pieces
    blanks = (_TAB, *map(_blank, range(2, _LONGEST_BLANK + 1)))
    pieces += b"".join(_piece(name, _USER_DEFINED) for name in blanks)
    pieces += b"".join(_piece(f"<0x{byte:02X}>", _BYTE) for byte in range(256))
    byte_fallback = b"\x98\x02\x01"  # field 35 of TrainerSpec, true
    return pieces + _message(2, byte_fallback)


def _piece(name: str, kind: int) -> bytes:
    """ModelProto.pieces, field 1: a SentencePiece of piece (1), score (2) and type (3)."""
    return _message(1, _message(1, name.encode()) + b"\x15" + struct.pack("<f", 0.0) + bytes([0x18, kind]))


def _message(field: int, content: bytes) -> bytes:
    """A field with its length, which here is below 128."""
    return bytes([field << 3 | 2, len(content)]) + content
