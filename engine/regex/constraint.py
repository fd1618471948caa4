"""Constraints: the tokens that may come next in a blank that must match a regular expression.

A pattern is matched against the text of a blank as clients get it: without the space that its mask swallowed, and
without the one that a tokenizer puts before a text. So the first token has start states of its own.
"""

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engine.regex.automaton import Automaton
from engine.regex.compiler import Allowance, compile_regex
from engine.regex.pieces import Pieces
from engine.requests import Regex, RequestError, member, regex_param
from model.layout import Blank
from model.tokenizer import Tokenizer

MASKS = 128  # kept of a pattern
CACHE_BYTES = 128 << 20  # of all patterns kept
REQUEST_BYTES = 16 << 20  # of the patterns of one request


class Pattern:
    """A compiled pattern over a vocabulary. All blanks with this pattern share it."""

    def __init__(self, automaton: Automaton, pieces: Pieces, space_lost_behind: str = "", param: str = "regex") -> None:
        """`space_lost_behind` is a character behind which the tokenizer gives back no space, `param` the field that a
        request has it in."""
        self.param = param
        if space_lost_behind:
            automaton = automaton.losing_space(ord(space_lost_behind))
        automaton, spaced = automaton.with_optional_space(automaton.start)
        # Where a first token begins, by whether the blank has a space before it: one that opens a text, any other.
        self._first: dict[bool, tuple[int, int]] = {}
        for is_spaced, base in ((False, automaton.start), (True, spaced)):
            automaton, opening = automaton.with_space(base)
            self._first[is_spaced] = opening, base
        self.automaton = automaton
        self.pieces = pieces
        self._masks: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of memory, including all masks that it may keep later."""
        return self.automaton.table.nbytes + MASKS * (self.pieces.size // 8)

    def begin(self, place: Blank) -> tuple[int, int]:
        """The state before a blank's first token."""
        opening, other = self._first[place.spaced]
        return (other, other) if place.continues else (opening, other)

    def behind(self, at: tuple[int, int], token_id: int) -> tuple[int, int]:
        """The state after a token."""
        opening, other = at
        state = opening if self.pieces.opens[token_id] else other
        state = self.automaton.after(state, self.pieces.spelled[token_id])
        return state, state

    def may_end(self, at: tuple[int, int]) -> bool:
        """Whether the text so far matches."""
        return bool(self.automaton.accepting[at[1]])

    def allowed(self, at: tuple[int, int]) -> NDArray[np.bool_]:
        """The tokens [vocab_size] bool that may come. It keeps some recent masks, one bit per token."""
        with self._lock:
            packed = self._masks.get(at)
            if packed is None:
                packed = self._masks[at] = np.packbits(self._read(at) >= 0)
                if len(self._masks) > MASKS:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(at)
        return np.unpackbits(packed, count=self.pieces.size).view(np.bool_)

    def whole(self, at: tuple[int, int]) -> NDArray[np.bool_]:
        """The tokens [vocab_size] bool that complete the text."""
        complete: NDArray[np.bool_] = self.automaton.accepting[self._read(at)]
        return complete

    def _read(self, at: tuple[int, int]) -> NDArray[np.int16]:
        opening, other = at
        found = self.pieces.read(self.automaton, other)
        if opening == other:
            return found
        return np.where(self.pieces.opens, self.pieces.read(self.automaton, opening), found)


class Constraint:
    """The pattern of one blank and its current state. Raises RequestError if no token can begin a match."""

    def __init__(self, pattern: Pattern, place: Blank, ends: tuple[int, ...], one_token: bool = False) -> None:
        """`ends` are the tokens that end a span. Of `one_token` a blank holds just one. Raises RequestError if no
        token can begin the text."""
        self._pattern = pattern
        self.param = pattern.param
        self._at = pattern.begin(place)
        self._ends = list(ends)
        self._one_token = one_token
        if not self._tokens().any() and (one_token or not pattern.may_end(self._at)):
            what = "is" if one_token else "begins"
            raise RequestError(f"no token of this model {what} a text that matches the pattern", self.param)

    def allowed(self) -> NDArray[np.bool_]:
        """The tokens [vocab_size] bool that may come, and the end tokens if the text matches."""
        tokens = self._tokens()
        tokens[self._ends] = self._pattern.may_end(self._at)
        return tokens

    def accept(self, token_id: int) -> None:
        """Advances by an allowed token that is no end token."""
        self._at = self._pattern.behind(self._at, token_id)

    @property
    def complete(self) -> bool:
        """Whether the text matches and no further token may come."""
        return self._pattern.may_end(self._at) and not self._tokens().any()

    def _tokens(self) -> NDArray[np.bool_]:
        return self._pattern.whole(self._at) if self._one_token else self._pattern.allowed(self._at)


class Patterns:
    """The recently compiled patterns over one vocabulary. Several threads may use it."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._pieces: Pieces | None = None
        self._kept: OrderedDict[Regex, Pattern] = OrderedDict()
        self._lock, self._reading = Lock(), Lock()

    def knows(self, regexes: Iterable[Regex]) -> bool:
        """Whether `get` returns without waiting."""
        with self._lock:
            return all(regex in self._kept for regex in regexes)

    def get(self, regexes: Iterable[Regex | None]) -> dict[Regex, Pattern]:
        """The compiled patterns of a request. It waits for new ones.

        Raises RequestError as `compile_regex` does, and for patterns that together need too much time or memory.
        """
        allowance = Allowance()
        found: dict[Regex, Pattern] = {}
        listed = list(regexes)
        for number, regex in enumerate(listed):
            if regex is None or regex in found:
                continue
            with member("pattern", number, len(listed)):
                found[regex] = self._get(regex, allowance)
            if sum(pattern.automaton.table.nbytes for pattern in found.values()) > REQUEST_BYTES:
                raise RequestError(f"the patterns need more than {REQUEST_BYTES >> 20} MiB", regex_param(found))
        return found

    def _get(self, regex: Regex, allowance: Allowance) -> Pattern:
        with self._lock:
            if regex in self._kept:
                self._kept.move_to_end(regex)
                return self._kept[regex]
        automaton = compile_regex(regex, allowance)
        with self._reading:
            if self._pieces is None:
                self._pieces = Pieces(self._tokenizer, self._size)
            pattern = Pattern(automaton, self._pieces, self._tokenizer.space_lost_behind, regex_param((regex,)))
        with self._lock:
            self._kept[regex] = pattern
            while len(self._kept) > 1 and sum(p.num_bytes for p in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
            return pattern
