"""Fields of vLLM, OpenAI and llama.cpp that say what an answer must be: kept to, or refused by name."""

import json
import re
from datetime import date
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from engine.requests import Fill, JsonSchema
from tests.server.protocols.test_completions import completes
from tests.server.protocols.test_llama_cpp import writes

PATH = "/v1/completions"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
NAMED = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
OBJECT = JsonSchema('{"type":"object"}')
EDIT = {"input_prefix": "a", "input_suffix": "b"}
LOOP = {
    "prompt": "And he said, And he said, And he said,", "max_tokens": 16, "min_tokens": 16, "temperature": 0,
    "logit_bias": {"12006": -100},
}  # fmt: skip


@pytest.fixture
def asked(client, engine):
    """What a completion's body becomes for the engine."""
    engine.script = completes

    def ask(**body: Any) -> Fill:
        response = client.post(PATH, json={"prompt": "a b c", **body})
        assert response.status_code == 200, response.text
        fill = engine.asked[-1]
        assert isinstance(fill, Fill)
        return fill

    return ask


@pytest.mark.parametrize(
    "fields", [{"guided_regex": "a"}, {"guided_choice": ["a", "b"]}, {"guided_json": {"type": "null"}}]
)
def test_a_scored_prompt_and_a_constraint_do_not_go_together(client, fields):
    response = client.post("/v1/completions", json={"prompt": "a", "echo": True, "logprobs": 1, **fields})
    (field,) = fields
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert "echo with logprobs scores the prompt" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "regex", "choices"),
    [
        ({"guided_regex": "a|b"}, ("a|b",), ()),
        ({"structured_outputs": {"regex": "a|b"}}, ("a|b",), ()),
        ({"guided_choice": ["a", "b"]}, (), (("a", "b"),)),
        ({"structured_outputs": {"choice": ["a"], "disable_fallback": True}}, (), (("a",),)),
        ({"guided_json": SCHEMA}, (JsonSchema(TEXT),), ()),
        ({"guided_json": TEXT}, (JsonSchema(TEXT),), ()),
        ({"structured_outputs": {"json": SCHEMA}}, (JsonSchema(TEXT),), ()),
        ({"structured_outputs": {"json_object": True}}, (OBJECT,), ()),
        ({"response_format": NAMED}, (JsonSchema(TEXT),), ()),
        ({"response_format": {"type": "json_object"}}, (OBJECT,), ()),
        ({"response_format": {"type": "text"}}, (), ()),
        ({"regex": "a|b"}, ("a|b",), ()),
        ({"json_schema": SCHEMA}, (JsonSchema(TEXT),), ()),
        ({"json_schema": TEXT}, (JsonSchema(TEXT),), ()),
        ({"structured_outputs": {}, "guided_grammar": "", "bad_words": [], "return_token_ids": False}, (), ()),
    ],
)
def test_a_completion_s_constraint_is_the_engine_s(asked, body: Any, regex: Any, choices: Any) -> None:
    fill = asked(**body)
    assert (fill.regex, fill.choices) == (regex, choices)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        *(
            ({name: value}, name, "unsupported")
            for name, value in {
                "guided_grammar": "root ::= x",
                "guided_whitespace_pattern": " ",
                "allowed_token_ids": [1],
                "bad_words": ["a"],
                "return_token_ids": True,
                "prompt_embeds": "AAAA",
                "logits_processors": ["x"],
                "repetition_detection": {"max_pattern_size": 2},
                "grammar": "root ::= x",
                "ebnf": "root ::= x",
                "structural_tag": "{}",
                "choices": ["a"],
                "max_completion_tokens": 2,
            }.items()
        ),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "unsupported"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "unsupported"),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
            "unsupported",
        ),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format", "unsupported"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
        ({"regex": "a", "guided_regex": "a"}, "regex", "invalid_value"),
        ({"guided_json": "no"}, "guided_json", "invalid_value"),
        ({"guided_json": {"title": "x" * 20_000}}, "guided_json", "invalid_value"),
        ({"guided_regex": "a" * 1025}, "guided_regex", "invalid_value"),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"use_beam_search": True, "n": 4, "best_of": 17}, "best_of", "invalid_value"),
        ({"stop_token_ids": list(range(33))}, "stop_token_ids", "invalid_value"),
    ],
)
def test_what_a_completion_cannot_keep_to_is_refused_by_name(client, body: Any, param: str, code: str) -> None:
    response = client.post(PATH, json={"prompt": "a", **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_stops_and_beams_of_a_completion_are_the_engine_s(asked) -> None:
    drawn = asked(stop_token_ids=[3, 4], ignore_eos=True, stop=["x"], include_stop_str_in_output=True).sampling
    assert (drawn.stop_token_ids, drawn.ignore_eos, drawn.include_stop) == ((3, 4), True, True)
    fill = asked(use_beam_search=True, n=2, best_of=4, length_penalty=0.5)
    assert (fill.num_beams, fill.n, fill.length_penalty, fill.sampling.temperature) == (4, 2, 0.5, 0.0)
    assert asked(use_beam_search=True, n=3).num_beams == 3
    fill = asked(use_beam_search=True, n=3, max_tokens=0, echo=True, logprobs=1)  # nothing is searched for
    assert (fill.num_beams, fill.n) == (1, 3)
    assert asked(n=2, best_of=4, length_penalty=0.5).num_beams == 1


@pytest.mark.parametrize(
    ("prompt", "more", "ids"),
    [
        # The fake's tokens are the lengths of words.
        ("one three seventh", {"truncate_prompt_tokens": 2}, (5, 7)),
        ("one three seventh", {"truncate_prompt_tokens": 2, "truncation_side": "right"}, (3, 5)),
        ([1, 2, 3], {"truncate_prompt_tokens": 1}, (3,)),
        ([1] * 600, {"truncate_prompt_tokens": -1}, (1,) * 508),
    ],
)
def test_a_prompt_is_truncated_as_in_vllm(asked, prompt: Any, more: Any, ids: Any) -> None:
    (segment,) = asked(prompt=prompt, **more).inputs[0]
    assert segment.ids == ids


def test_a_short_prompt_is_left_alone(asked) -> None:
    assert asked(prompt="one two", truncate_prompt_tokens=2).inputs == (("one two",),)


def test_an_end_by_a_constraint_is_a_stop_to_openai(client, engine) -> None:
    engine.script = completes
    for stream in (False, True):
        response = client.post(PATH, json={"prompt": "a", "guided_choice": ["t0"], "stream": stream})
        assert "choice" not in re.findall(r'"finish_reason":"(\w+)"', response.text)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_named_by_their_ids_if_asked(client, engine, stream: bool) -> None:
    engine.script = completes
    body = {"prompt": "a", "echo": True, "logprobs": 1, "return_tokens_as_token_ids": True, "stream": stream}
    text = client.post(PATH, json=body).text
    assert '"token_id:3"' in text
    assert '"token_id:9":-0.5' in text
    assert '"token_id:7"' in text
    assert '" b"' not in text


class TestInfill:
    @pytest.fixture(autouse=True)
    def script(self, engine):
        engine.script = writes

    def fill(self, client, engine, **body: Any) -> Fill:
        response = client.post("/infill", json={**EDIT, **body})
        assert response.status_code == 200, response.text
        fill = engine.asked[-1]
        assert isinstance(fill, Fill)
        return fill

    def test_fields_are_the_engine_s(self, client, engine) -> None:
        fill = self.fill(client, engine, json_schema=SCHEMA, ignore_eos=True, grammar="", post_sampling_probs=False)
        assert fill.regex == (JsonSchema(TEXT),)
        assert fill.sampling.ignore_eos

    @pytest.mark.parametrize(
        ("given", "last"), [({}, 64), ({"repeat_last_n": 0}, 0), ({"repeat_last_n": -1}, 2**31 - 1)]
    )
    def test_penalties_look_back_as_in_llama_cpp(self, client, engine, given: Any, last: int) -> None:
        assert self.fill(client, engine, repeat_penalty=1.1, **given).sampling.repeat_last_n == last
        assert self.fill(client, engine, **given).sampling.repeat_last_n is None

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"max_tokens": 5, "n": 2, "logprobs": 3}, ((5,), 2, 3)),
            ({"max_completion_tokens": 6, "max_tokens": 5}, ((6,), 1, None)),
            ({"n_predict": 7, "max_tokens": 5, "n_cmpl": 1, "n": 2, "n_probs": 1, "logprobs": 3}, ((7,), 1, 1)),
        ],
    )
    def test_fields_have_their_other_names(self, client, engine, given: Any, expected: Any) -> None:
        fill = self.fill(client, engine, **given)
        assert (fill.max_tokens, fill.n, fill.logprobs) == expected

    @pytest.mark.parametrize("given", [{"grammar": "root ::= x"}, {"post_sampling_probs": True}])
    def test_what_cannot_be_kept_to_is_refused_by_name(self, client, given: Any) -> None:
        response = client.post("/infill", json={**EDIT, **given})
        assert response.status_code == 400
        assert f"{next(iter(given))} is not supported here" in response.json()["error"]["message"]


