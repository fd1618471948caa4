"""The body of OpenAI's completions, and its conversion to an engine request."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from engine.events import ModelCard
from engine.requests import Fill, RequestError, Sampling, Segments, Tokens, member
from server.exchange.bodies import INT32, Lenient, Number, Positive, String, at_most
from server.exchange.prompt import part_a
from server.exchange.refusals import check_refused, refusing
from server.exchange.sampling import SamplingFields
from server.protocols.openai.constraints import ConstraintFields
from server.settings import Limits


def _kind(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else ""
    return "<batch>" if isinstance(first, list) else "<ids>" if isinstance(first, int) else "<texts>"


Ids = Annotated[list[Number], Field(min_length=1)]
Prompts = Annotated[
    Annotated[String, Tag("<text>")]
    | Annotated[list[String], Field(min_length=1), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Field(min_length=1), Tag("<batch>")],
    Discriminator(_kind),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a completion request that the engine does not see."""

    prompts: tuple[str | Tokens, ...]
    n: int
    best_of: int
    scores: bool


class StreamOptions(Lenient):
    """`stream_options`."""

    include_usage: bool = False


# vLLM's and SGLang's that promise something about the answer which is not to be had here, and other routes' names of
# what this one has by its own.
Refused = refusing(
    "RefusedFields", "allowed_token_ids", "bad_words", "choices", "ebnf", "grammar", "guided_grammar",
    "guided_whitespace_pattern", "logits_processors", "max_completion_tokens", "prompt_embeds",
    "repetition_detection", "return_token_ids", "structural_tag",
)  # fmt: skip


class CompletionRequest(SamplingFields, ConstraintFields, Refused):  # type: ignore[misc, valid-type]
    """The body of `POST /v1/completions`."""

    model: String | None = None
    prompt: Prompts
    suffix: String | None = None
    max_tokens: Number = 16
    min_tokens: Number = 0
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=INT32)] = 0
    n: Positive = 1
    best_of: Positive | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: Number | None = None
    prompt_logprobs: Number | None = None
    logprob_token_ids: Ids | None = None
    echo: bool = False
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: String | None = None
    include_stop: Annotated[bool, Field(alias="include_stop_str_in_output")] = False
    use_beam_search: bool = False
    length_penalty: Annotated[float, Field(ge=-100, le=100)] = 1.0
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    truncation_side: Literal["left", "right"] = "left"
    as_ids: Annotated[bool, Field(alias="return_tokens_as_token_ids")] = False

    def asked(self) -> Asked:
        """The prompts and the form of the answers. Raises RequestError for fields that cannot go together."""
        given: Any = self.prompt
        batch = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        prompts = tuple(p if isinstance(p, str) else Tokens(tuple(p)) for p in batch)
        best_of = self.best_of or self.n
        if best_of < self.n:
            raise RequestError(f"best_of is {best_of}; the least is n, {self.n}", "best_of")
        if self.stream and best_of > self.n and not self.use_beam_search:
            raise RequestError("best_of above n cannot be streamed", "best_of")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream", "stream_options")
        if self.echo and self.suffix is not None:
            raise RequestError("echo and suffix cannot be combined", "echo")
        self._check_logprobs()
        drawn = self.n if self.use_beam_search else best_of
        return Asked(prompts, self.n, drawn, self.is_echo_scored or self.prompt_logprobs is not None)

    @property
    def is_echo_scored(self) -> bool:
        """Whether the prompt's tokens are in `logprobs`."""
        return self.echo and self.logprobs is not None

    def fill(self, limits: Limits, card: ModelCard) -> Fill:
        """The request for the engine. Raises RequestError for values over a limit, and for blanks that the model cannot
        fill."""
        check_refused(self, Refused)
        if self.truncate_prompt_tokens is not None:
            raise RequestError("truncate_prompt_tokens needs a server", "truncate_prompt_tokens", "unsupported")
        asked, constraint = self.asked(), self.constraint(limits)
        if asked.scores and constraint is not None:
            scoring = "echo with logprobs" if self.is_echo_scored else "prompt_logprobs"
            message = f"{scoring} scores the prompt; {constraint.field} does not go with it"
            raise RequestError(message, constraint.field)
        at_most("prompt", len(asked.prompts), limits.inputs, "prompts")
        at_most("n", self.n, limits.n)
        at_most("best_of", asked.best_of, limits.n)
        beams = (self.best_of or self.n) if self.use_beam_search and self.max_tokens else 1
        at_most("best_of" if self.best_of else "n", beams, limits.num_beams)
        at_most("min_tokens", self.min_tokens, self.max_tokens)
        at_most("logprobs", self.logprobs or 0, limits.logprobs)
        at_most("prompt_logprobs", self.prompt_logprobs or 0, limits.logprobs)
        at_most("logprob_token_ids", len(self.logprob_token_ids or ()), limits.logprob_token_ids, "ids")
        inputs: list[Segments] = []
        for number, prompt in enumerate(asked.prompts):
            with member("input", number, len(asked.prompts)):
                inputs.append(self._segments(prompt, asked, card))
        return Fill(
            inputs=tuple(inputs),
            max_tokens=(self.max_tokens,),
            min_tokens=(self.min_tokens,),
            sampling=self.sampling(limits),
            n=asked.best_of,
            num_beams=beams,
            length_penalty=self.length_penalty,
            choices=() if constraint is None or not constraint.choices else (constraint.choices,),
            regex=() if constraint is None or constraint.regex is None else (constraint.regex,),
            logprobs=self.logprobs,
            logprob_token_ids=tuple(self.logprob_token_ids or ()),
            prompt_logprobs=self.prompt_logprobs,
            stream=self.stream,
            echo=asked.scores,
            priority="batch" if asked.scores and self.max_tokens <= 1 else "interactive",
            timeout_s=limits.timeout_s,
        )

    def engine_names(self, limits: Limits) -> dict[str, str]:
        """The engine's names of this request's fields."""
        constraint = self.constraint(limits)
        given = {} if constraint is None else dict.fromkeys(("regex", "json_schema", "choices"), constraint.field)
        scored = {} if self.is_echo_scored else {"echo": "prompt_logprobs"}
        return {"text": "prompt", "num_beams": "use_beam_search", **scored, **given}

    def sampling(self, limits: Limits) -> Sampling:
        """The engine's sampling parameters. As in vLLM, OpenAI's seeds may be negative, and beam search draws
        nothing."""
        drawn = super().sampling(limits)
        if self.use_beam_search:
            drawn = replace(drawn, temperature=0.0)
        return drawn if drawn.seed is None else replace(drawn, seed=drawn.seed % 2**63)

    def _check_logprobs(self) -> None:
        """Raises RequestError for log-probabilities that the rest of the request has no place for, as vLLM does."""
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs cannot be streamed", "prompt_logprobs")
        if self.prompt_logprobs is not None and self.suffix is not None:
            raise RequestError("prompt_logprobs and suffix cannot be combined", "prompt_logprobs")
        if self.logprob_token_ids is not None and self.logprobs is None:
            raise RequestError("logprob_token_ids need logprobs", "logprob_token_ids")
        if self.logprob_token_ids is not None and not self.max_tokens:
            raise RequestError("logprob_token_ids are for written tokens; max_tokens is 0", "logprob_token_ids")

    def _segments(self, prompt: str | Tokens, asked: Asked, card: ModelCard) -> Segments:
        """Part A. In a prompt that is scored a mask is for the engine to read."""
        if self.suffix is None and asked.scores:
            return (prompt,)
        return part_a(prompt, self.suffix, card)
