"""The pieces of XLM-R and CamemBERT: sentencepiece's unigrams, in which ▁ stands for a space, with fairseq's ids.

decode(encode(text)) is lossy: compatibility characters are folded, white space of any kind and amount is one space and
is gone at both ends, and an unknown character is <unk>. Each text begins as if behind a space.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import CheckpointError
from model.tokenizers.files import added_of, declared, read_json, read_pieces, text_model
from model.tokenizers.interface import Tokenizer

_SPACE_MARK = "\u2581"
_ROLES = {"cls": ("<s>",), "sep": ("</s>",), "mask": ("<mask>",), "pad": ("<pad>",), "unk": ("<unk>",)}
Encode = Callable[[str], list[int]]


class MetaspacePieces(Tokenizer):
    """Ids of unigrams by `encode`; a piece that begins a word begins with ▁."""

    mask_strips = True

    def __init__(
        self, encode: Encode, pieces: Mapping[int, str], special: Mapping[str, int], names: Mapping[int, str]
    ) -> None:
        """`pieces` are the spellings of the ids that are text, `names` those of all others."""
        super().__init__(special, names, max(pieces) + 1, ends=())
        self._encode = encode
        self._pieces = pieces

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def text_ids(self) -> Sequence[int]:
        return sorted(self._pieces)

    def goes_on(self, before: int, token_id: int) -> bool:
        if token_id == self.special["unk"]:
            return True  # the ▁ before it is a piece of its own
        return token_id in self._pieces and not self._pieces[token_id].startswith(_SPACE_MARK)

    def opens_text(self, token_id: int) -> bool:
        return self._pieces.get(token_id, "").startswith(_SPACE_MARK)

    def _entry(self, token_id: int) -> str:
        return self._pieces.get(token_id, "")

    def _bytes(self, token_id: int) -> bytes:
        if token_id == self.special["unk"]:
            return self.names[token_id].encode()
        return self._pieces.get(token_id, "").replace(_SPACE_MARK, " ").encode()


def read_xlm_roberta(folder: Path) -> MetaspacePieces:
    """Reads `tokenizer.json`, or else `sentencepiece.bpe.model`. Raises CheckpointError for other content."""
    if (folder / "tokenizer.json").exists():
        return _read_json(folder)
    # fairseq's dictionary begins with <s> <pad> </s> <unk>; then come the pieces behind sentencepiece's three.
    return _read_pieces(folder, ("<s>", "<pad>", "</s>", "<unk>"), first=3)


def read_camembert(folder: Path) -> MetaspacePieces:
    """Reads `tokenizer.json`, or else `sentencepiece.bpe.model`. Raises CheckpointError for other content."""
    if (folder / "tokenizer.json").exists():
        return _read_json(folder)
    # All of sentencepiece's pieces follow fairseq's own, which are not used where both have a token.
    first = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
    return _read_pieces(folder, first, first=3)


def _read_pieces(folder: Path, own: Sequence[str], first: int) -> MetaspacePieces:
    """`own` are fairseq's tokens, which the pieces from `first` on follow. The mask comes last."""
    path = folder / "sentencepiece.bpe.model"
    model = read_pieces(path)
    shift, count = len(own) - first, model.get_piece_size()
    ids = {name: i for i, name in enumerate(own)} | {"<mask>": count + shift}
    special, names = declared(folder, ids, _ROLES)
    pieces = {i + shift: model.id_to_piece(i) for i in range(first, count)}
    if [model.id_to_piece(i) for i in range(first)] != ["<unk>", "<s>", "</s>"][:first] or not pieces:
        raise CheckpointError(f"{path}: must begin with <unk> <s> </s> and have pieces")

    def encode(text: str) -> list[int]:
        unknown = special["unk"]
        return [i + shift if i >= first else unknown for i in model.encode(text)]

    return MetaspacePieces(encode, pieces, special, {i: name for name, i in ids.items()} | names)


def _read_json(folder: Path) -> MetaspacePieces:
    path = folder / "tokenizer.json"
    data = read_json(path)
    listed = _listed(data, path)
    added = added_of(data, path)
    ids = {piece: i for i, piece in enumerate(listed)} | added
    special, names = declared(folder, ids, _ROLES)
    names |= {i: name for name, i in added.items()}
    # The model reads words, in which there is no space: a spelling with one is never found in a text.
    hidden = [[f" {i}" if i in names else piece, score] for i, (piece, score) in enumerate(data["model"]["vocab"])]
    bare = {**data, "added_tokens": [], "model": {**data["model"], "vocab": hidden}}
    model = text_model(bare, path)

    def encode(text: str) -> list[int]:
        return list(model.encode(text, add_special_tokens=False).ids)

    return MetaspacePieces(encode, {i: p for i, p in enumerate(listed) if i not in names}, special, names)


def _listed(data: Mapping[str, Any], path: Path) -> list[str]:
    """The spellings of a unigram model, by id. Raises CheckpointError for another model."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "Unigram") != "Unigram":
        kind = model.get("type") if isinstance(model, dict) else None
        raise CheckpointError(f"{path}: the model's type is {kind!r}, this family's is 'Unigram'")
    try:
        listed = [piece for piece, _ in model["vocab"]]
    except (KeyError, TypeError, ValueError):
        listed = []
    if not listed or not all(isinstance(piece, str) for piece in listed):
        raise CheckpointError(f"{path}: model.vocab must be pieces with their scores")
    return listed
