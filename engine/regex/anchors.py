"""Anchors at the ends of a pattern. They mean nothing where the whole text must match, so they are removed.

The reader follows groups, branches, flags and comments, as far as that needs. It also finds what the compiler does not
support, so that an error can name it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from quant.usage import UsageError

_LETTERS = {"A": "start", "z": "end", "Z": "end", "b": "boundary", "B": "boundary"}
# Constructs that the compiler does not support, by their beginning.
_UNKNOWN = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?>": "an atomic group",
    "(?(": "a condition",
    "(?P=": "a back-reference",
    "\\k": "a back-reference",
}
_FLAGS = re.compile(r"\(\?([A-Za-z]*)(?:-([A-Za-z]+))?([:)])")
_KNOWN_FLAGS = set("imsxuUR")
_NAME = re.compile(r"\(\?P?<[^>=!]*>|\(\?P>")
_ESCAPE = re.compile(r"\\(?:[pPxuU]\{[^}]*\}|b\{[^}]*\}|k[<{'][^>}']*[>}']|.)", re.DOTALL)
_REPEAT = re.compile(r"(?:[*+?]|\{[0-9, ]*\})[?+]?")


@dataclass(slots=True)
class Piece:
    """A part of a pattern, from one character to another. A group has branches of pieces."""

    kind: str  # start, end, boundary, repeat, skip (flags, comments, white space that says nothing), atom, group
    begin: int
    end: int
    multiline: bool = False
    branches: list[list["Piece"]] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """A pattern while it is read."""

    text: str
    unknown: list[str] = field(default_factory=list)
    at: int = 0
    extended: bool = False
    multiline: bool = False

    def group(self, opener: int) -> Piece:
        """The pieces up to the parenthesis that closes a group, or all pieces with opener −1.

        Raises UsageError for a parenthesis, bracket or backslash without its counterpart.
        """
        found = Piece("group", max(opener, 0), 0, branches=[[]])
        extended, multiline = self.extended, self.multiline
        if opener >= 0:
            self._open(opener)
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text[self.at] == "|":
                self.at += 1
                found.branches.append([])
            else:
                found.branches[-1].append(self._piece())
        if opener < 0:
            if self.at < len(self.text):
                raise UsageError(f"the ) at character {self.at + 1} closes nothing")
        else:
            if self.at == len(self.text):
                raise UsageError(f"the ( at character {opener + 1} is not closed")
            self.at += 1
            self.extended, self.multiline = extended, multiline
        found.end = self.at
        return found

    def _open(self, opener: int) -> None:
        """Reads how a group begins."""
        text = self.text
        name, flags = _NAME.match(text, opener), _FLAGS.match(text, opener)
        unknown = next((what for sign, what in _UNKNOWN.items() if text.startswith(sign, opener)), None)
        if unknown is not None:
            self.unknown.append(unknown)
            self.at = opener + 2
        elif name is not None:
            self.at = name.end()
        elif flags is not None:
            self._set(flags)
            self.at = flags.end()
        else:
            self.at = opener + 1

    def _set(self, flags: re.Match[str]) -> None:
        on, off = set(flags[1]), set(flags[2] or "")
        self.unknown += [f"the flag {flag}" for flag in sorted((on | off) - _KNOWN_FLAGS)]
        self.extended = "x" not in off and ("x" in on or self.extended)
        self.multiline = "m" not in off and ("m" in on or self.multiline)

    def _piece(self) -> Piece:
        text, begin = self.text, self.at
        char = text[begin]
        if char == "(":
            return self._parenthesis(begin)
        if char == "[":
            return self._to("atom", self._class_end(begin))
        if char == "\\":
            return self._escape(begin)
        if char in "^$":
            return self._to("start" if char == "^" else "end", begin + 1)
        if self.extended and char.isspace():
            return self._to("skip", begin + 1)
        if self.extended and char == "#":
            end = text.find("\n", begin)
            return self._to("skip", len(text) if end < 0 else end + 1)
        repeat = _REPEAT.match(text, begin)
        if repeat is not None and repeat[0].startswith("{,"):
            self.unknown.append(f"{repeat[0]}, which has no least number")
        if repeat is not None and repeat[0][1:].endswith("+"):
            # To the compiler it is a repeat of a repeat, to Python 3.11 it never gives a character back.
            self.unknown.append(f"a possessive quantifier, {repeat[0]}")
        return self._to("repeat", repeat.end()) if repeat else self._to("atom", begin + 1)

    def _parenthesis(self, begin: int) -> Piece:
        flags = _FLAGS.match(self.text, begin)
        if flags is not None and flags[3] == ")":
            self._set(flags)
            return self._to("skip", flags.end())
        if self.text.startswith("(?#", begin):
            end = self.text.find(")", begin)
            if end < 0:
                raise UsageError(f"the ( at character {begin + 1} is not closed")
            return self._to("comment", end + 1)
        return self.group(begin)

    def _escape(self, begin: int) -> Piece:
        found = _ESCAPE.match(self.text, begin)
        if found is None:
            raise UsageError("a \\ at the end escapes nothing")
        letter = found[0][1]
        if letter in "123456789" or letter == "k":
            self.unknown.append("a back-reference")
        return self._to(_LETTERS.get(letter, "atom"), found.end())

    def _class_end(self, begin: int) -> int:
        """Behind a class in brackets, which may hold others."""
        text, depth, at = self.text, 0, begin
        while at < len(text):
            char = text[at]
            if char == "\\":
                at += 1
            elif char == "[":
                depth += 1
                first = at + 1 + text.startswith("^", at + 1)
                if text.startswith("]", first):
                    at = first  # a bracket that stands first is itself
            elif char == "]":
                depth -= 1
            elif char == "#" and self.extended:
                at = max(text.find("\n", at), at)
            at += 1
            if not depth:
                return at
        raise UsageError(f"the [ at character {begin + 1} is not closed")

    def _to(self, kind: str, end: int) -> Piece:
        piece = Piece(kind, self.at, end, self.multiline)
        self.at = end
        return piece


def plain(pattern: str) -> tuple[str, bool]:
    """A pattern without the anchors at its ends and without comments, and whether it ends in extended mode.

    In extended mode white space and comments mean nothing. Raises UsageError, naming the part, for a pattern that the
    compiler does not support.
    """
    reading = Reading(pattern)
    whole = reading.group(-1)
    if reading.unknown:
        raise UsageError(f"it has {reading.unknown[0]}")
    dropped = {piece.begin: piece.end for piece in _inside(whole) if piece.kind == "comment"}
    for piece in _outermost(whole, True, True):
        dropped[piece.begin] = piece.end
    for piece in _inside(whole):
        name, is_left = pattern[piece.begin : piece.end], piece.begin not in dropped
        if is_left and (name == "\\Z" or (piece.kind == "start" and (name == "\\A" or not piece.multiline))):
            where = "end" if piece.kind == "end" else "start"
            raise UsageError(f"an anchor, the {name} at character {piece.begin + 1}, is not at the {where} of the text")
    kept, at = [], 0
    for begin in sorted(dropped):
        kept.append(pattern[at:begin])
        at = dropped[begin]
    return "".join((*kept, pattern[at:])), reading.extended


def _inside(group: Piece) -> Iterator[Piece]:
    for piece in (piece for branch in group.branches for piece in branch):
        yield piece
        if piece.kind == "group":
            yield from _inside(piece)


def _outermost(group: Piece, at_start: bool, at_end: bool) -> Iterator[Piece]:
    """The anchors of a group at the ends of a text, if the group is at the text's start or end."""
    for branch in group.branches:
        pieces = [piece for piece in branch if piece.kind not in ("skip", "comment")]
        first, last = 0, len(pieces)
        while at_start and first < last and pieces[first].kind == "start" and not _is_repeated(pieces, first):
            yield pieces[first]
            first += 1
        while at_end and first < last and pieces[last - 1].kind == "end":
            last -= 1
            yield pieces[last]
        rest = pieces[first:last]
        for number, piece in enumerate(rest):
            is_first, is_last = at_start and number == 0, at_end and number == len(rest) - 1
            if piece.kind == "group" and not _is_repeated(rest, number) and (is_first or is_last):
                yield from _outermost(piece, is_first, is_last)


def _is_repeated(pieces: list[Piece], number: int) -> bool:
    return number + 1 < len(pieces) and pieces[number + 1].kind == "repeat"
