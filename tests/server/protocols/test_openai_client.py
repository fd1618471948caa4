"""OpenAI's own client against a server with the demo model."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

Body = dict[str, Any]


@pytest.fixture(scope="module")
def client(demo_url: str) -> Iterator[openai.OpenAI]:
    # No retries: an answer that is only right the second time is wrong.
    with openai.OpenAI(base_url=f"{demo_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_a_completion_has_text_reason_and_usage(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="The capital of France is", max_tokens=6, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI, model: str) -> None:
    asked: Body = {
        "model": model,
        "prompt": "It was a dark",
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": 2,
        "echo": True,
    }
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [getattr(c.choices[0].logprobs, name) for c in chunks if c.choices]
        assert [x for part in parts for x in part] == getattr(whole.choices[0].logprobs, name)


def test_choices_of_several_prompts_are_in_order(client: openai.OpenAI, model: str) -> None:
    prompts = ["The river", "In the beginning God"]
    many = client.completions.create(model=model, prompt=prompts, n=3, max_tokens=4, seed=5, temperature=0.9)
    assert [c.index for c in many.choices] == list(range(6))
    for number, prompt in enumerate(prompts):
        alone = client.completions.create(model=model, prompt=prompt, n=3, max_tokens=4, seed=5, temperature=0.9)
        assert [c.text for c in alone.choices] == [c.text for c in many.choices[3 * number : 3 * number + 3]]


def test_a_suffix_is_read(client: openai.OpenAI, model: str) -> None:
    asked: Body = {"model": model, "prompt": "The capital of ", "max_tokens": 8, "temperature": 0}
    between = client.completions.create(**asked, suffix=" is Paris.").choices[0]
    native = httpx.post(
        f"{client.base_url}infill", json={"text": "The capital of [MASK] is Paris.", "max_tokens": 8}
    ).json()
    assert between.text == native["results"][0]["blanks"][0]["text"]
    # A mask in the text around it is text.
    spelled = client.completions.create(**{**asked, "prompt": "A [MASK] of "}, suffix=" is [gMASK].")
    assert spelled.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_of_10_kb_gets_a_suggestion(client: openai.OpenAI, model: str, stream: bool) -> None:
    # Continue asks for up to 4,096 tokens, minuet for 256, both with the whole file around the cursor.
    line = "And the sons of Noah went forth of the ark, and dwelt in the land.\n"
    asked: Body = {"model": model, "prompt": 80 * line, "suffix": 80 * line, "max_tokens": 4096, "temperature": 0}
    answer: Any = client.completions.create(**asked, stream=stream, stop=["\n"])
    choices = [part.choices[0] for part in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices).strip()
    assert choices[-1].glm == {"truncated": True}
    with pytest.raises(openai.BadRequestError, match="max_tokens is 4096; the limit is 1024"):
        client.completions.create(model=model, prompt=line, max_tokens=4096)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt=160 * line, max_tokens=8)
    assert refused.value.code == "context_length_exceeded"


def test_a_template_of_another_model_fills_the_same_blank(client: openai.OpenAI, model: str) -> None:
    common: Body = {"model": model, "max_tokens": 6, "temperature": 0}
    plain = client.completions.create(prompt="In the beginning God ", suffix=" the earth.", **common)
    for prompt in (
        "<|code_prefix|>In the beginning God <|code_suffix|> the earth.<|code_middle|>",
        "[SUFFIX] the earth.[PREFIX]In the beginning God ",
    ):
        answer = client.completions.create(prompt=prompt, **common)
        assert answer.choices[0].text == plain.choices[0].text
        assert answer.usage is not None
        assert plain.usage is not None
        assert answer.usage.prompt_tokens == plain.usage.prompt_tokens


def test_the_best_of_several_have_the_best_log_probability(client: openai.OpenAI, model: str) -> None:
    asked: Body = {
        "model": model,
        "prompt": "The old man",
        "max_tokens": 5,
        "temperature": 1.2,
        "seed": 3,
        "logprobs": 1,
    }
    eight = client.completions.create(**asked, n=8).choices
    best = client.completions.create(**asked, n=2, best_of=8).choices

    def mean(choice: openai.types.CompletionChoice) -> float:
        assert choice.logprobs is not None
        logprobs = choice.logprobs.token_logprobs or []
        return sum(logprobs) / len(logprobs)

    expected = sorted(eight, key=mean, reverse=True)[:2]
    assert [c.text for c in best] == [c.text for c in expected]
    assert [c.index for c in best] == [0, 1]


def test_penalties_keep_tokens_from_coming_again(client: openai.OpenAI, model: str) -> None:
    asked: Body = {
        "model": model,
        "prompt": "and the and the and the",
        "max_tokens": 40,
        "temperature": 0,
        "logprobs": 0,
    }
    asked["extra_body"] = {"min_tokens": 40}

    def repeated(**penalties: Any) -> int:
        choice = client.completions.create(**asked, **penalties).choices[0]
        assert choice.logprobs is not None
        tokens = choice.logprobs.tokens or []
        return len(tokens) - len(set(tokens))

    assert repeated(presence_penalty=2, frequency_penalty=2) < repeated()


def test_a_scored_prompt_keeps_the_contract(client: openai.OpenAI, model: str) -> None:
    text = "The capital of France is Paris."
    choice = client.completions.create(model=model, prompt=text, max_tokens=1, logprobs=3, echo=True).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert choice.text.startswith(text)
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert None not in logprobs.token_logprobs[1:]
    assert logprobs.tokens is not None
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs or [], strict=True):
        assert logprob is None or top[token] >= logprob
    assert logprobs.text_offset is not None
    offsets = [*logprobs.text_offset, len(choice.text)]
    assert "".join(choice.text[a:b] for a, b in pairwise(offsets)) == choice.text
    assert choice.glm["first_token_logprob"] < 0  # type: ignore[attr-defined]
    nothing = client.completions.create(model=model, prompt=text, max_tokens=0, logprobs=3, echo=True).choices[0]
    assert nothing.logprobs is not None
    assert nothing.logprobs.tokens == logprobs.tokens[:-1]
    assert nothing.text == text


def test_errors_are_the_exceptions_of_the_client(client: openai.OpenAI, model: str) -> None:
    asked: Body = {"model": model, "prompt": "a"}
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**asked, max_tokens=-1)
    assert refused.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as unseen:
        client.completions.create(model=model, prompt=[10**6], max_tokens=1)
    assert unseen.value.param == "prompt"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(**{**asked, "model": "other"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**asked, stream=True, n=9)


def test_usage_counts_every_token_that_has_a_log_probability(client: openai.OpenAI, model: str) -> None:
    end = httpx.post(f"{client.base_url}".replace("/v1/", "/tokenize"), json={"prompt": "<eop>"}).json()["tokens"][0]
    asked: Body = {"model": model, "prompt": "And he said", "temperature": 0, "logprobs": 1}
    shapes: list[tuple[int, dict[str, int]]] = [(0, {}), (100, {}), (100, {"min_tokens": 3}), (-100, {})]
    for bias, extra in shapes:
        whole = client.completions.create(**asked, max_tokens=6, logit_bias={str(end): bias}, extra_body=extra)
        assert whole.usage is not None
        assert whole.choices[0].logprobs is not None
        assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens or [])
        if bias == 100:
            assert whole.usage.completion_tokens == extra.get("min_tokens", 0) + 1
        stream = client.completions.create(
            **asked, max_tokens=6, logit_bias={str(end): bias}, extra_body=extra, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        counted = [chunk.usage for chunk in stream][-1]
        assert counted is not None
        assert (counted.prompt_tokens, counted.completion_tokens) == (
            whole.usage.prompt_tokens, whole.usage.completion_tokens,
        )  # fmt: skip


@pytest.mark.parametrize("prompt", ["And he said", "the [MASK] sea", "", "床前明月光", "a[gMASK]"])
def test_a_prompt_has_one_number_of_tokens(client: openai.OpenAI, model: str, prompt: str) -> None:
    ids = httpx.post(f"{client.base_url}tokenize", json={"text": prompt}).json()["tokens"]
    counts = set()
    for given in (prompt, ids):
        if given == []:
            continue
        for asked in (
            {"max_tokens": 0}, {"max_tokens": 5}, {"max_tokens": 2, "logprobs": 1}, {"max_tokens": 0, "echo": True},
            {"max_tokens": 0, "echo": True, "logprobs": 1}, {"max_tokens": 3, "echo": True, "logprobs": 1},
        ):  # fmt: skip
            body: Body = {"model": model, "prompt": given, **asked}
            answer = client.completions.create(**body)
            assert answer.usage is not None
            counts.add(answer.usage.prompt_tokens)
    native = httpx.post(f"{client.base_url}infill", json={"text": prompt, "max_tokens": 1}).json()
    counts.add(native["usage"]["prompt_tokens"])
    layout = httpx.post(f"{client.base_url}tokenize", json={"text": prompt, "layout": "fill"}).json()["layout"]
    if "[" in prompt:  # without one, a prompt gets a mask where it goes on
        counts.add(len(layout["token_ids"]))
    counts.add(layout["num_tokens"])
    assert len(counts) == 1, counts


def test_an_empty_prompt_is_one_of_several(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["", "a"], max_tokens=0, echo=True, logprobs=1)
    empty, other = answer.choices
    assert empty.logprobs is not None
    assert empty.logprobs.model_dump() == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    assert (empty.text, empty.finish_reason, other.text) == ("", "length", "a")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    asked: Body = {"model": model, "prompt": "", "max_tokens": 3, "echo": True, "logprobs": 1, "temperature": 0}
    whole = client.completions.create(**asked).choices[0]
    chunks = [c.choices[0] for c in client.completions.create(**asked, stream=True)]
    assert whole.logprobs is not None
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks if c.logprobs for t in c.logprobs.tokens or []] == whole.logprobs.tokens
    assert whole.logprobs.token_logprobs
    assert None not in whole.logprobs.token_logprobs


def test_the_model_that_is_served_can_be_retrieved(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model) == client.models.list().data[0]
    assert client.completions.create(model="", prompt="a", max_tokens=1).model == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(f"{model}/other")


def test_one_bad_prompt_of_a_batch_is_named(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="input 1: ") as refused:
        client.completions.create(model=model, prompt=[[5], [10**6]], max_tokens=1)
    assert refused.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="input 2: ") as refused:
        client.completions.create(model=model, prompt=["a", "b", "[MASK][MASK]"], max_tokens=0)
    assert refused.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="input 1: "):
        client.completions.create(model=model, prompt=["a", "word " * 3000], max_tokens=0, echo=True, logprobs=1)
