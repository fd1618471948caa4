"""The tokenizer of ESM: a letter is a token. Other characters are unknown, white space is lost.

Of a run of unknown characters the original makes one <unk>.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.config import CheckpointError
from model.tokenizers.files import declared, read_text
from model.tokenizers.interface import Tokenizer

_ROLES = {"cls": ("<cls>",), "sep": ("<eos>",), "mask": ("<mask>",), "pad": ("<pad>",), "unk": ("<unk>",)}
_SPECIAL = re.compile(r"<[^<>]+>")  # <null_1> is a row that no text uses


class EsmResidues(Tokenizer):
    """Ids of the letters of `vocab.txt`."""

    def __init__(self, letters: Mapping[str, int], special: Mapping[str, int], names: Mapping[int, str]) -> None:
        """`letters` are all texts that have a token."""
        super().__init__(special, names, max(letters.values()) + 1, ends=())
        self._letters = letters
        self._texts = {i: letter for letter, i in letters.items()}
        longest_first = sorted(letters, key=len, reverse=True)
        self._parts = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @classmethod
    def read(cls, folder: Path) -> "EsmResidues":
        """Reads `vocab.txt`, a token a line. Raises CheckpointError for a missing file and missing tokens."""
        path = folder / "vocab.txt"
        tokens = [line.strip() for line in read_text(path).splitlines()]
        ids = {token: i for i, token in enumerate(tokens)}
        if len(ids) < len(tokens) or "" in ids:
            raise CheckpointError(f"{path}: every line must be another token")
        special, names = declared(folder, ids, _ROLES)
        names |= {i: token for token, i in ids.items() if _SPECIAL.fullmatch(token)}
        letters = {token: i for token, i in ids.items() if i not in names}
        if not letters:
            raise CheckpointError(f"{path}: has no letters")
        return cls(letters, special, names)

    def encode(self, text: str) -> list[int]:
        unknown = self.special["unk"]
        return [self._letters.get(part, unknown) for piece in self._parts.split(text) for part in piece.split()]

    def text_ids(self) -> Sequence[int]:
        return sorted(self._texts)

    def sentence(self, token_ids: Sequence[int]) -> str:
        special = {*self.special.values()}
        return " ".join(self.entry(i) for i in token_ids if i not in special and self.entry(i))

    def _bytes(self, token_id: int) -> bytes:
        if token_id == self.special["unk"]:
            return self.names[token_id].encode()
        return self._texts.get(token_id, "").encode()
