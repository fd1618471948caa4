"""IgLM's tokenizer: a token for each amino acid of a sequence, and tags that say whose sequence it is.

A `vocab.txt` with 33 lines. A text begins with a chain and a species, as in `[HEAVY][HUMAN]EVQLV`; such a tag is no
special token, but it is never drawn. White space is dropped. Any other character is [UNK].
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.config import CheckpointError
from model.tokenizers.files import read_text
from model.tokenizers.interface import Tokenizer, roles_of

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHAINS = ("[HEAVY]", "[LIGHT]")
_AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
# Of a filled span, and of a whole sequence.
_ENDS = ("cls", "sep")


class Antibodies(Tokenizer):
    """decode(encode(text)) == text for tags and amino acids."""

    def __init__(self, vocab: Mapping[str, int], path: Path) -> None:
        missing = [token for token in (*_SPECIAL, *_CHAINS, *_AMINO_ACIDS) if token not in vocab]
        if missing:
            raise CheckpointError(f"{path}: not IgLM's vocabulary, the only one for GPT-2's blocks: lacks {missing[0]}")
        special = {token: vocab[token] for token in _SPECIAL}
        super().__init__(roles_of(special), {i: token for token, i in special.items()}, len(vocab), _ENDS)
        self._vocab = {token: i for token, i in vocab.items() if token not in special}
        self._pieces = {i: token for token, i in self._vocab.items()}
        chains = frozenset(vocab[token] for token in _CHAINS)
        species = frozenset(i for token, i in self._vocab.items() if token.startswith("[")) - chains
        self.tags = (chains, species)
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._vocab, key=len, reverse=True))) + r"|\S")

    @classmethod
    def read(cls, folder: Path) -> "Antibodies":
        """Reads `vocab.txt`. Raises CheckpointError if it is unreadable, and for another vocabulary."""
        path = folder / "vocab.txt"
        lines = read_text(path).split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        if len(set(lines)) != len(lines) or "" in lines:
            raise CheckpointError(f"{path}: a line must be a token that no other line is")
        return cls({token: i for i, token in enumerate(lines)}, path)

    def encode(self, text: str) -> list[int]:
        return [self._vocab.get(token, self.special["unk"]) for token in self._pattern.findall(text)]

    def text_ids(self) -> Sequence[int]:
        return [i for i, token in sorted(self._pieces.items()) if token in _AMINO_ACIDS]

    def _bytes(self, token_id: int) -> bytes:
        return self._pieces.get(token_id, "").encode()
