"""The bodies of fill-mask and of TGI's text generation on the wire, and what they become for the engine."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from engine.events import ModelCard
from engine.requests import Fill, Regex, RequestError, Sampling, Segments, Tokens, member
from server.exchange.bodies import (
    INT32,
    Lenient,
    Number,
    Positive,
    String,
    Text,
    at_most,
    count_blanks,
    many,
    schema_of,
    split,
)
from server.exchange.prompt import most_tokens, part_a
from server.exchange.refusals import check_refused, refusing
from server.exchange.sampling import SamplingFields
from server.settings import Limits

# Of a model that writes several tokens into a blank: the longest candidate, and the least beams, so that the best
# candidate is the same however many are asked for.
MOST_TOKENS = 16
LEAST_BEAMS = 5
MOST_CANDIDATES = 4096


class FillMaskParameters(Lenient):
    """`parameters` of fill-mask."""

    top_k: Positive = 5
    targets: Text | None = None


class FillMaskRequest(Lenient):
    """The body of a fill-mask."""

    inputs: Text
    parameters: Annotated[FillMaskParameters, Field(default_factory=FillMaskParameters)]

    def texts(self, card: ModelCard) -> tuple[Segments, ...]:
        """The texts with their masks set apart, which may be spelled as the model's own tokenizer does."""
        return tuple(split(text.replace(card.mask_token, "[MASK]")) for text in many(self.inputs))

    @property
    def targets(self) -> tuple[str, ...]:
        """The only candidates; empty for any."""
        return () if self.parameters.targets is None else many(self.parameters.targets)

    def fill(self, limits: Limits, card: ModelCard, choices: tuple[str | Tokens, ...]) -> Fill:
        """The request for the engine, with what the targets are for it. Raises RequestError for what is over a limit
        and a text without a mask."""
        texts, top_k = self.texts(card), self.parameters.top_k
        at_most("inputs", len(texts), limits.inputs, "texts")
        at_most("targets", len(self.targets), limits.choices, "strings")
        for number, text in enumerate(texts):
            with member("input", number, len(texts)):
                if not count_blanks(text):
                    known = ", ".join(dict.fromkeys((*card.masks, card.mask_token)))
                    message = f"no mask token ({known}) found in inputs; for text generation give max_new_tokens"
                    raise RequestError(message, "inputs")
                at_most("inputs", count_blanks(text), limits.blanks, "masks")
        at_most("top_k", sum(map(count_blanks, texts)) * top_k, MOST_CANDIDATES, "candidates for all masks")
        length = 1 if card.masked else most_tokens(None, limits, card)
        fill = Fill(texts, (length,), strategy="parallel", timeout_s=limits.timeout_s)
        if choices:
            return replace(fill, choices=(choices,))
        if card.masked:
            return replace(fill, logprobs=top_k)
        at_most("top_k", top_k, limits.num_beams)
        beams = min(max(top_k, LEAST_BEAMS), limits.num_beams)
        length = min(length, MOST_TOKENS)
        return replace(fill, max_tokens=(length,), min_tokens=(1,), n=top_k, num_beams=beams, length_penalty=0.0)


class Grammar(Lenient):
    """`grammar` of TGI: a pattern, a JSON schema, or one with a name in `schema`."""

    type: Literal["regex", "json", "json_object", "json_schema"]
    value: dict[str, Any] | String


Refused = refusing("RefusedParameters", "typical_p", "watermark")


class TextGenerationParameters(SamplingFields, Refused):  # type: ignore[misc, valid-type]
    """`parameters` of TGI's text generation."""

    include_stop: bool = True  # TGI leaves a stop string in the text
    best_of: Positive = 1
    do_sample: bool = False
    max_new_tokens: Positive | None = None
    return_full_text: bool = False
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None  # type: ignore[assignment]
    top_k: Annotated[int, Field(ge=1, le=INT32)] = 0
    truncate: Positive | None = None
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: Number = 0
    grammar: Grammar | None = None
    adapter_id: String | None = None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn: by name, or because a field says how."""
        said = {"temperature", "top_k", "top_p", "min_p"} & self.model_fields_set
        return self.do_sample or bool(said)

    def sampling(self, limits: Limits) -> Sampling:
        """How the engine draws. Without a word of it: the most probable token."""
        drawn = super().sampling(limits)
        return replace(drawn, temperature=(self.temperature or 1.0) if self.draws else 0.0)


class TextGenerationRequest(Lenient):
    """The body of TGI's text generation."""

    inputs: Annotated[String, Field(min_length=1)]
    # As in TGI, who says nothing gets a draw, and who says anything else the most probable tokens.
    parameters: Annotated[
        TextGenerationParameters, Field(default_factory=lambda: TextGenerationParameters(do_sample=True))
    ]
    stream: bool = False

    def fill(self, limits: Limits, card: ModelCard, ids: list[int] | None) -> Fill:
        """The request for the engine, of the text or the `ids` that are left of it. Raises RequestError for what is
        over a limit or does not go together."""
        p = self.parameters
        check_refused(p, Refused)
        at_most("best_of", p.best_of, limits.n)
        at_most("top_n_tokens", p.top_n_tokens, limits.logprobs)
        if p.best_of > 1 and not p.draws:
            raise RequestError("best_of above 1 needs do_sample or a temperature", "best_of")
        segments = part_a(self.inputs, None, card, "inputs")
        if p.decoder_input_details and count_blanks(segments):
            message = "decoder_input_details are of a prompt without a mask; /v1/score scores what stands in one"
            raise RequestError(message, "decoder_input_details")
        return Fill(
            inputs=(segments if ids is None else (Tokens(tuple(ids)),),),
            max_tokens=(most_tokens(None, limits, card) if p.max_new_tokens is None else p.max_new_tokens,),
            sampling=p.sampling(limits),
            n=p.best_of,
            regex=self._regex(limits),
            logprobs=p.top_n_tokens or None,
            timeout_s=limits.timeout_s,
        )

    def _regex(self, limits: Limits) -> tuple[Regex, ...]:
        grammar = self.parameters.grammar
        if grammar is None:
            return ()
        value = grammar.value
        if grammar.type == "regex":
            if not isinstance(value, str):
                raise RequestError("grammar.value of a regex must be a string", "grammar")
            at_most("grammar", len(value), limits.regex, "characters")
            return (value,)
        if grammar.type == "json_schema" and isinstance(value, dict):
            if not isinstance(value.get("schema"), dict):
                raise RequestError("grammar.value of a json_schema needs its schema", "grammar")
            value = value["schema"]
        return (schema_of("grammar", value, limits),)