class TestDemo:
    """The bundled demo, asked over a socket."""

    @pytest.fixture(autouse=True)
    def url(self, demo_url: str) -> None:
        self.base = demo_url.removesuffix("/v1").rstrip("/")

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        response = httpx.post(f"{self.base}{path}", json=body, timeout=60)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def complete(self, **body: Any) -> str:
        (choice,) = self.ask(PATH, **{"prompt": "He was born in", "max_tokens": 60, "temperature": 0, **body})[
            "choices"
        ]
        assert choice["finish_reason"] in ("stop", "length")
        return str(choice["text"])

    def test_a_penalty_breaks_a_loop_of_the_prompt(self) -> None:
        plain, punished = self.complete(**LOOP), self.complete(**LOOP, repetition_penalty=1.3)
        assert plain != punished
        assert "And he said" not in punished

    def test_texts_are_what_they_must_be(self) -> None:
        assert re.fullmatch("1[89][0-9]{2}", self.complete(guided_regex="^1[89][0-9]{2}$"))
        assert self.complete(structured_outputs={"choice": ["Rome", "the house"]}) in ("Rome", "the house")
        # Without the penalty a number may go on until no tokens are left.
        document = json.loads(self.complete(response_format=NAMED, frequency_penalty=2.0))
        jsonschema.validate(document, SCHEMA)
        written = self.complete(guided_json={"type": "string", "format": "date"})
        date.fromisoformat(json.loads(written))
        with httpx.stream(
            "POST", f"{self.base}{PATH}", json={"prompt": "a", "guided_regex": "[ab]{3}", "stream": True}, timeout=60
        ) as lines:
            events = [json.loads(line[6:]) for line in lines.iter_lines() if line.startswith("data: {")]
        assert re.fullmatch("[ab]{3}", "".join(event["choices"][0]["text"] for event in events))

    def test_the_engine_s_refusal_names_the_client_s_field(self) -> None:
        for body, param in (
            ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
            ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
            ({"guided_choice": ["a " * 40]}, "guided_choice"),
        ):
            response = httpx.post(f"{self.base}{PATH}", json={"prompt": "a", **body}, timeout=60)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param

    def test_a_blank_is_json_of_its_schema(self) -> None:
        text, schemas = "[MASK] and [MASK].", [SCHEMA, None]
        answer = self.ask("/v1/infill", text=text, json_schema=schemas, max_tokens=30)
        first, _ = answer["results"][0]["blanks"]
        jsonschema.validate(json.loads(first["text"]), SCHEMA)

    def test_an_edit_is_json_of_its_schema(self) -> None:
        answer = self.ask(
            "/infill", input_prefix="x = ", input_suffix=";", json_schema={"enum": ["a", 1, None]}, n_predict=30
        )
        assert json.loads(answer["content"]) in ("a", 1, None)
        assert answer["generation_settings"]["repeat_last_n"] == 64

    def test_a_native_fill_ends_at_a_stop_token_and_keeps_it_if_asked(self) -> None:
        body = {"text": "And [MASK] said unto him.", "max_tokens": 8, "ignore_eos": True}
        (plain,) = self.ask("/v1/infill", **body)["results"][0]["blanks"]
        ids = plain["token_ids"]
        assert (len(ids), plain["finish_reason"]) == (8, "length")
        first = ids.index(ids[4])
        (stopped,) = self.ask("/v1/infill", **body, stop_token_ids=[ids[4]])["results"][0]["blanks"]
        assert (stopped["token_ids"], stopped["finish_reason"]) == (ids[:first], "stop")
        (kept,) = self.ask("/v1/infill", **body, stop_token_ids=[ids[4]], include_stop=True)["results"][0]["blanks"]
        assert kept["token_ids"] == ids[: first + 1]
        assert plain["text"].startswith(kept["text"])
