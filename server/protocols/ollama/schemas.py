"""The bodies of Ollama's API, and the conversion of a generation to an engine request."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from engine.events import ModelCard
from engine.requests import Fill, RequestError, Sampling
from server.exchange.bodies import INT32, Lenient, Number, String, at_most, schema_of
from server.exchange.prompt import most_tokens, part_a
from server.exchange.sampling import SamplingFields, over_last
from server.settings import Limits

Integer = Annotated[int, Field(ge=-INT32, le=INT32)]


class GenerateOptions(SamplingFields, Lenient):
    """`options`, with Ollama's defaults (api/types.go). A client without the field `suffix` may put it here."""

    suffix: String = ""
    num_predict: Integer = -1
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.8
    top_k: Integer = 40
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, alias="repeat_penalty")] = 1.1
    repeat_last_n: Annotated[int, Field(ge=-1, le=INT32)] = 64
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None

    def sampling(self, limits: Limits) -> Sampling:
        """The engine's sampling parameters. A seed below 0 is none."""
        drawn = over_last(super().sampling(limits), self.repeat_last_n)
        return replace(drawn, seed=None) if drawn.seed is not None and drawn.seed < 0 else drawn


class GenerateRequest(Lenient):
    """The body of `POST /api/generate`. It refuses images and thinking, whose absence nobody would notice."""

    model: String | None = None
    prompt: String = ""
    suffix: String = ""
    stream: bool = True
    options: GenerateOptions = Field(default_factory=lambda: GenerateOptions.model_validate({}))
    logprobs: bool = False
    top_logprobs: Number = 0
    format: Annotated[
        Annotated[Literal["json", ""], Tag("<json>")] | Annotated[dict[str, Any], Tag("<schema>")],
        Discriminator(lambda value: "<schema>" if isinstance(value, dict) else "<json>"),
    ] = ""
    images: list[JsonValue] | None = None
    think: JsonValue = None

    @property
    def behind(self) -> str | None:
        """The text behind the blank; None if there is none."""
        return self.suffix or self.options.suffix or None

    @property
    def names_suffix(self) -> bool:
        """Whether it has a suffix, or an empty one, as an editor sends at the end of a file."""
        return "suffix" in self.model_fields_set | self.options.model_fields_set

    def fill(self, limits: Limits, card: ModelCard) -> Fill:
        """The request for the engine. Raises RequestError for values over a limit, and for blanks that the model cannot
        fill."""
        for name in ("images", "think"):
            if getattr(self, name):
                raise RequestError(f"{name}: this model does not support it", name, "unsupported")
        at_most("top_logprobs", self.top_logprobs, limits.logprobs)
        asked = self.options.num_predict
        return Fill(
            inputs=(part_a(self.prompt, self.behind, card),),
            max_tokens=(most_tokens(asked if asked > 0 else None, limits, card),),
            sampling=self.options.sampling(limits),
            regex=(schema_of("format", {"type": "object"} if self.format == "json" else self.format, limits),)
            if self.format
            else (),
            logprobs=self.top_logprobs if self.logprobs or self.top_logprobs else None,
            stream=self.stream,
            fit=self.names_suffix,
            timeout_s=limits.timeout_s,
        )


class ShowRequest(Lenient):
    """The body of `POST /api/show`. Older clients send `name`."""

    model: String | None = None
    name: String | None = None

    @property
    def named(self) -> str | None:
        """The requested model."""
        return self.model if self.model is not None else self.name
