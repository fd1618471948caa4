"""Blank rules: the changes to a fill with a text that is too long or a template for another model.

Editors know neither this model's length nor its layout. So their protocols trim texts and read templates, unless the
operator chooses otherwise. Native routes take a text unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from engine.events import ModelCard
from engine.requests import Fill, Mask, Segments, Tokens
from server.exchange.bodies import at_most, count_blanks
from server.exchange.prompt import most_tokens, one_blank
from server.exchange.service import Service
from server.fim_templates import TEMPLATES, around, named_like
from server.settings import Limits, Settings

PLAIN: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class BlankRules:
    """`trims`: cut the text that is farthest from the blank if it is too long. `templates`: the templates to read.
    `names`: the client's names of `text` and `max_tokens`, for messages."""

    trims: bool
    templates: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    def apply(self, fill: Fill, limits: Limits, card: ModelCard) -> Fill:
        """The fill for the engine. Raises RequestError for `max_tokens` above the limit.

        If each input has one blank of its own, or the route says `fit`, it allows texts to be cut, and lowers
        `max_tokens` to what fits. It never changes texts that are scored.
        """
        if not fill.echo:
            fill = replace(fill, inputs=tuple(self._read(text, card) for text in fill.inputs))
        if self.trims and not fill.echo and (fill.fit or all(count_blanks(text) == 1 for text in fill.inputs)):
            lengths = tuple(most_tokens(number, limits, card) for number in fill.max_tokens)
            return replace(fill, fit=True, max_tokens=lengths)
        at_most(self.names.get("max_tokens", "max_tokens"), max(fill.max_tokens), limits.max_tokens)
        return replace(fill, fit=False)

    def _read(self, text: Segments, card: ModelCard) -> Segments:
        prompt = _prompt(text)
        if prompt is None:
            return text
        if card.infill_mask is not None and (sides := around(prompt, self.templates)) is not None:
            return (sides.before, Mask(card.infill_mask), sides.after)
        return one_blank(prompt, self.names.get("text", "prompt")) if len(text) == 1 else text


def blank_rules(settings: Settings, *, editor: bool, names: Mapping[str, str] = PLAIN) -> BlankRules:
    """The rules of a route: the operator's choice, or the defaults of editors' protocols and of native routes."""
    trims = editor if settings.long_texts is None else settings.long_texts == "trim"
    templates = tuple(TEMPLATES) if editor else ()
    return BlankRules(trims, templates if settings.fim_templates is None else settings.template_names, names)


def ruled(service: Service, request: Request, fill: Fill, *, editor: bool, names: Mapping[str, str] = PLAIN) -> Fill:
    """A route's fill after its rules. `names` are as in `submit`. Raises RequestError as `BlankRules.apply`.

    A text with the marks of a template that is not read gives a warning: in the log, in the header
    `x-glm-infill-warning`, and in the answers of protocols that show it (`warned`).
    """
    rules = blank_rules(service.settings, editor=editor, names=names)
    given = [_words(text) for text in fill.inputs]
    fill = rules.apply(fill, service.settings.limits, service.engine.card)
    kept = (words for words, text in zip(given, fill.inputs, strict=True) if words == _words(text))
    unread = next((name for words in kept if (name := named_like(words))), None)
    request.state.warnings = []
    if unread is not None:
        message = f"the text has the marks of the template {unread}; this route reads them as text"
        request.state.warnings.append(message)
        service.log.warning("template not read", request_id=request.state.request_id, template=unread)
    return fill


def warned(request: Request) -> dict[str, list[str]]:
    """The answer's field with the warnings of `ruled`; empty if there are none."""
    return {"warnings": request.state.warnings} if request.state.warnings else {}


def _prompt(text: Segments) -> str | None:
    """A text without a blank of its own, or with one that an empty suffix follows, as a client sends that has none."""
    is_alone = len(text) == 1 or (len(text) == 3 and text[2] == "")
    return text[0] if is_alone and isinstance(text[0], str) else None


def _words(text: Segments) -> str:
    """A text with the names of its masks."""
    return "".join(s.name if isinstance(s, Mask) else s for s in text if not isinstance(s, Tokens))
