"""BERT's wordpieces: the vocabulary of glm-base and glm-large with GLM's two tokens, and that of plain BERT folders.

decode(encode(text)) is lossy: it loses the kind and amount of white space, spaces around punctuation and Chinese
characters, control characters, case and accents in uncased vocabularies, and every word with a character outside the
vocabulary ([UNK]). It omits spaces before ``. , ? ! '`` and behind ``'``.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.config import CheckpointError
from model.tokenizers.files import added_of, check_kind, check_roles, read_ids, read_json, read_text, vocab_of
from model.tokenizers.interface import Tokenizer, roles_of

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_GLM_ADDED = ("<|startofpiece|>", "<|endofpiece|>")
_LONGEST_WORD = 100  # characters; a longer word is [UNK]
_WHITE_SPACE = " \t\n\r"
_NO_SPACE_BEFORE = frozenset(".,?!'")
_NO_SPACE_IN_SENTENCE = frozenset(".,?!")
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Splitter:
    """The split of a text into words (google-research/bert, tokenization.py).

    It keeps characters that Python's Unicode tables do not know, like the tokenizers library, so that characters of
    later versions have the same ids. GLM's own code drops Unicode's noncharacters (U+FFFE and others).
    """

    lower: bool = True
    strip_accents: bool = True
    ideographs_apart: bool = True
    drops_noncharacters: bool = False

    def words(self, text: str) -> Iterator[str]:
        """Words and punctuation marks, without white space."""
        for word in "".join(map(self._character, text)).split():
            if self.lower:
                word = word.lower()
            if self.strip_accents:
                word = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
            yield from "".join(f" {c} " if _is_punctuation(c) else c for c in word).split()

    def _character(self, c: str) -> str:
        if c in _WHITE_SPACE:
            return " "
        category = unicodedata.category(c)
        if category in ("Cc", "Cf", "Co") or c == "\ufffd" or (self.drops_noncharacters and _is_noncharacter(c)):
            return ""
        if category == "Zs":
            return " "
        apart = self.ideographs_apart and any(low <= ord(c) <= high for low, high in _IDEOGRAPHS)
        return f" {c} " if apart else c


class WordPieces(Tokenizer):
    """The longest pieces of each word from the left. A piece that continues a word begins with ##."""

    space_lost_behind = "'"

    def __init__(self, vocab: Mapping[str, int], special: Mapping[str, int], splitter: Splitter) -> None:
        self._vocab = vocab
        self._splitter = splitter
        self._pieces = {i: piece for piece, i in vocab.items()}
        given = {special[role]: name for name, role in zip(_BERT, map(_role, _BERT), strict=True) if role in special}
        extra = {"sop": "<|startofpiece|>", "eop": "<|endofpiece|>", "smask": "[sMASK]", "gmask": "[gMASK]"}
        names = given | {special[role]: name for role, name in extra.items() if role in special}
        super().__init__(special, names, max(vocab.values()) + 1)
        self._text_ids = [i for i, piece in sorted(self._pieces.items()) if i not in names and not _is_unused(piece)]

    @classmethod
    def read(cls, folder: Path, glm: bool = False) -> "WordPieces":
        """Reads `vocab.txt`, or else `tokenizer.json`, with or without GLM's tokens.

        `added_tokens.json` or `tokenizer.json` gives the ids of GLM's tokens; without them the ids follow the
        vocabulary. Raises CheckpointError for unreadable or incomplete files.
        """
        if (folder / "vocab.txt").exists():
            lines = read_text(folder / "vocab.txt").removesuffix("\n").split("\n")
            vocab, added = {line.strip(): i for i, line in enumerate(lines)}, {}
            config = read_json(folder / "tokenizer_config.json", {})
            lower, accents = config.get("do_lower_case", True), config.get("strip_accents")
            apart = config.get("tokenize_chinese_chars", True)
        else:
            path = folder / "tokenizer.json"
            data = read_json(path)
            check_kind(data, "WordPiece", path)
            vocab, rules = vocab_of(data, path), data.get("normalizer")
            added = {name: i for name, i in added_of(data, path).items() if name not in _BERT} if glm else {}
            rules = rules if isinstance(rules, dict) else {}
            lower, accents = rules.get("lowercase", True), rules.get("strip_accents")
            apart = rules.get("handle_chinese_chars", True)
        missing = [name for name in _BERT if name not in vocab]
        if missing:
            raise CheckpointError(f"{folder}: the vocabulary lacks {', '.join(missing)}")
        special = {_role(name): vocab[name] for name in _BERT}
        if glm:
            default = added or {name: len(vocab) + n for n, name in enumerate(_GLM_ADDED)}
            special |= {"eos": special["pad"]} | roles_of(read_ids(folder / "added_tokens.json", default))
            check_roles(special, ("sop", "eop"), folder / "added_tokens.json")
        return cls(vocab, special, Splitter(lower, lower if accents is None else accents, apart, glm))

    def encode(self, text: str) -> list[int]:
        return [i for word in self._splitter.words(text) for i in self._word(word)]

    def text_ids(self) -> Sequence[int]:
        return self._text_ids

    def sentence(self, token_ids: Sequence[int]) -> str:
        """As the decoder of the library tokenizers writes it, which differs from `decode` around apostrophes, in a
        first piece that goes on with a word, and in leaving unknown words out."""
        parts: list[str] = []
        for piece in (self._pieces[i] for i in token_ids if i in self._pieces and i not in self._names):
            if parts and piece.startswith("##"):
                parts.append(piece.removeprefix("##"))
            else:
                parts.append(f" {piece}" if parts and piece not in _NO_SPACE_IN_SENTENCE else piece)
        return "".join(parts)

    def _word(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self.special["unk"]]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self._vocab), None)
            if end is None:
                return [self.special["unk"]]
            ids.append(self._vocab[prefix + word[start:end]])
            start = end
        return ids

    def _entry(self, token_id: int) -> str:
        return self._pieces.get(token_id, "")

    def _bytes(self, token_id: int) -> bytes:
        if token_id == self.special["unk"]:
            return b" [UNK]"
        if token_id in self._names or token_id not in self._pieces:
            return b""
        piece = self._pieces[token_id]
        if _goes_on(piece):
            return piece[2:].encode()
        return piece.encode() if piece in _NO_SPACE_BEFORE else f" {piece}".encode()

    def goes_on(self, before: int, token_id: int) -> bool:
        return _goes_on(self._pieces.get(token_id, ""))

    def opens_text(self, token_id: int) -> bool:
        return self._bytes(token_id).startswith(b" ")


def _role(name: str) -> str:
    return name.strip("[]").lower()


def _goes_on(piece: str) -> bool:
    return piece.startswith("##") and len(piece) > 2


def _is_unused(piece: str) -> bool:
    """Rows that BERT keeps free."""
    return piece.startswith("[unused") and piece.endswith("]")


def _is_noncharacter(c: str) -> bool:
    """Whether no version of Unicode will ever assign the character."""
    return 0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE


def _is_punctuation(c: str) -> bool:
    """Unicode's punctuation, and of ASCII everything that is neither letter, digit nor white space."""
    return ("!" <= c <= "~" and not c.isalnum()) or unicodedata.category(c)[0] == "P"
