"""The bodies of `/tokenize` and `/detokenize` as other clients send them."""

from engine.requests import RequestError
from server.schemas import Number, String
from server.schemas_openai import Lenient


class TokensRequest(Lenient):
    """The body of `POST /tokenize`, in the words of lm-evaluation-harness and vLLM or of llama.cpp."""

    prompt: String | None = None
    content: String | None = None
    add_special_tokens: bool = False
    add_special: bool = False

    def text(self) -> str:
        """The text. Raises RequestError unless there is one."""
        if (self.prompt is None) == (self.content is None):
            raise RequestError("give exactly one of: prompt; content", "prompt", "invalid_form")
        return self.prompt if self.prompt is not None else self.content or ""

    @property
    def adds_special(self) -> bool:
        """Whether the start token comes first."""
        return self.add_special_tokens or self.add_special


class TokensTextRequest(Lenient):
    """The body of `POST /detokenize`."""

    tokens: list[Number]
