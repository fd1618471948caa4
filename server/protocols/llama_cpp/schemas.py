"""The bodies of llama.cpp's `/infill` and `/completion`, and their conversion to engine requests."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Strict, Tag, model_validator

from engine.events import ModelCard
from engine.requests import Fill, Mask, RequestError, Sampling, Segments, Tokens
from server.exchange.bodies import INT32, Lenient, Number, Positive, String, at_most, schema_of
from server.exchange.prompt import most_tokens, part_a
from server.exchange.refusals import check_refused, refusing
from server.exchange.sampling import SamplingFields, over_last
from server.settings import Limits

# llama.cpp's -1 is "no limit", "no such thing" or "whatever", as the field may be.
Unset = Annotated[int, Field(ge=-1, le=2**32 - 1)]
RANDOM_SEED = 2**32 - 1
TOKEN_ID = re.compile(r"[0-9]{1,9}")
PENALTIES = {"repetition_penalty", "presence_penalty", "frequency_penalty"}
SAMPLERS = {"temp": "temperature"}  # other names
UNUSABLE = {"penalties", "top_k", "top_p", "min_p", "temperature"}


Amount = Annotated[float, Field(ge=-1e9, le=1e9)]
Never = Literal[False]
Weight = Annotated[
    Annotated[Never, Tag("<never>")] | Annotated[Amount, Tag("<amount>")],
    Discriminator(lambda value: "<never>" if isinstance(value, bool) else "<amount>"),
]
Key = Annotated[
    Annotated[String, Field(max_length=4096), Tag("<text>")] | Annotated[Number, Tag("<id>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<id>"),
]
# [[id or text, amount or false], …], or in OpenAI's way {"id or text": amount or false}.
Biases = Annotated[
    Annotated[list[Annotated[tuple[Key, Weight], Strict(False)]], Tag("<list>")]
    | Annotated[dict[String, Weight], Tag("<object>")],
    Discriminator(lambda value: "<object>" if isinstance(value, dict) else "<list>"),
]


Piece = Annotated[
    Annotated[String, Tag("<text>")] | Annotated[Number, Tag("<id>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<id>"),
]


class Chunk(Lenient):
    """A piece of another file, in `input_extra`."""

    text: String
    filename: String | None = None


# What promises something about the answer that is not to be had here.
Refused = refusing("RefusedPredictions", "grammar", "grammar_lazy", "grammar_triggers", "post_sampling_probs")
ALIASES = {"n_predict": ("max_completion_tokens", "max_tokens"), "n_cmpl": ("n",), "n_probs": ("logprobs",)}
OTHER_NAMES = {other for others in ALIASES.values() for other in others}


class Prediction(SamplingFields, Refused):  # type: ignore[misc, valid-type]
    """The fields of both bodies."""

    n_predict: Unset = -1
    n_cmpl: Positive = 1
    n_indent: Number = 0
    t_max_prompt_ms: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0
    t_max_predict_ms: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0
    temperature: Annotated[float, Field(ge=-1, le=100)] = 0.8
    top_k: Annotated[int, Field(ge=-1, le=INT32)] = 40
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.95
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.05
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, alias="repeat_penalty")] = 1.0
    repeat_last_n: Annotated[int, Field(ge=-1, le=INT32)] = 64
    json_schema: dict[str, Any] | None = None
    logit_bias: Annotated[Biases, Field(default_factory=list)]  # type: ignore[assignment]
    samplers: Annotated[list[String], Field(max_length=64)] | None = None
    seed: Unset = -1
    stream: bool = False
    n_probs: Number = 0
    return_tokens: bool = False
    response_fields: Annotated[list[String], Field(default_factory=list, max_length=256)]
    cache_prompt: bool = True
    id_slot: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    model: String | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_one_name(cls, value: Any) -> Any:
        """The field under its first name, where it has others."""
        if not isinstance(value, dict):
            return value
        given = {name: value for name, value in value.items() if value is not None}
        for name, others in ALIASES.items():
            found = next((given[other] for other in (name, *others) if other in given), None)
            given |= {} if found is None else {name: found}
        # As in llama.cpp an empty stop string is none.
        match given.get("stop"):
            case "":
                del given["stop"]
            case list(stops):
                given["stop"] = [stop for stop in stops if stop != ""]
        return given

    def num_tokens(self, limits: Limits, card: ModelCard) -> int:
        """The most tokens to write: the requested number, within the limits of model and server."""
        return most_tokens(None if self.n_predict < 0 else self.n_predict, limits, card)

    def fill(self, segments: Segments, limits: Limits, card: ModelCard, biases: Mapping[int, float]) -> Fill:
        """The request for the engine, with `self.biases`. Raises RequestError for values over a limit."""
        check_refused(self, Refused)
        at_most("n_cmpl", self.n_cmpl, limits.n)
        at_most("n_probs", self.n_probs, limits.logprobs)
        return Fill(
            inputs=(segments,),
            max_tokens=(max(self.num_tokens(limits, card), 1),),
            sampling=replace(self.sampling(limits), logit_bias=dict(biases)),
            n=self.n_cmpl,
            regex=() if self.json_schema is None else (schema_of("json_schema", self.json_schema, limits),),
            logprobs=self.n_probs or None,
            stream=True,
            timeout_s=limits.timeout_s,
        )

    @property
    def biased_texts(self) -> list[str]:
        """The texts in `logit_bias`. The bias applies to each of their tokens."""
        return [key for key, _ in self._pairs if isinstance(key, str)]

    def biases(self, limits: Limits, ids: Mapping[str, list[int]] | None = None) -> dict[int, float]:
        """The biases by token id. `ids` has the token ids of `biased_texts`; without it these have no bias yet.

        Raises RequestError for too many.
        """
        if ids is None:
            return {}
        found: dict[int, float] = {}
        for key, bias in self._pairs:
            for token_id in ids[key] if isinstance(key, str) else (key,):
                found[token_id] = found.get(token_id, 0.0) + bias
        at_most("logit_bias", len(found), limits.logit_bias, "tokens")
        return found

    @property
    def _pairs(self) -> list[tuple[int | str, float]]:
        """Token ids or texts with their biases. In an object a key that is a number is an id, and false is never."""
        given: Any = self.logit_bias
        pairs = given.items() if isinstance(given, dict) else given
        return [
            (
                int(key) if isinstance(key, int) or (TOKEN_ID.fullmatch(key) and isinstance(given, dict)) else key,
                -math.inf if bias is False else float(bias),
            )
            for key, bias in pairs
        ]

    def sampling(self, limits: Limits) -> Sampling:
        """The sampling parameters without biases. As in llama.cpp, a sampler outside the list `samplers` has no
        effect."""
        unused = UNUSABLE - {SAMPLERS.get(name, name) for name in self.samplers} if self.samplers is not None else set()
        drawn = super().sampling(limits)
        rules = {k: v for k, v in drawn.rules.items() if k not in PENALTIES or "penalties" not in unused}
        drawn = replace(
            drawn,
            # llama.cpp takes the most probable token below a temperature of 0 too.
            temperature=1.0 if "temperature" in unused else max(self.temperature, 0.0),
            top_k=0 if "top_k" in unused else drawn.top_k,
            top_p=1.0 if "top_p" in unused else drawn.top_p,
            min_p=0.0 if "min_p" in unused else drawn.min_p,
            rules=rules,
            seed=None if self.seed in (-1, RANDOM_SEED) else self.seed,
        )
        return over_last(drawn, self.repeat_last_n)

    def settings(self, limits: Limits, card: ModelCard) -> dict[str, Any]:
        """`generation_settings` of the answer."""
        s = self.sampling(limits)
        rules = s.rules
        return {
            "n_ctx": card.max_context,
            "n_predict": self.num_tokens(limits, card),
            "n_indent": self.n_indent,
            "t_max_predict_ms": self.t_max_predict_ms,
            "temperature": s.temperature,
            "top_k": s.top_k,
            "top_p": s.top_p,
            "min_p": s.min_p,
            "repeat_last_n": card.max_context if self.repeat_last_n < 0 else self.repeat_last_n,
            "repeat_penalty": rules.get("repetition_penalty", 1.0),
            "presence_penalty": rules.get("presence_penalty", 0.0),
            "frequency_penalty": rules.get("frequency_penalty", 0.0),
            "stop": list(s.stop),
            "ignore_eos": s.ignore_eos,
            "seed": RANDOM_SEED if s.seed is None else s.seed,
        }


class EditorRequest(Prediction):
    """The body of `POST /infill`."""

    input_prefix: String
    input_suffix: String
    input_extra: Annotated[list[Chunk], Field(default_factory=list, max_length=1024)]
    prompt: String = ""

    @property
    def before(self) -> str:
        """The text before the cursor, with pieces of other files before it."""
        return "".join(f"{chunk.text}\n" for chunk in self.input_extra) + self.input_prefix + self.prompt

    def segments(self, mask: str) -> Segments:
        """Part A."""
        return (self.before, Mask(mask), self.input_suffix)


class PromptRequest(Prediction):
    """The body of `POST /completion`. Its prompt is a text, or a list of texts and token ids that follow each other."""

    prompt: Annotated[
        Annotated[String, Tag("<text>")] | Annotated[list[Piece], Field(min_length=1), Tag("<list>")],
        Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
    ]

    def segments(self, limits: Limits, card: ModelCard) -> Segments:
        """Part A. A text without token ids may have a mask. Raises RequestError for several texts."""
        if isinstance(self.prompt, str):
            return part_a(self.prompt, None, card)
        if all(isinstance(piece, str) for piece in self.prompt) and len(self.prompt) > 1:
            raise RequestError("prompt has several texts; give one, or send them to /v1/completions", "prompt")
        at_most("prompt", len(self.prompt), limits.token_ids, "items")
        segments: list[str | Tokens] = []
        for are_ids, same in groupby(self.prompt, key=lambda piece: isinstance(piece, int)):
            if are_ids:
                segments.append(Tokens(tuple(piece for piece in same if isinstance(piece, int))))
            else:
                segments += [piece for piece in same if isinstance(piece, str)]
        return tuple(segments)
