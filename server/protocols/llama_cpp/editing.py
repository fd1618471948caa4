"""Growing completions for an editor, and llama.cpp's two early ends: by indentation and by time.

Both work on lines. A line that is indented less than the cursor's line ends the completion before its text. When the
time is over, the completion ends with its current line (llama.cpp, tools/server/server-context.cpp).
"""

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from engine.answers import Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Event
from server.exchange.exchange import Events
from server.exchange.token_logprobs import of_blank, of_delta

WHITE = " \t"
STOPS = {"length": "limit", "deadline": "limit"}


@dataclass(slots=True)
class Completion:
    """One completion: its text so far, and the reason of its end."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    probabilities: list[dict[str, Any]] = field(default_factory=list)
    stop_type: str = "none"
    stopping_word: str = ""
    checked: int = 0  # the text up to here has no shallow line
    has_end: bool = False  # the model has ended it by a token

    @property
    def num_predicted(self) -> int:
        """Number of computed tokens, the end token included."""
        return len(self.token_ids) + self.has_end

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.stop_type != "none"

    def add(self, text: str, token_ids: list[int], indent: int, is_late: bool) -> None:
        """Adds new text. It ends before a line of less indentation, and at a line's end after the time limit."""
        self.text += text
        self.token_ids += token_ids
        if indent:
            self._cut(indent)
        if not self.ended and is_late and "\n" in text:
            self.stop_type = "limit"

    def _cut(self, indent: int) -> None:
        while (line := self.text.find("\n", self.checked)) >= 0:
            start = line + 1
            first = next((n for n in range(start, len(self.text)) if self.text[n] not in WHITE), None)
            if first is None:
                return  # the line has no text yet
            if first - start < indent:
                self.text = self.text[:first]
                self.stop_type = "limit"
                return
            self.checked = start


@dataclass(slots=True)
class Edit:
    """All completions of a request, and its times, in seconds of the monotonic clock."""

    completions: list[Completion]
    began: float
    first: float | None = None
    ended: float = 0.0
    usage: Usage = field(default_factory=Usage)
    fitted: bool = False

    def timings(self, completion: Completion) -> dict[str, float]:
        """llama.cpp's `timings`, in milliseconds."""
        first = self.first if self.first is not None else self.ended
        num_cached = self.usage.cached_tokens
        num_prompt = self.usage.prompt_tokens - num_cached
        times: dict[str, float] = {"cache_n": num_cached}
        for name, count, seconds in (
            ("prompt", num_prompt, first - self.began),
            ("predicted", completion.num_predicted, self.ended - first),
        ):
            times |= {
                f"{name}_n": count,
                f"{name}_ms": 1e3 * seconds,
                f"{name}_per_token_ms": 1e3 * seconds / max(count, 1),
                f"{name}_per_second": count / seconds if seconds > 0 else 0.0,
            }
        return times


async def edited(events: Events, edit: Edit, indent: int, limit_ms: int) -> Events:
    """The events of a streamed fill, each after `edit` has taken it, until all completions have ended.

    After an end by indentation or time it adds a `Done`.
    """
    async with aclosing(events):
        async for event in events:
            _take(edit, event, indent, limit_ms)
            yield event
            if all(c.ended for c in edit.completions) and not isinstance(event, Done):
                yield Done(event.id, edit.usage)
                return


def _take(edit: Edit, event: Event, indent: int, limit_ms: int) -> None:
    edit.ended = time.monotonic()
    if isinstance(event, Begun):
        edit.usage, edit.fitted = event.usage, event.fitted
        return
    if not isinstance(event, BlankDelta | BlankDone):
        return
    if edit.first is None:
        edit.first = edit.ended
    completion = edit.completions[event.index]
    if completion.ended:
        return
    if isinstance(event, BlankDelta):
        is_late = 0 < limit_ms < 1e3 * (edit.ended - edit.first)
        completion.add(event.text, event.token_ids, indent, is_late)
        completion.probabilities += _inside(completion.text, event.text_offsets, of_delta(event))
    else:
        blank = event.blank
        completion.token_ids, completion.has_end = list(blank.token_ids), blank.end_token is not None
        found = of_blank(blank)
        word = blank.stop_string
        completion.probabilities = found if word is None else _inside(blank.text, blank.text_offsets, found)
        completion.stopping_word = word or ""
        completion.stop_type = STOPS.get(blank.finish_reason or "", "eos") if word is None else "word"


def _inside(text: str, offsets: Sequence[int], probabilities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the tokens that begin in a text that was cut, as llama.cpp leaves out those of a stop string."""
    return probabilities[: sum(at < len(text) for at in offsets)]


def wire(completion: Completion, edit: Edit, fields: dict[str, Any], with_tokens: bool) -> dict[str, Any]:
    """The object of one completion. `fields` are the same for all completions."""
    return {
        "content": completion.text,
        "tokens": completion.token_ids if with_tokens else [],
        "stop": True,
        "tokens_predicted": completion.num_predicted,
        "tokens_evaluated": edit.usage.prompt_tokens,
        "tokens_cached": edit.usage.cached_tokens,
        "has_new_line": "\n" in completion.text,
        "truncated": edit.fitted,
        "stop_type": completion.stop_type,
        "stopping_word": completion.stopping_word,
        "timings": edit.timings(completion),
        **({"completion_probabilities": completion.probabilities} if completion.probabilities else {}),
        **fields,
    }
