"""Has LiteLLM fill a blank by each provider that can: `litellm_fills.py URL`. Prints what it understood as JSON.

It is a process of its own: LiteLLM is slow to import, warns, and asks the internet for prices unless
LITELLM_LOCAL_MODEL_COST_MAP is set.
"""

import json
import sys
from typing import Any

import litellm

# As docs/clients.md tells to configure it.
PROVIDERS = {
    "codestral": ("text-completion-codestral", "/v1/fim/completions", {}),
    "ollama": ("ollama", "", {"repeat_penalty": 1}),
    "openai": ("text-completion-openai", "/v1", {}),
    "deepseek": ("text-completion-openai", "/beta", {}),
}
BLANK = {"prompt": "The capital of ", "suffix": " is Paris.", "temperature": 0, "max_tokens": 8}


def fills(url: str, provider: str, path: str, more: dict[str, Any]) -> dict[str, Any]:
    """A fill in one piece, the same as a stream, and the refusal of a model that is not there."""
    asked: dict[str, Any] = {"api_base": url + path, "api_key": "none", "num_retries": 0, **BLANK, **more}
    answer: Any = litellm.text_completion(model=f"{provider}/glm-demo", **asked)
    stream: Any = litellm.text_completion(model=f"{provider}/glm-demo", stream=True, **asked)
    found = {
        "text": answer.choices[0].text,
        "reason": answer.choices[0].finish_reason,
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
        "streamed": "".join(chunk.choices[0].text or "" for chunk in stream),
    }
    try:
        litellm.text_completion(model=f"{provider}/other", **asked)
    except litellm.exceptions.NotFoundError as error:
        found["refusal"] = str(error)
    return found


if __name__ == "__main__":
    litellm.suppress_debug_info = True
    print(json.dumps({name: fills(sys.argv[1], *provider) for name, provider in PROVIDERS.items()}))
