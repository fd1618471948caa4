"""The training data of an adapter: lines of JSON, and the sequences made from them.

A line is one of three forms. A text with blanks and their texts, {"text", "spans"}: GLM's infilling objective (arXiv
2103.10360, equation 1). A {"context", "target"}: the conditional objective (arXiv 2106.09685, equation 1). A {"text"}
without blanks: new spans are cut out in every pass. Sequences are those that `Score` with `include_end` scores, so that
the loss of an evaluation equals a server's scores of the same lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import Checkpoint
from model.layout import Layout, LayoutError, end_of, parse, span_ids
from quant.usage import UsageError
from training.blocklm import Mixture, Rng, Sample, SpecialIds, corrupt, token_spans

FORMS = ({"text", "spans"}, {"context", "target"}, {"text"})
CUTS = Mixture(mask_ratio=0.15)


class LessonError(UsageError):
    """A line that cannot be used: its number, the field and the fault, in one line."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A line: a layout with the ids of each blank, or the ids of a text to cut spans from."""

    laid: Layout | None
    ids: tuple[tuple[int, ...], ...]

    @property
    def num_targets(self) -> int:
        """Number of predicted tokens, end tokens included; for a text to cut, an estimate."""
        return sum(len(own) + 1 for own in self.ids)


class Lessons:
    """The lines of a file, for one model. Raises LessonError for a line that cannot be used, and OSError."""

    def __init__(self, path: Path, checkpoint: Checkpoint) -> None:
        """Raises LessonError for the first line that is wrong, OSError for the file."""
        self._tokenizer = checkpoint.tokenizer
        self._rules = checkpoint.family.layout
        self._longest = checkpoint.model.architecture.max_sequence_length
        self._causal = checkpoint.model.architecture.causal
        if checkpoint.model.architecture.masked:
            raise LessonError("a masked language model has no spans to train: it fills one token a mask")
        self.items = [self._read(number, line) for number, line in _lines(path)]
        if not self.items:
            raise LessonError(f"{path.name} has no lines")

    def __len__(self) -> int:
        return len(self.items)

    def samples(self, number: int, rng: Rng | None = None) -> list[Sample]:
        """The sequences of a line.

        With `rng` the order of spans and the cuts are random. Without it spans go from left to right, and cuts are the
        same each time.
        """
        lesson = self.items[number]
        if lesson.laid is None:
            (ids,) = lesson.ids
            return [self._cut(np.array(ids), rng or np.random.default_rng(number))]
        count = len(lesson.ids)
        order = [int(i) for i in rng.permutation(count)] if rng is not None else list(range(count))
        # A causal model reads a prompt of its own for each blank.
        groups = [[n] for n in order] if self._causal else [order]
        return [self._sequence(lesson.laid, lesson.ids, group) for group in groups]

    def _sequence(self, laid: Layout, ids: tuple[tuple[int, ...], ...], order: list[int]) -> Sample:
        context = laid.blanks[order[0]].context
        rows = [(token, place, 0) for place, token in enumerate(context)]
        targets = [-1] * len(context)
        for number in order:
            blank, own = laid.blanks[number], ids[number]
            rows += [(token, *blank.place(row)) for row, token in enumerate([blank.start, *own])]
            targets += [*own, end_of(blank, self._tokenizer)]
        columns = [np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)]
        return Sample(columns[0], columns[1], columns[2], np.array(targets), 0 if self._causal else len(context))

    def _cut(self, ids: Any, rng: Rng) -> Sample:
        spans = token_spans(len(ids), CUTS, rng)
        special = self._special()
        return corrupt(ids, spans, special.mask, special, rng.permutation(len(spans)))

    def _special(self) -> SpecialIds:
        roles = self._tokenizer.special
        return SpecialIds(*(roles.get(role, -1) for role in ("cls", "eos", "sop", "eop", "mask", "smask", "gmask")))

    def _read(self, number: int, line: str) -> Lesson:
        try:
            value = json.loads(line)
        except ValueError:
            raise LessonError(f"line {number}: not JSON") from None
        if not isinstance(value, dict) or value.keys() not in FORMS:
            raise LessonError(f"line {number}: must be an object with text and spans, context and target, or text")
        for name in value.keys() - {"spans"}:
            if not isinstance(value[name], str) or not value[name]:
                raise LessonError(f"line {number}: {name} must be a string that is not empty")
        if "target" in value:
            masks = sum(not isinstance(part, str) for part in parse(value["context"]))
            if masks > 1:
                raise LessonError(f"line {number}: context has {masks} masks, at most one is allowed")
            open_mask = "[gMASK]" if "[gMASK]" in self._rules.masks(self._tokenizer) else "[MASK]"
            return self._laid(number, value["context"] + ("" if masks else open_mask), [value["target"]], "target")
        if "spans" not in value:
            return self._whole(number, value["text"])
        spans = value["spans"]
        if not isinstance(spans, list) or not all(isinstance(span, str) and span for span in spans):
            raise LessonError(f"line {number}: spans must be a list of strings that are not empty")
        return self._laid(number, value["text"], spans, "spans")

    def _laid(self, number: int, text: str, spans: list[str], field: str) -> Lesson:
        parts = [part if isinstance(part, str) else (part[0],) for part in parse(text) if part != ""]
        try:
            laid = self._rules.lay_out(parts, self._tokenizer, scored=True)
        except LayoutError as error:
            raise LessonError(f"line {number}: {error}") from None
        if len(laid.blanks) != len(spans):
            raise LessonError(f"line {number}: text has {len(laid.blanks)} blanks, spans has {len(spans)} strings")
        ids = tuple(tuple(span_ids(s, b, self._tokenizer)) for s, b in zip(spans, laid.blanks, strict=True))
        if not all(ids):
            raise LessonError(f"line {number}: {field} has a string without tokens")
        lesson = Lesson(laid, ids)
        last = max(max(b.place(len(own))) for own, b in zip(ids, laid.blanks, strict=True))
        longest = max(len(laid), last)
        if longest > self._longest:
            raise LessonError(f"line {number}: {longest} tokens; the limit is {self._longest}")
        return lesson

    def _whole(self, number: int, text: str) -> Lesson:
        if any(not isinstance(part, str) for part in parse(text)):
            raise LessonError(f"line {number}: text has blanks; spans must give the texts in them")
        special = self._special()
        if min(special.cls, special.eos, special.sop, special.eop, special.mask) < 0 or self._causal:
            raise LessonError(f"line {number}: only GLM's first family can train on a text without spans")
        ids = tuple(self._tokenizer.encode(text)[: self._longest // 2])
        if len(ids) < 4:
            raise LessonError(f"line {number}: text has fewer than 4 tokens")
        return Lesson(None, (ids,))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise LessonError(f"{path.name}: not UTF-8 at byte {error.start}") from None
    except OSError as error:  # one in the middle of a file names none
        error.filename = str(path)
        raise
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line
