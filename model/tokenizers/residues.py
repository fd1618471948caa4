"""The tokenizer of ProteinGLM: a token for each residue, from a `tokenizer.model` that has one token a line.

A token in angle brackets is special. White space between residues is passed over, and a run of other characters (also
of lower-case letters) is one <unk>, as the published code reads it. decode(encode(text)) loses both.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from model.config import CheckpointError
from model.tokenizers.files import MissingFile, check_roles, kind_of, read_bytes
from model.tokenizers.interface import MASKS, Tokenizer, roles_of

_SPECIAL = re.compile(r"<[a-z]+>")


class Residues(Tokenizer):
    """A token's id is the number of its line, from 0."""

    def __init__(self, tokens: Sequence[str], ends: Sequence[str]) -> None:
        ids = {token: i for i, token in enumerate(tokens)}
        special = roles_of({token: i for token, i in ids.items() if _SPECIAL.fullmatch(token)})
        names = {i: token for token, i in ids.items() if _SPECIAL.fullmatch(token)}
        names |= {special[role]: name for name, role in MASKS.items() if role in special}
        super().__init__(special, names, len(tokens), ends)
        self._tokens = tokens
        self._residues = {token: i for token, i in ids.items() if i not in names}
        longest_first = sorted(map(re.escape, self._residues), key=len, reverse=True)
        residue = "|".join(longest_first)
        self._parts = re.compile(rf"({residue})|(?:(?!{residue})\S)+")

    @classmethod
    def read_masked(cls, folder: Path) -> "Residues":
        """Reads the `tokenizer.model` of a masked model, which ends no span. Raises CheckpointError for another
        file."""
        return cls(_read(folder, ("pad", "mask", "eos", "unk")), ())

    @classmethod
    def read_causal(cls, folder: Path) -> "Residues":
        """Reads the `tokenizer.model` of a causal model. Raises CheckpointError for another file."""
        return cls(_read(folder, ("pad", "gmask", "sop", "eop", "eos", "unk")), ("eos", "eop"))

    def encode(self, text: str) -> list[int]:
        unknown = self.special["unk"]
        return [self._residues.get(match[1], unknown) for match in self._parts.finditer(text)]

    def text_ids(self) -> list[int]:
        return sorted(self._residues.values())

    def _entry(self, token_id: int) -> str:
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else ""

    def _bytes(self, token_id: int) -> bytes:
        if token_id == self.special["unk"]:
            return " ⁇ ".encode()
        return b"" if token_id in self._names else self._entry(token_id).encode()


def _read(folder: Path, roles: Sequence[str]) -> list[str]:
    path = folder / "tokenizer.model"
    if not path.exists():
        raise MissingFile(f"{folder}: lacks its tokenizer, the file tokenizer.model")
    data = read_bytes(path)
    try:
        tokens = [line.strip() for line in data.decode().splitlines()]
    except UnicodeDecodeError:
        tokens = []
    if "<pad>" not in tokens:
        raise CheckpointError(f"{path}: is {kind_of(data)}; this model's has in each line a token")
    if len(set(tokens)) < len(tokens) or not all(tokens):
        raise CheckpointError(f"{path}: has an empty line or a token twice")
    special = roles_of({token: i for i, token in enumerate(tokens) if _SPECIAL.fullmatch(token)})
    check_roles(special, roles, path)
    if len(special) == len(tokens):
        raise CheckpointError(f"{path}: has no residues")
    return tokens
