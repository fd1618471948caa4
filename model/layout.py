"""Where everything of a blank-infilling sequence stands: part A, its blanks, part B's positions.

Part A is [CLS], the text with one mask token a blank, and the end token unless the text ends in `[gMASK]`
(GLM's generate_samples.py). A piece of part B is the start token and the span's tokens; all of it carries its
mask's position and counts block positions 1, 2, … (arXiv 2103.10360, section 2.1). Does not import torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from model.tokenizer import Tokenizer

MASK_PATTERN = re.compile(r"\[[sg]?MASK\]")


class LayoutError(ValueError):
    """A text that cannot be laid out; the message is one line."""


@dataclass(frozen=True, slots=True)
class Blank:
    """A mask in a text.

    `position` is its index in part A. `spaced` tells that the text has a space before the mask: the mask
    token swallows it, so that a fill begins with it, as the spans did in training.
    """

    mask: str
    position: int
    spaced: bool


@dataclass(frozen=True, slots=True)
class PartA:
    """The bidirectional part of a sequence: token ids at positions 0, 1, … with block position 0."""

    token_ids: tuple[int, ...]
    blanks: tuple[Blank, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def parse(text: str) -> list[str | tuple[str, int, int]]:
    """Splits a text at its masks: strings, and (mask, start, end) in characters."""
    parts: list[str | tuple[str, int, int]] = []
    end = 0
    for match in MASK_PATTERN.finditer(text):
        parts += [text[end : match.start()], (match.group(), match.start(), match.end())]
        end = match.end()
    return [*parts, text[end:]]


def part_a(segments: Sequence[str | tuple[str, ...]], tokenizer: Tokenizer) -> PartA:
    """Lays out segments, each a string of plain text or a tuple whose first item is a mask's name.

    Raises LayoutError for a mask that the tokenizer does not have.
    """
    segments = [s for s in segments if s != ""]
    ids = [tokenizer.cls]
    blanks: list[Blank] = []
    for number, segment in enumerate(segments):
        if isinstance(segment, str):
            before_mask = number + 1 < len(segments) and not isinstance(segments[number + 1], str)
            ids += tokenizer.encode(segment[:-1] if before_mask and segment.endswith(" ") else segment)
            continue
        mask = segment[0]
        if mask not in tokenizer.masks:
            raise LayoutError(f"this checkpoint has no {mask} token; it has {', '.join(tokenizer.masks)}")
        before = segments[number - 1] if number else ""
        blanks.append(Blank(mask, len(ids), isinstance(before, str) and before.endswith(" ")))
        ids.append(tokenizer.masks[mask])
    if not (blanks and blanks[-1].mask == "[gMASK]" and blanks[-1].position == len(ids) - 1):
        ids.append(tokenizer.eos)
    return PartA(tuple(ids), tuple(blanks))


def span_ids(text: str, blank: Blank, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a blank's known text, with the space that its mask swallowed."""
    return tokenizer.encode(f" {text}" if blank.spaced else text)


def span_text(token_ids: Sequence[int], blank: Blank, tokenizer: Tokenizer) -> str:
    """The text of a blank's tokens as it stands in the blank's place: the inverse of `span_ids`."""
    text = tokenizer.decode(token_ids)
    return text[1:] if blank.spaced and text.startswith(" ") else text
