"""The spelling of special tokens: texts that name them, for clients that work with ids.

In a request's text only masks are special. Here `<sop>` is a token too, so that a client finds the ids of start and
end, and can say where a context ends. Does not import torch.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from model.offsets import offsets
from model.tokenizer import Decoder, Tokenizer

# The names in GLM's papers; every checkpoint's tokens have them beside their own.
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
        self._pattern, self._mask_pattern = _any_of(self._ids), _any_of(tokenizer.masks)
        self._masks = set(tokenizer.masks.values())

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text with named special tokens. A mask swallows white space before it, if the family's layout
        does."""
        return [i for _, _, ids in self._parts(text, self._pattern) for i in ids]

    def tokenize_masks(self, text: str) -> list[int]:
        """The ids of a text, in which only the tokenizer's masks are special."""
        return [i for _, _, ids in self._parts(text, self._mask_pattern) for i in ids]

    def starts(self, text: str) -> list[int]:
        """Offset, in characters, of each token of a text."""
        parts = self._parts(text, self._pattern)
        return [max(at + n, 0) for at, plain, ids in parts for n in offsets(plain, ids, self._tokenizer)]

    def detokenize(self, token_ids: Sequence[int], finished: bool = False) -> str:
        """The text of ids, with names of special tokens. `finished` omits an unfinished character at the end."""
        parts: list[str] = []
        rest = ""
        for name, ids in self._runs(token_ids):
            decoder = self._decoder(opens=not parts)
            parts.append(rest)
            if not name:
                decoder.extend(ids)
            parts.append(name * len(ids) or decoder.text)
            rest = decoder.whole[decoder.length :]
        return "".join(parts) + ("" if finished else rest)

    def detokenize_masks(self, token_ids: Sequence[int]) -> str:
        """The text of ids, with names of masks only; other special tokens give no text."""
        names = {i: name for name, i in self._tokenizer.masks.items()}
        runs = groupby(token_ids, names.get)
        return "".join(name * len([*run]) if name else self._tokenizer.decode([*run]) for name, run in runs)

    def starts_of(self, token_ids: Sequence[int]) -> list[int]:
        """Offset of each id, in characters of the text of all ids."""
        starts: list[int] = []
        at = 0
        for name, ids in self._runs(token_ids):
            decoder = self._decoder(opens=not starts)
            starts += [at + (number * len(name) if name else decoder.add(i)) for number, i in enumerate(ids)]
            at += len(name) * len(ids) if name else len(decoder.whole)
        return starts

    def tail(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids behind the last special token: the text that the next token continues."""
        behind = next((n for n in range(len(token_ids), 0, -1) if token_ids[n - 1] in self._names), 0)
        return tuple(token_ids[behind:])

    def _parts(self, text: str, names: re.Pattern[str]) -> Iterator[tuple[int, str, list[int]]]:
        """For each part of a text its offset, its plain text as encoded, and its ids."""
        at = 0
        parts = names.split(text)
        for number, part in enumerate(parts):
            if number % 2:
                yield at, "", [self._ids[part]]
            elif part:
                follows = self._ids.get(parts[number + 1]) if number + 1 < len(parts) else None
                plain = self._tokenizer.before_mask(part) if follows in self._masks else part
                opened = plain if number else self._tokenizer.opened(plain)
                yield at - (len(opened) - len(plain)), opened, self._tokenizer.encode(opened)
            at += len(part)

    def _decoder(self, opens: bool) -> Decoder:
        """Of ids that begin a document, or of others."""
        return Decoder(self._tokenizer, spaced=opens and self._tokenizer.opens_with_space)

    def _runs(self, token_ids: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        """Neighbouring ids: a special token's name and how often it comes, or no name and ids of text."""
        for name, run in groupby(token_ids, self._names.get):
            yield name or "", list(run)

    def name(self, token_id: int) -> str:
        """The name of a special token."""
        return self._names[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token, maybe part of a character. A token that adds no text has the bytes of its name."""
        return self._tokenizer.decode_bytes([token_id]) or self._names.get(token_id, "").encode()


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """One of some names, the longest that there is; of no names nothing."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"\Z(?!\Z)") + ")")
