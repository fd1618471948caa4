"""The body of llama.cpp's `/infill`, as its editors send it, and what it becomes for the engine."""

from typing import Annotated, Any

from pydantic import Field

from engine.events import ModelCard
from engine.requests import Fill, Mask, Sampling
from server.bodies import Lenient, Number, Positive, Stop, String, at_most, many
from server.settings import Limits

# llama.cpp's -1 is "no limit", "no such thing" or "whatever", as the field may be.
Unset = Annotated[int, Field(ge=-1, le=2**32 - 1)]
RANDOM_SEED = 2**32 - 1


class Chunk(Lenient):
    """A piece of another file, in `input_extra`."""

    text: String
    filename: String | None = None


class EditorRequest(Lenient):
    """The body of `POST /infill`."""

    input_prefix: String
    input_suffix: String
    input_extra: Annotated[list[Chunk], Field(default_factory=list, max_length=1024)]
    prompt: String = ""
    n_predict: Unset = -1
    n_cmpl: Positive = 1
    n_indent: Number = 0
    t_max_prompt_ms: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0
    t_max_predict_ms: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0
    temperature: Annotated[float, Field(ge=-1, le=100)] = 0.8
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 40
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.95
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    samplers: Annotated[list[String], Field(max_length=64)] | None = None
    seed: Unset = -1
    stop: Stop | None = None
    stream: bool = False
    n_probs: Number = 0
    return_tokens: bool = False
    response_fields: Annotated[list[String], Field(default_factory=list, max_length=256)]
    cache_prompt: bool = True
    id_slot: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    model: String | None = None

    @property
    def before(self) -> str:
        """The text before the cursor, pieces of other files first."""
        return "".join(f"{chunk.text}\n" for chunk in self.input_extra) + self.input_prefix + self.prompt

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a completion."""
        return () if self.stop is None else many(self.stop)

    def num_tokens(self, limits: Limits, card: ModelCard) -> int:
        """The most tokens to write: as many as are asked for and the model and the server allow."""
        most = min(limits.max_tokens, card.max_span)
        return most if self.n_predict < 0 else min(self.n_predict, most)

    def fill(self, limits: Limits, card: ModelCard, mask: str) -> Fill:
        """The request for the engine. Raises RequestError for what is over a limit."""
        at_most("n_cmpl", self.n_cmpl, limits.n)
        at_most("stop", len(self.stops), limits.stop, "items")
        at_most("n_probs", self.n_probs, limits.logprobs)
        return Fill(
            inputs=((self.before, Mask(mask), self.input_suffix),),
            max_tokens=(max(self.num_tokens(limits, card), 1),),
            sampling=self.sampling(),
            n=self.n_cmpl,
            logprobs=self.n_probs or None,
            stream=True,
            fit=True,
            timeout_s=limits.timeout_s,
        )

    def sampling(self) -> Sampling:
        """How tokens are drawn: a sampler that is not in the list is not used, as in llama.cpp."""
        used = set(
            self.samplers if self.samplers is not None else ("penalties", "top_k", "top_p", "min_p", "temperature")
        )
        temperature = self.temperature if used & {"temperature", "temp"} else 1.0
        penalties = "penalties" in used
        return Sampling(
            # llama.cpp takes the most probable token below a temperature of 0 too.
            temperature=max(temperature, 0.0),
            top_k=max(self.top_k, 0) if "top_k" in used else 0,
            top_p=self.top_p if "top_p" in used else 1.0,
            min_p=self.min_p if "min_p" in used else 0.0,
            repetition_penalty=self.repeat_penalty if penalties else 1.0,
            presence_penalty=self.presence_penalty if penalties else 0.0,
            frequency_penalty=self.frequency_penalty if penalties else 0.0,
            stop=self.stops,
            seed=None if self.seed in (-1, RANDOM_SEED) else self.seed,
        )

    def settings(self, limits: Limits, card: ModelCard) -> dict[str, Any]:
        """`generation_settings` of the answer."""
        s = self.sampling()
        return {
            "n_ctx": card.max_context,
            "n_predict": self.num_tokens(limits, card),
            "n_indent": self.n_indent,
            "t_max_predict_ms": self.t_max_predict_ms,
            "temperature": s.temperature,
            "top_k": s.top_k,
            "top_p": s.top_p,
            "min_p": s.min_p,
            "repeat_penalty": s.repetition_penalty,
            "presence_penalty": s.presence_penalty,
            "frequency_penalty": s.frequency_penalty,
            "stop": list(s.stop),
            "seed": RANDOM_SEED if s.seed is None else s.seed,
        }
