"""The sampling fields: a request's parameters of drawing, once for all protocols.

A protocol's body subclasses `SamplingFields`, with its own defaults and aliases. The parameters of `engine.logit_rules`
become fields automatically.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model

from engine.logit_rules import parameters
from engine.options import Repeated
from engine.requests import Sampling
from server.exchange.bodies import INT32, Number, Stop, TokenId, Wire, at_most, many
from server.settings import Limits

Bias = Annotated[float, Field(ge=-100, le=100)]


class DrawingFields(Wire):
    """The fields of the drawing itself. The others belong to the logit rules."""

    temperature: Annotated[
        float, Field(ge=0, le=100, description="The divisor of logits. 0 takes the most probable token.")
    ] = 0.0
    top_k: Annotated[
        int, Field(ge=0, le=INT32, description="The number of most probable tokens to draw from; 0 is all.")
    ] = 0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="The total probability of the most probable tokens to draw from.")
    ] = 1.0
    min_p: Annotated[
        float, Field(ge=0, le=1, description="The minimum probability of a token, as a share of the greatest one.")
    ] = 0.0
    logit_bias: Annotated[
        dict[TokenId, Bias],
        Field(default_factory=dict, description="The amount added to the logit of a token, by token id."),
        Repeated("--logit-bias", "ID=AMOUNT"),
    ]
    stop: Annotated[
        Stop | None,
        Field(description="A string that ends a blank; the text does not include it. There may be several."),
        Repeated("--stop", "TEXT"),
    ] = None
    stop_token_ids: Annotated[
        list[Number],
        Field(default_factory=list, description="The ids of tokens that end a blank, like its end token."),
        Repeated("--stop-token-ids", "ID"),
    ]
    include_stop: Annotated[
        bool, Field(description="Keep the stop string, or the stop token, in the text that it ends.")
    ] = False
    ignore_eos: Annotated[bool, Field(description="Never end a blank by the model's own end token.")] = False
    seed: Annotated[
        int | None, Field(ge=0, lt=2**63, description="The seed of random numbers. Without one each answer differs.")
    ] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a blank."""
        return () if self.stop is None else many(self.stop)

    def biases(self, limits: Limits) -> dict[int, float]:
        """The biases by token id. Raises RequestError for too many."""
        at_most("logit_bias", len(self.logit_bias), limits.logit_bias, "items")
        return {int(token_id): bias for token_id, bias in self.logit_bias.items()}

    def sampling(self, limits: Limits) -> Sampling:
        """The engine's sampling parameters. Raises RequestError for values over a limit."""
        at_most("stop", len(self.stops), limits.stop, "items")
        at_most("stop_token_ids", len(self.stop_token_ids), limits.stop, "items")
        return Sampling(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),  # protocols whose "all" is −1 share this field
            top_p=self.top_p,
            min_p=self.min_p,
            rules={p.name: value for p in parameters() if (value := getattr(self, p.name)) != p.default},
            logit_bias=self.biases(limits),
            stop=self.stops,
            seed=self.seed,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            include_stop=self.include_stop,
        )


def over_last(drawn: Sampling, repeat_last_n: int) -> Sampling:
    """Penalties over so many last tokens, as in llama.cpp and Ollama; −1 is all tokens."""
    penalties = {"repetition_penalty", "presence_penalty", "frequency_penalty"}
    if not drawn.rules.keys() & penalties:
        return drawn
    return replace(drawn, repeat_last_n=INT32 if repeat_last_n < 0 else repeat_last_n)


def _fields() -> dict[str, Any]:
    return {
        p.name: (Annotated[p.kind, Field(ge=p.minimum, le=p.maximum, description=p.description)], p.default)
        for p in parameters()
    }


if TYPE_CHECKING:

    class SamplingFields(DrawingFields):
        """All sampling fields."""
else:
    SamplingFields = create_model("SamplingFields", __base__=DrawingFields, __doc__="All sampling fields.", **_fields())
