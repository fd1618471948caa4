"""Special tokens as they are spelled: texts in which their names stand for them, as clients write that know ids.

Elsewhere a text that spells a special token is text. Here `[gMASK]` or `<sop>` is the token, so that a client finds
the ids of the start and the end, and can say where a context ends. Does not import torch.
"""

import re
from collections.abc import Sequence
from itertools import groupby

from model.offsets import offsets
from model.tokenizer import Tokenizer

# GLM's papers' names, which every checkpoint's tokens go by here besides their own.
_COMMON = {"<sop>": "sop", "<eop>": "eop"}


class Spelling:
    """The names of a tokenizer's special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = set(tokenizer.special.values())
        own = {name: i for i, name in tokenizer.names.items() if i in special}
        common = {name: tokenizer.special[role] for name, role in _COMMON.items() if role in tokenizer.special}
        self._ids = common | own | tokenizer.masks
        self._names = {i: name for name, i in self._ids.items()} | {i: name for name, i in own.items()}
        self._names |= {i: name for name, i in tokenizer.masks.items()}
        names = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self._masks = set(tokenizer.masks.values())

    def tokenize(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text, and at which of its characters each begins. A mask swallows white space before it where
        it does in the family's layout."""
        ids: list[int] = []
        starts: list[int] = []
        at = 0
        parts = self._pattern.split(text)
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self._ids[part])
                starts.append(at)
            elif part:
                follows = self._ids.get(parts[number + 1]) if number + 1 < len(parts) else None
                plain = self._tokenizer.before_mask(part) if follows in self._masks else part
                found = self._tokenizer.encode(plain)
                ids += found
                starts += [at + start for start in offsets(plain, found, self._tokenizer)]
            at += len(part)
        return ids, starts

    def detokenize(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text of ids, special ones by name, and at which of its characters each begins."""
        text = ""
        starts: list[int] = []
        for name, run in groupby(token_ids, self._names.get):
            ids = list(run)
            if name:
                starts += [len(text) + n * len(name) for n in range(len(ids))]
                text += name * len(ids)
            else:
                plain = self._tokenizer.decode(ids)
                starts += [len(text) + start for start in offsets(plain, ids, self._tokenizer)]
                text += plain
        return text, starts

    def name(self, token_id: int) -> str:
        """How a special token is spelled."""
        return self._names[token_id]
