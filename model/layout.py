"""The layout of a text with blanks: the tokens to encode, and the rows that write each blank.

GLM reads part A, the text with one token per blank, and writes part B: for each blank a start token and the span's
tokens (arXiv 2103.10360, section 2.1). The families differ in the tokens around the text and in the positions of part
B; a `BlankLayout` states them. An `InfillLayout` or a `FimLayout` makes prompts for causal models. Does not import
torch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, Protocol

from model.segment import Tokens
from model.sentinels import ROLES
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
    not a text of its own, so that a space at its beginning is part of it. `end` ends the span in training, if that is
    not the tokenizer's first end.
    """

    mask: str
    spaced: bool
    context: tuple[int, ...]
    start: int
    position: int
    block: int
    stride: tuple[int, int]
    continues: bool = False
    end: int | None = None

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
        for mask, before, after in _prompted(segments, tokenizer):
            if mask not in known:
                raise LayoutError(f"this checkpoint cannot fill {mask}; it can fill {', '.join(known)}")
            prompt = self._prompt(mask, before, after, tokenizer)
            blanks.append(_written_behind(prompt, mask, continues=mask == "[gMASK]" and bool(before)))
        return _of_prompts(blanks)

    def _prompt(self, mask: str, before: list[int], after: list[int], tokenizer: Tokenizer) -> tuple[int, ...]:
        first = [tokenizer.special[role] for role in self.first]
        if mask == "[gMASK]":
            return (*first, *before)
        user, suffix, prefix, middle, assistant = (tokenizer.special[role] for role in self.roles)
        mode = dict(self.modes)[mask]
        head = tokenizer.encode(f"\n###MODE:{mode}\n")
        text = suffix, *after, prefix, *before
        return (*first, user, *head, *text, middle, assistant, *tokenizer.encode("\n"))


@dataclass(frozen=True, slots=True)
class FimLayout:
    """Prompts of a causal model trained to fill in the middle (arXiv 2207.14255): one per blank, in which the other
    blanks are empty.

    `form` has the roles of a prompt's tokens, and `prefix` and `suffix`, the texts on both sides. `end` is the role of
    the token behind the middle, `open_end` of the one behind a text that `[gMASK]` continues; None is the tokenizer's
    first end. A text begins with the start token, if the tokenizer has one that it puts before texts. In a model
    without one it follows the end of another text, as in training.
    """

    form: tuple[str, ...] = (ROLES[0], "prefix", ROLES[1], "suffix", ROLES[2])
    end: str | None = None
    open_end: str | None = "eos"

    def masks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return ("[gMASK]",) if self._lacks(tokenizer) else ("[gMASK]", "[MASK]")

    def lay_out(self, segments: Sequence[Segment], tokenizer: Tokenizer, scored: bool = False) -> Layout:
        blanks = []
        for mask, before, after in _prompted(segments, tokenizer):
            self._check(mask, tokenizer)
            if mask == "[MASK]":
                sides = {"prefix": before, "suffix": after}
                parts = (sides.get(item) or self._token(item, tokenizer) for item in self.form)
                ids = [i for part in parts for i in part]
            else:
                ids = before
            role = self.open_end if mask == "[gMASK]" else self.end
            spaced = not ids and tokenizer.opens_with_space
            blank = _written_behind(self._begun(ids, tokenizer), mask, continues=bool(ids), spaced=spaced)
            blanks.append(blank if role is None else replace(blank, end=tokenizer.special[role]))
        return _of_prompts(blanks)

    def _token(self, role: str, tokenizer: Tokenizer) -> Sequence[int]:
        """The token of a role; nothing for a side without text."""
        return [] if role in ("prefix", "suffix") else [tokenizer.special[role]]

    def _begun(self, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
        """A prompt behind the token that a text begins with. A client's own ids may begin with it already."""
        if "bos" in tokenizer.special:
            bos = tokenizer.special["bos"]
            return tuple(ids) if list(ids[:1]) == [bos] else (bos, *ids)
        begins = zip(tokenizer.tags, ids, strict=False)
        if len(ids) < len(tokenizer.tags) or not all(i in known for known, i in begins):
            tags = "".join(tokenizer.piece(min(known)) for known in tokenizer.tags)
            raise LayoutError(f"a text of this model begins with tags, such as {tags}, also where it is scored")
        return tuple(ids) or (tokenizer.special["eos"],)

    def _lacks(self, tokenizer: Tokenizer) -> list[str]:
        """The roles that a tokenizer has no token for."""
        return [item for item in self.form if item not in ("prefix", "suffix") and item not in tokenizer.special]

    def _check(self, mask: str, tokenizer: Tokenizer) -> None:
        """Raises LayoutError for a mask that the checkpoint cannot fill."""
        known, lacks = self.masks(tokenizer), self._lacks(tokenizer)
        if mask == "[MASK]" and lacks:
            raise LayoutError(
                f"this checkpoint cannot fill [MASK]: its tokenizer has no {', '.join(lacks)} token; it can continue a "
                "text, [gMASK]"
            )
        if mask not in known:
            raise LayoutError(f"this checkpoint cannot fill {mask}; it can fill {', '.join(known)}")


def _prompted(segments: Sequence[Segment], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int], list[int]]]:
    """Each mask of a text for a causal model, with the ids of the text before and behind it."""
    for number, segment in enumerate(segments):
        if not isinstance(segment, tuple):
            continue
        before, after = segments[:number], _joined(segments[number + 1 :], tokenizer)
        if segment[0] == "[gMASK]" and after:
            raise LayoutError("this model is causal: [gMASK] must be the text's end")
        yield segment[0], _joined(before, tokenizer, opens=True), after


def _written_behind(prompt: tuple[int, ...], mask: str, continues: bool, spaced: bool = False) -> Blank:
    """The blank that a causal model writes behind a prompt, whose last token is the blank's start token."""
    return Blank(mask, spaced, prompt[:-1], prompt[-1], len(prompt) - 1, 0, (1, 0), continues)


def _of_prompts(blanks: Sequence[Blank]) -> Layout:
    return Layout(max((b.context for b in blanks), key=len, default=()), tuple(blanks))


def encoded(segment: str | Tokens, tokenizer: Tokenizer) -> Sequence[int]:
    """The ids of a segment, which is a text or ids already."""
    return segment.ids if isinstance(segment, Tokens) else tokenizer.encode(segment)


def _joined(segments: Sequence[Segment], tokenizer: Tokenizer, opens: bool = False) -> list[int]:
    """The ids of segments without their masks, neighbouring strings as one. `opens`: they begin a text."""
    ids: list[int] = []
    plain = (s for s in segments if not isinstance(s, tuple))
    for is_text, run in groupby(plain, key=lambda s: isinstance(s, str)):
        if is_text:
            text = "".join(s for s in run if isinstance(s, str))
            ids += tokenizer.encode(tokenizer.opened(text) if opens and not ids else text)
        else:
            ids += [i for s in run if isinstance(s, Tokens) for i in s.ids]
    return ids


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


def end_of(blank: Blank, tokenizer: Tokenizer) -> int:
    """The token that ends a blank's span in training."""
    return tokenizer.ends[0] if blank.end is None else blank.end


def span_ids(text: str, blank: Blank, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a blank's known text, including the space that its mask swallowed."""
    if blank.continues:
        return tokenizer.encode_on(text)
    return tokenizer.encode(f" {text}" if blank.spaced else text)
