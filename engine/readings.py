"""Readings: a text and its tokens as the model reads them, for clients that compute with its tokens."""

from dataclasses import dataclass, field

from engine.answers import INTERNAL, OPTIONAL


@dataclass(frozen=True, slots=True)
class Piece:
    """A token. `data` are the bytes that it adds to a text, or those of a special token's name.

    `entry` is its spelling in the vocabulary's file.
    """

    token_id: int
    data: list[int]
    entry: str


@dataclass(frozen=True, slots=True)
class LaidBlank:
    """The rows of a blank: one for its start token, at `position` and `block_position`, then one per token of the span.

    `position_step` and `block_position_step` lead from a row to the next. A row predicts the token of the next row.
    `spaced`: the mask swallows a space, with which the span's text begins. `context` are the tokens before the start
    token if each blank has its own (a causal model), else None: all of the text. A masked language model has no such
    rows: the row of the text at `position` predicts the token.
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
    """A text as the model reads it (part A), special tokens included. `begun` are known tokens of its one blank.

    `num_tokens` is its part of `prompt_tokens`. `fitted`: it was cut to fit.
    """

    token_ids: list[int]
    positions: list[int]
    block_positions: list[int]
    blanks: list[LaidBlank]
    num_tokens: int
    begun: list[int] = field(default_factory=list, metadata=INTERNAL)
    fitted: bool = field(default=False, metadata=INTERNAL)
