"""lm-evaluation-harness with bidirectional contexts: the model `glm-infill`, over `POST /v1/score` and `/v1/infill`.

`local-completions` works with the server as it is, and reads context and continuation from left to right. Here the
model reads the whole context at once and scores what follows it, or what stands in its one `[MASK]`, as GLM's own
evaluation does. Numbers of the two are not to be compared. The harness finds models by their import, so run

    python examples/lm_eval_glm_infill.py --model glm-infill --model_args url=http://127.0.0.1:8000 --tasks …

with the options of `lm_eval`. Needs `lm_eval` and no part of this project.
"""

import json
import math
import urllib.error
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
START = "<sop>"  # tasks that are written for local-completions end their context with it


@register_model("glm-infill")
class GlmInfill(LM):
    """A server at `url`; `num_concurrent` requests are under way at once, the candidates of a context in one."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str = "",
        num_concurrent: int | str = 4,
        max_gen_toks: int | str = 64,
        timeout: float | str = 600,
        **_: Any,
    ) -> None:
        super().__init__()
        self.url = url.rstrip("/")
        self.timeout = float(timeout)
        self.max_gen_toks = int(max_gen_toks)
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.pool = ThreadPoolExecutor(int(num_concurrent))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Σ log p(continuation | context), and whether each of its tokens is the most probable one."""
        places: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            places[request.args[0]].append(number)
        answers: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        targets = [[requests[n].args[1] for n in numbers] for numbers in places.values()]
        for numbers, scored in zip(places.values(), self.pool.map(self._score, places, targets), strict=True):
            for number, answer in zip(numbers, scored, strict=True):
                answers[number] = answer
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts. A text over the model's length is an error of the server's."""
        texts = [{"text": request.args[0]} for request in requests]
        return [answer["results"][0]["logprob"] for answer in self.pool.map(self._post_score, texts)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, or into its one blank."""
        return list(self.pool.map(self._generate, requests))

    def _score(self, context: str, continuations: list[str]) -> list[tuple[float, bool]]:
        context = context.removesuffix(START)
        if any(mask in context for mask in MASKS):
            # The space before a blank is the blank's own; the harness puts one before each continuation.
            continuations = [c.removeprefix(" ") for c in continuations]
        answer = self._post_score({"context": context, "targets": continuations, "logprobs": 1})
        return [_answer(result["spans"][0]) for result in answer["results"]]

    def _generate(self, request: Instance) -> str:
        context, options = request.args
        until = options.get("until") or []
        body = {
            "text": context,
            "max_tokens": options.get("max_gen_toks", self.max_gen_toks),
            "temperature": options.get("temperature", 0) if options.get("do_sample") else 0,
            "stop": [until] if isinstance(until, str) else until,
        }
        (blank,) = self._post("/v1/infill", body)["results"][0]["blanks"]
        return str(blank["text"])

    def _post_score(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._post("/v1/score", body)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {json.load(error)['error']['message']}") from None
        return answer


def _answer(span: dict[str, Any]) -> tuple[float, bool]:
    best = [top[0]["logprob"] for top in span["top_logprobs"]]
    return span["logprob"], span["token_logprobs"] == best


if __name__ == "__main__":
    cli_evaluate()
