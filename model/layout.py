"""The layout of a text with blanks: the tokens to encode, and the rows that write each blank.

GLM reads part A, the text with one token per blank, and writes part B: for each blank a start token and the span's
tokens (arXiv 2103.10360, section 2.1). The families differ in the tokens around the text and in the positions of part
B; a `BlankLayout` states them. An `InfillLayout` makes prompts for causal models. Does not import torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

from model.segment import Tokens
from model.tokenizer import Tokenizer

MASK_PATTERN = re.compile(r"\[[sg]?MASK\]")

Segment = str | Tokens | tuple[str, ...]  # plain text, its tokens, or a tuple whose first item is a mask's name


class LayoutError(ValueError):
    """A text without a layout in this model. The message is one line."""


@dataclass(frozen=True, slots=True)
class Blank:
    """A mask in a text, and the rows that write in its place.

    `context` is encoded before it; in GLM all blanks of a text share one. The first row is `start`, at `position` and
    `block`; each later row adds `stride` (positions, block positions). `spaced`: the mask token swallows a space before
    the mask, so that a fill begins with that space, as in training. `continues`: the fill is the text's next tokens,
    not a text of its own, so that a space at its beginning is part of it.
    """

    mask: str
    spaced: bool
    context: tuple[int, ...]
    start: int
    position: int
    block: int
    stride: tuple[int, int]
    continues: bool = False

    def place(self, number: int) -> tuple[int, int]:
        """(position, block position) of a row: row 0 is the start token, row n the span's n-th token."""
        return self.position + number * self.stride[0], self.block + number * self.stride[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """A text with its layout. `token_ids` is part A, at positions 0, 1, …; for a causal model it is the longest
    prompt."""

    token_ids: tuple[int, ...]
    blanks: tuple[Blank, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


class LayoutRules(Protocol):
    """A family's rules to lay out a text."""

    def lay_out(self, segments: Sequence[Segment], tokenizer: Tokenizer, scored: bool = False) -> Layout:
        """The layout of segments. `scored`: the spans are known, and their probability is asked for.

        Raises LayoutError for a mask that the model does not have.
        """

    def masks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """The masks that a text may contain."""


@dataclass(frozen=True, slots=True)
class BlankLayout:
    """Part A is the tokens of the roles `first`, the text with its masks, and the end token if `end` says so.

    A span's rows keep their mask's position, except for masks in `counting`, whose rows count on behind part A. With
    `blocks` rows count block positions 1, 2, …; without, these are 0. `end_when_scored` is false for a family whose
    evaluation omits the end token that its generation has.
    """

    first: tuple[str, ...] = ("cls",)
    end: Literal["unless_gmask", "unless_mask", "never"] = "unless_gmask"
    end_when_scored: bool = True
    counting: tuple[str, ...] = ()
    blocks: bool = True

    def masks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return tuple(tokenizer.masks)

    def lay_out(self, segments: Sequence[Segment], tokenizer: Tokenizer, scored: bool = False) -> Layout:
        first = [tokenizer.special[role] for role in self.first]
        # A client's token ids may begin with the family's own tokens already.
        brought = segments[0].ids if segments and isinstance(segments[0], Tokens) else ()
        ids = [] if list(brought[: len(first)]) == first else first
        found: list[tuple[str, bool, int]] = []
        for segment, spaced in _spaced(segments, tokenizer):
            if not isinstance(segment, tuple):
                ids += encoded(segment, tokenizer)
                continue
            mask = segment[0]
            if mask not in tokenizer.masks:
                raise LayoutError(f"this checkpoint has no {mask} token; it has {', '.join(tokenizer.masks)}")
            found.append((mask, spaced, len(ids)))
            ids.append(tokenizer.masks[mask])
        if self._ends(found, len(ids), scored) and ids[-1:] != [tokenizer.special["eos"]]:
            ids.append(tokenizer.special["eos"])
        context = tuple(ids)
        return Layout(context, tuple(self._blank(*f, context, tokenizer) for f in found))

    def _ends(self, found: list[tuple[str, bool, int]], length: int, scored: bool) -> bool:
        """Whether the end token follows."""
        if self.end == "never" or (scored and not self.end_when_scored):
            return False
        last = found[-1][0] if found and found[-1][2] == length - 1 else None
        return last is None if self.end == "unless_mask" else last != "[gMASK]"

    def _blank(self, mask: str, spaced: bool, index: int, context: tuple[int, ...], tokenizer: Tokenizer) -> Blank:
        counts = mask in self.counting
        return Blank(
            mask,
            spaced,
            context,
            tokenizer.special["sop"],
            len(context) if counts else index,
            int(self.blocks),
            (int(counts), int(self.blocks)),
        )


def _spaced(segments: Sequence[Segment], tokenizer: Tokenizer) -> list[tuple[Segment, bool]]:
    """Segments without the space that masks swallow, and for each mask whether a space stands before it."""
    result: list[tuple[Segment, bool]] = []
    kept = [s for s in segments if s != ""]
    for number, segment in enumerate(kept):
        if isinstance(segment, str):
            before_mask = number + 1 < len(kept) and isinstance(kept[number + 1], tuple)
            result.append((tokenizer.before_mask(segment) if before_mask else segment, False))
        else:
            before = kept[number - 1] if number else ""
            result.append((segment, isinstance(before, str) and before.endswith(" ")))
    return result


@dataclass(frozen=True, slots=True)
class InfillLayout:
    """Prompts of a causal model: one per blank, in which the other blanks are empty.

    `[gMASK]` at a text's end continues the text. Another mask stands between a prefix and a suffix; a code model reads
    them in the form of CodeGeeX4's Infilling guideline, if the tokenizer has its tokens. The prompt's last token is the
    blank's start token.
    """

    first: tuple[str, ...] = ("gmask", "sop")
    modes: tuple[tuple[str, str], ...] = (("[MASK]", "BLOCK"), ("[sMASK]", "LINE"))
    roles: tuple[str, ...] = ("user", "code_suffix", "code_prefix", "code_middle", "assistant")

    def masks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        infills = all(role in tokenizer.special for role in self.roles)
        return ("[gMASK]", *(mask for mask, _ in self.modes if infills))

    def lay_out(self, segments: Sequence[Segment], tokenizer: Tokenizer, scored: bool = False) -> Layout:
        known = self.masks(tokenizer)
        blanks = []
        for number, segment in enumerate(segments):
            if not isinstance(segment, tuple):
                continue
            mask = segment[0]
            if mask not in known:
                raise LayoutError(f"this checkpoint cannot fill {mask}; it can fill {', '.join(known)}")
            before, after = (_joined(part, tokenizer) for part in _parted(segments, number))
            if mask == "[gMASK]" and after:
                raise LayoutError("this model is causal: [gMASK] must be the text's end")
            prompt = self._prompt(mask, before, after, tokenizer)
            continues = mask == "[gMASK]" and bool(before)
            blanks.append(Blank(mask, False, prompt[:-1], prompt[-1], len(prompt) - 1, 0, (1, 0), continues))
        longest = max((b.context for b in blanks), key=len, default=())
        return Layout(longest, tuple(blanks))

    def _prompt(self, mask: str, before: list[int], after: list[int], tokenizer: Tokenizer) -> tuple[int, ...]:
        first = [tokenizer.special[role] for role in self.first]
        if mask == "[gMASK]":
            return (*first, *before)
        user, suffix, prefix, middle, assistant = (tokenizer.special[role] for role in self.roles)
        mode = dict(self.modes)[mask]
        head = tokenizer.encode(f"\n###MODE:{mode}\n")
        text = suffix, *after, prefix, *before
        return (*first, user, *head, *text, middle, assistant, *tokenizer.encode("\n"))


def encoded(segment: str | Tokens, tokenizer: Tokenizer) -> Sequence[int]:
    """The ids of a segment, which is a text or ids already."""
    return segment.ids if isinstance(segment, Tokens) else tokenizer.encode(segment)


def _joined(segments: Sequence[Segment], tokenizer: Tokenizer) -> list[int]:
    """The ids of segments without their masks, neighbouring strings as one."""
    ids: list[int] = []
    plain = (s for s in segments if not isinstance(s, tuple))
    for is_text, run in groupby(plain, key=lambda s: isinstance(s, str)):
        if is_text:
            ids += tokenizer.encode("".join(s for s in run if isinstance(s, str)))
        else:
            ids += [i for s in run if isinstance(s, Tokens) for i in s.ids]
    return ids


def _parted(segments: Sequence[Segment], number: int) -> tuple[Sequence[Segment], Sequence[Segment]]:
    return segments[:number], segments[number + 1 :]


@dataclass(frozen=True, slots=True)
class MaskedLayout:
    """[CLS] text [SEP] of a masked language model, which writes each mask in its own place.

    `first` and `last` are the roles of the tokens around the text. There is no part B. A blank's `position` is the row
    that predicts it.
    """

    first: tuple[str, ...] = ("cls",)
    last: tuple[str, ...] = ("sep",)

    def masks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return ("[MASK]",)

    def lay_out(self, segments: Sequence[Segment], tokenizer: Tokenizer, scored: bool = False) -> Layout:
        ids = [tokenizer.special[role] for role in self.first]
        places: list[tuple[int, bool]] = []
        for segment, spaced in _spaced(segments, tokenizer):
            if not isinstance(segment, tuple):
                ids += encoded(segment, tokenizer)
            elif segment[0] != "[MASK]":
                raise LayoutError(f"this checkpoint has no {segment[0]} token; it has [MASK]")
            else:
                places.append((len(ids), spaced and tokenizer.mask_strips))
                ids.append(tokenizer.special["mask"])
        ids += [tokenizer.special[role] for role in self.last]
        context = tuple(ids)
        blanks = (Blank("[MASK]", s, context, tokenizer.special["mask"], p, 0, (0, 0)) for p, s in places)
        return Layout(context, tuple(blanks))


def parse(text: str) -> list[str | tuple[str, int, int]]:
    """Splits a text at its masks: strings, and (mask, start, end) with offsets in characters."""
    parts: list[str | tuple[str, int, int]] = []
    end = 0
    for match in MASK_PATTERN.finditer(text):
        parts += [text[end : match.start()], (match.group(), match.start(), match.end())]
        end = match.end()
    return [*parts, text[end:]]


def span_ids(text: str, blank: Blank, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a blank's known text, including the space that its mask swallowed."""
    if blank.continues:
        return tokenizer.encode_on(text)
    return tokenizer.encode(f" {text}" if blank.spaced else text)
