"""huggingface_hub's client against a server with the demo model: fill-mask, and text generation in its three forms."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, ValidationError

TEXT = "The capital of [MASK] is Paris."
PROMPT = "In the beginning God"


@pytest.fixture(scope="module")
def client(demo_url: str) -> Iterator[InferenceClient]:
    with InferenceClient(model=demo_url, provider="hf-inference", token="none") as client:
        yield client


def native(url: str, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_mask_has_candidates_the_best_first(client: InferenceClient, demo_url: str) -> None:
    found = client.fill_mask(TEXT)
    assert len(found) == 5
    scores = [element.score for element in found]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] < 1
    for element in found:
        assert element.sequence == TEXT.replace("[MASK]", element.token_str)
    assert client.fill_mask(TEXT, top_k=2) == found[:2]
    beams = {"num_beams": 5, "n": 5, "max_tokens": 16, "min_tokens": 1, "length_penalty": 0.0}
    results = native(demo_url, "/v1/infill", text=TEXT, **beams)["results"]
    assert [result["text"] for result in results] == [element.sequence for element in found]
    assert [result["blanks"][0]["token_ids"][0] for result in results] == [element.token for element in found]


def test_targets_have_the_probabilities_of_choices(client: InferenceClient, demo_url: str) -> None:
    targets = ["France", "the kingdom of France", "Rome"]
    found = client.fill_mask(TEXT, targets=targets)
    blank = native(demo_url, "/v1/score", text=TEXT, spans=[[t] for t in targets], include_end=True)["results"]
    expected = {t: math.exp(result["logprob"]) for t, result in zip(targets, blank, strict=True)}
    assert {element.token_str: element.score for element in found} == pytest.approx(expected, rel=1e-6)
    assert found[0].score == max(expected.values())


def test_several_masks_have_a_list_each(demo_url: str) -> None:
    text = "And [MASK] said unto [MASK]."
    first, second = native(demo_url, "/", inputs=text, parameters={"top_k": 3})
    assert [len(first), len(second)] == [3, 3]
    assert first[0]["sequence"] == second[0]["sequence"]
    assert first[1]["sequence"] == f"And {first[1]['token_str']} said unto {second[0]['token_str']}."
    assert native(demo_url, "/models/glm-demo", inputs=[text, TEXT], parameters={"top_k": 3})[0] == [first, second]


def test_a_text_is_generated_in_three_forms(client: InferenceClient) -> None:
    plain = client.text_generation(PROMPT, max_new_tokens=8)
    details = client.text_generation(PROMPT, max_new_tokens=8, details=True)
    pieces = list(client.text_generation(PROMPT, max_new_tokens=8, stream=True))
    events = list(client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True))
    assert plain
    assert details.generated_text == plain
    assert details.details is not None
    assert details.details.generated_tokens == len(details.details.tokens) == len(events)
    assert "".join(pieces) == "".join(event.token.text for event in events) == plain
    assert [event.token.id for event in events] == [token.id for token in details.details.tokens]
    assert [event.token.logprob for event in events] == [token.logprob for token in details.details.tokens]
    last = events[-1]
    assert last.generated_text == plain
    assert last.details is not None
    assert last.details.finish_reason == details.details.finish_reason
    assert last.details.input_length


def test_a_prompt_has_log_probabilities(client: InferenceClient, demo_url: str) -> None:
    answer = client.text_generation(PROMPT, max_new_tokens=4, details=True, decoder_input_details=True)
    assert answer.generated_text == client.text_generation(PROMPT, max_new_tokens=4)
    (span,) = native(demo_url, "/v1/score", text=PROMPT)["results"][0]["spans"]
    assert answer.details is not None
    assert [token.id for token in answer.details.prefill] == span["token_ids"]
    assert [token.logprob for token in answer.details.prefill] == span["token_logprobs"]


def test_a_stop_string_ends_the_text_and_stays_in_it(client: InferenceClient) -> None:
    answer = client.text_generation(PROMPT, max_new_tokens=20, stop=[" the"], details=True)
    assert answer.generated_text.endswith(" the")
    assert answer.generated_text.count(" the") == 1
    assert answer.details is not None
    assert answer.details.finish_reason == "stop_sequence"
    stream = client.text_generation(PROMPT, max_new_tokens=20, stop=[" the"], stream=True)
    assert "".join(stream) == answer.generated_text


def test_of_several_the_best_is_given(client: InferenceClient) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": True, "details": True, "seed": 3}
    answer = client.text_generation(PROMPT, best_of=4, **asked)
    assert answer.details is not None
    assert answer.details.best_of_sequences is not None
    assert len(answer.details.best_of_sequences) == 3

    def mean(tokens: list[Any]) -> float:
        logprobs = [token["logprob"] if isinstance(token, dict) else token.logprob for token in tokens]
        return sum(logprobs) / len(logprobs)

    others = [sequence.tokens for sequence in answer.details.best_of_sequences]
    assert mean(answer.details.tokens) >= max(map(mean, others))


def test_a_grammar_of_a_regex_is_obeyed(client: InferenceClient) -> None:
    grammar: Any = {"type": "regex", "value": " [0-9]{4}"}
    text = client.text_generation("In the year", grammar=grammar, max_new_tokens=8)
    assert text[0] == " "
    assert text[1:].isdecimal()


def test_errors_are_the_exceptions_of_the_client(client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="max_new_tokens"):
        client.text_generation("a", max_new_tokens=0)
    with pytest.raises(ValidationError, match="best_of"):
        list(client.text_generation("a", best_of=2, do_sample=True, stream=True))
    with pytest.raises(BadRequestError, match="top_k is 17; the limit is 16"):
        client.fill_mask(TEXT, top_k=17)
    with pytest.raises(HfHubHTTPError, match="no such model is loaded"):
        client.fill_mask(TEXT, model=f"{client.model}/models/other")


def test_what_it_asks_of_the_endpoint(client: InferenceClient) -> None:
    info = client.get_endpoint_info()
    assert info["model_id"] == "glm-demo"
    assert info["max_input_tokens"] == 512
    assert client.health_check()
