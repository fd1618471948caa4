"""The tokenizer of ChatGLM2, ChatGLM3 and CodeGeeX2: sentencepiece's `tokenizer.model`, and GLM's tokens behind it.

Its pieces include the 256 bytes, so nothing is unknown. decode(encode(text)) == text, but for U+2581, which comes back
as a space, and for what the file's own normalization folds.
"""

from pathlib import Path

import sentencepiece

from model.config import CheckpointError
from model.tokenizers.files import MissingFile, kind_of, pieces_of, read_bytes
from model.tokenizers.interface import roles_of
from model.tokenizers.plain_pieces import SPACE_MARK, PlainPieces

# In the order of their ids behind the pieces. The roles are ChatGLM3's: in the two other models the rows of these ids
# were never trained to come, so no harm is done where they end a span.
_ADDED = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
_ENDS = ("eos", "user", "observation")
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"  # of a ModelProto: normalizer_spec (3) with add_dummy_prefix (3) false


class ChatGLMPieces(PlainPieces):
    """Ids of sentencepiece, followed by GLM's tokens.

    A text is encoded as if behind a space. A text that goes on from another one is not, so that it has the ids that the
    model writes there.
    """

    def __init__(self, pieces: sentencepiece.SentencePieceProcessor, onward: sentencepiece.SentencePieceProcessor):
        """`onward` are the same pieces, without a space before the text."""
        self._pieces, self._onward = pieces, onward
        self._num_pieces: int = pieces.get_piece_size()
        self._has_prefix = pieces.encode("a") != onward.encode("a")
        added = {name: self._num_pieces + n for n, name in enumerate(_ADDED)}
        own = {"<s>": pieces.bos_id(), "</s>": pieces.eos_id(), "<unk>": pieces.unk_id()}
        special = {"eos": pieces.eos_id(), "bos": pieces.bos_id(), "unk": pieces.unk_id()} | roles_of(added)
        special = {role: i for role, i in special.items() if i >= 0}
        names = {i: name for name, i in (own | added).items() if i >= 0}
        super().__init__(special, names, self._num_pieces, _ENDS)

    @classmethod
    def read(cls, folder: Path) -> "ChatGLMPieces":
        """Reads `tokenizer.model`. Raises CheckpointError if it is missing, or no such sentencepiece model."""
        path = folder / "tokenizer.model"
        if not path.exists():
            raise MissingFile(f"{folder}: lacks its tokenizer, the file tokenizer.model")
        proto = read_bytes(path)
        try:
            pieces = pieces_of(proto, path)
        except CheckpointError:
            kind = kind_of(proto)
            raise CheckpointError(f"{path}: is {kind}; this model's is a sentencepiece model") from None
        if min(pieces.eos_id(), pieces.unk_id()) < 0:
            raise CheckpointError(f"{path}: has no </s> or no <unk>; ChatGLM2's and ChatGLM3's pieces have both")
        return cls(pieces, pieces_of(proto + _WITHOUT_PREFIX, path))

    def encode_on(self, text: str) -> list[int]:
        ids: list[int] = self._onward.encode(text)
        return ids

    def opens_text(self, token_id: int) -> bool:
        return self._has_prefix and bool(self._entry(token_id).startswith(SPACE_MARK))
