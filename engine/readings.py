"""Readings: how a model reads a text and spells a token, for those who compute with its tokens elsewhere."""

from dataclasses import dataclass, field

from engine.answers import INTERNAL, OPTIONAL


@dataclass(frozen=True, slots=True)
class Piece:
    """A token: `data` are the bytes that it adds to a text, a special token's those of its name; `entry` is how the
    vocabulary's file spells it."""

    token_id: int
    data: list[int]
    entry: str


@dataclass(frozen=True, slots=True)
class LaidBlank:
    """Where a blank is written: a row for its start token, at `position` and `block_position`, and behind it one for
    each token of the span, each so many steps on. What follows a row is predicted by it.

    `spaced`: the mask has swallowed a space, with which the span's text begins. `context` is what is read before the
    start token where each blank of a text has a context of its own (a causal model); else it is None, and all of the
    text is read. A masked language model has no such rows: the row of the text at `position` predicts the token.
    """

    mask: str
    spaced: bool
    start_token_id: int
    position: int
    block_position: int
    position_step: int
    block_position_step: int
    context: list[int] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as the model reads it (part A), special tokens among its ids; `begun` are known tokens of its one blank.

    `num_tokens` is what it counts in `prompt_tokens`. `fitted`: it was cut to fit.
    """

    token_ids: list[int]
    positions: list[int]
    block_positions: list[int]
    blanks: list[LaidBlank]
    num_tokens: int
    begun: list[int] = field(default_factory=list, metadata=INTERNAL)
    fitted: bool = field(default=False, metadata=INTERNAL)
