"""The harness's model in examples/, against a server with the demo. Of lm_eval, which is large, the four names that the
module imports are here; tests/golden/record_requests.py has how it ran with the true one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

MODULE = Path(__file__).parents[2] / "examples" / "lm_eval_glm_infill.py"
HARNESS = {
    "__init__.py": "",
    "__main__.py": "def cli_evaluate(): ...",
    "api/__init__.py": "",
    "api/model.py": "class LM: ...",
    "api/registry.py": "def register_model(name): return lambda cls: cls",
    "api/instance.py": """
class Instance:
    def __init__(self, *args): self.args = args
""",
}
PROGRAM = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval_glm_infill import GlmInfill
method, requests = json.load(sys.stdin)
model = GlmInfill(url=sys.argv[1])
print(json.dumps(getattr(model, method)([Instance(*args) for args in requests])))
"""


@pytest.fixture
def asked(demo_url: str, tmp_path: Path) -> Any:
    for name, code in HARNESS.items():
        path = tmp_path / "lm_eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{MODULE.parent}"}

    def ask(method: str, requests: list[list[Any]]) -> Any:
        command = [sys.executable, "-c", PROGRAM, demo_url]
        given = json.dumps([method, requests])
        ran = subprocess.run(command, input=given, capture_output=True, text=True, env=environment, timeout=120)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return ask


def echoed(url: str, context: str, continuation: str) -> tuple[float, bool]:
    """The stock harness's way: parse_logprobs of the completions of a context that ends with its start token."""
    known = httpx.post(f"{url}/tokenize", json={"prompt": context}).json()["count"]
    body = {"prompt": context + continuation, "max_tokens": 1, "logprobs": 1, "echo": True}
    logprobs = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["logprobs"]
    values = logprobs["token_logprobs"][known:-1]
    return sum(values), all(
        v == max(t.values()) for v, t in zip(values, logprobs["top_logprobs"][known:-1], strict=True)
    )


def test_a_blank_scores_as_the_stock_harness_scores_it(demo_url: str, asked: Any) -> None:
    context = "The capital of [MASK] is a city.<sop>"
    requests = [[context, f" {word}"] for word in ("France", "the United States", "Rome")]
    requests.insert(1, ["In the beginning God created the heaven and the", " earth"])
    answers = asked("loglikelihood", requests)
    for number in (0, 2, 3):
        logprob, is_greedy = echoed(demo_url, *requests[number])
        assert answers[number] == [pytest.approx(logprob, rel=1e-12), is_greedy]
    native = {"context": requests[1][0], "targets": [requests[1][1]]}
    scored = httpx.post(f"{demo_url}/v1/score", json=native).json()
    assert answers[1][0] == scored["results"][0]["logprob"]


def test_a_text_that_the_model_writes_by_itself_is_greedy(asked: Any) -> None:
    context = "The capital of France is"
    (text,) = asked("generate_until", [[context, {"until": ["."], "max_gen_toks": 4}]])
    (answer,) = asked("loglikelihood", [[context, text]])
    assert answer[1] is True
    (rolling,) = asked("loglikelihood_rolling", [["The capital of France."]])
    assert rolling < 0
