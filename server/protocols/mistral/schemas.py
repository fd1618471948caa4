"""The body of Mistral's fill-in-the-middle, and its conversion to an engine request."""

from typing import Annotated

from pydantic import Field

from engine.events import ModelCard
from engine.requests import Fill
from server.exchange.bodies import INT32, Number, String, at_most
from server.exchange.prompt import most_tokens, part_a
from server.exchange.refusals import check_refused, refusing
from server.exchange.sampling import SamplingFields
from server.settings import Limits

# Of Mistral's chats and of other routes; they say what the text must be.
Refused = refusing(
    "RefusedFills", "guided_choice", "guided_json", "guided_regex", "response_format", "structured_outputs"
)


class FimRequest(SamplingFields, Refused):  # type: ignore[misc, valid-type]
    """The body of `POST /v1/fim/completions`."""

    model: String | None = None
    prompt: String
    suffix: String | None = None
    max_tokens: Number | None = None
    min_tokens: Number = 0
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.3  # what Mistral's models list says of Codestral
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=INT32)] = 0
    seed: Annotated[int | None, Field(ge=0, lt=2**63, alias="random_seed")] = None
    stream: bool = False
    logprobs: bool = False
    top_logprobs: Number = 0

    def fill(self, limits: Limits, card: ModelCard) -> Fill:
        """The request for the engine.

        It lowers a length that is too great to the limit, since an editor knows no limit. Raises RequestError for other
        values over a limit, and for blanks that the model cannot fill.
        """
        check_refused(self, Refused)
        length = most_tokens(self.max_tokens, limits, card)
        at_most("min_tokens", self.min_tokens, length)
        at_most("top_logprobs", self.top_logprobs, limits.logprobs)
        return Fill(
            inputs=(part_a(self.prompt, self.suffix, card),),
            max_tokens=(length,),
            min_tokens=(self.min_tokens,),
            sampling=self.sampling(limits),
            logprobs=self.top_logprobs if self.logprobs or self.top_logprobs else None,
            stream=self.stream,
            fit=True,  # at the end of a file there is no suffix
            timeout_s=limits.timeout_s,
        )
