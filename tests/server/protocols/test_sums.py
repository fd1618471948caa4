"""Answers that add up, for random requests: streamed equals whole, offsets index the text, joined bytes are the text,
usage is what was computed. The engine is a real one, of random weights; Python reads the bytes."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from engine.answers import EMPTY, FillResult
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Event, ModelCard, ResultDone
from engine.readings import Reading
from engine.requests import Fill, Request
from model.checkpoint import load
from model.tokenizer import Tokenizer
from server.app import create_app
from server.settings import Settings
from tests.server.conftest import FakeEngine

# Bytes of characters, and bytes that are none.
HALVES = [0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0, 0xEF, 0xBF, 0xBD, 0xFF]
TEXTS = st.text("ab é€😀\ufffd'", max_size=6)


class Openers(Tokenizer):
    """Every byte is a token, as are some texts; those with a leading space open a text without it."""

    space_lost_behind = "'"
    mask_strips = True

    def __init__(self, like: Tokenizer) -> None:
        first = min(like.special.values())
        words = [" the", " é", " 'tis", "€", "\ufffd", " a", "b ", " ", "'", "😀 b"]
        self._pieces = [bytes([n]) for n in range(256)] + [words[n % len(words)].encode() for n in range(first - 256)]
        super().__init__(like.special, like.names, first)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def text_ids(self) -> range:
        return range(len(self._pieces))

    def opens_text(self, token_id: int) -> bool:
        return self._pieces[token_id].startswith(b" ")

    def _bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else b""


class Local(FakeEngine):
    """A real engine in this process; it remembers its results."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(self.play)
        self.engine = engine
        self.results: list[FillResult] = []
        known = {engine.tokenizer.decode_bytes([i]): i for i in reversed(engine.tokenizer.text_ids())}
        self.of_byte = {byte: known[bytes([byte])] for byte in range(256)}

    def spelled(self, token_ids: Sequence[int], spaced: bool = False) -> list[bytes]:
        """The bytes of each token, without spaces before the first if one may be lost there."""
        pieces = [self.engine.tokenizer.decode_bytes([i]) for i in token_ids]
        return [b"".join(pieces).lstrip(b" ")] if spaced else pieces

    @property
    def card(self) -> ModelCard:
        return self.engine.card

    async def play(self, request: Request, work_id: str) -> AsyncGenerator[Event, None]:
        self.results = []
        for event in self.engine.run(request, work_id):
            if isinstance(event, ResultDone) and isinstance(event.result, FillResult):
                self.results = sorted([*self.results, event.result], key=lambda result: result.index)
            yield event

    async def tokenize(self, text: str, special: bool = False, masks: bool = True) -> list[int]:
        spelling = self.engine.job_context.spelling
        return spelling.tokenize(text) if special else spelling.tokenize_masks(text)

    async def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        return self.engine.read(fill, scored)

    async def detokenize(
        self, token_ids: list[int], special: bool = False, finished: bool = False, sentence: bool = False
    ) -> str:
        spelling = self.engine.job_context.spelling
        return spelling.detokenize(token_ids, finished) if special else spelling.detokenize_masks(token_ids)


World = tuple[TestClient, Local]


@pytest.fixture(scope="module", params=["demo", "openers"])
def world(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path]) -> Iterator[World]:
    config = EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01)
    checkpoint = load(Path(str(config.model)))
    if request.param == "openers":
        checkpoint = replace(checkpoint, tokenizer=Openers(checkpoint.tokenizer))
    local = Local(Engine(config, checkpoint))
    with TestClient(create_app(Settings(log_level="error"), local)) as client:
        yield client, local


@st.composite
def drawing(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of every route; `halves` say how much more probable bytes of broken characters are."""
    most = draw(st.integers(0, 9))
    return {
        "max_tokens": most,
        "min_tokens": draw(st.integers(0, most)),
        "temperature": draw(st.sampled_from([0, 1.5])),
        "seed": draw(st.integers(0, 99)),
        "stop": draw(st.lists(st.text("ab é\ufffd", min_size=1, max_size=3), max_size=2)),
        "halves": draw(st.sampled_from([0, 4, 20])),
        "ends": draw(st.sampled_from([-100, 0, 3])),
    }


def asked(local: Local, drawn: dict[str, Any]) -> dict[str, Any]:
    """The fields on the wire."""
    fields = {**drawn}
    more, ends = fields.pop("halves"), fields.pop("ends")
    bias = {str(local.of_byte[byte]): more for byte in HALVES} if more else {}
    return {**fields, "logit_bias": {**bias, **{str(i): ends for i in local.engine.tokenizer.ends}}}


def answered(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: TestClient, path: str, body: dict[str, Any]) -> list[Any]:
    """The data of all events."""
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def computed(results: list[FillResult]) -> int:
    """Tokens of all answers, end tokens too."""
    blanks = [blank for result in results for blank in result.blanks]
    return sum(len(blank.token_ids) + (blank.end_token is not None) for blank in blanks)


def counts(usage: dict[str, Any]) -> list[int]:
    """What does not depend on what was asked before."""
    return [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]


def assert_offsets_index(text: str, tokens: list[str], offsets: list[int]) -> None:
    """What is whole text stands where its offset says, unless a stop string cut it; a space may be lost."""
    assert offsets == sorted(offsets)
    assert all(0 <= at <= len(text) for at in offsets)
    for token, at in zip(tokens, offsets, strict=True):
        if token.startswith(("<", "[")):
            continue  # a name
        rest = text[at:]
        assert any(rest.startswith(t) or t.startswith(rest) for t in (token, token.removeprefix(" "))), (text, token)


def assert_is_joined(local: Local, text: str, pieces: list[bytes], is_cut: bool) -> None:
    """A text is that of the bytes of its tokens, up to where a stop string cut it; spaces apart in a vocabulary that
    loses some."""
    expected = b"".join(pieces).decode("utf-8", "replace")
    if local.engine.tokenizer.space_lost_behind:
        text, expected = text.replace(" ", ""), expected.replace(" ", "")
    assert expected.startswith(text) if is_cut else text == expected


steady = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
BYTES = st.lists(st.one_of(st.sampled_from(HALVES), st.integers(0, 255)), min_size=1, max_size=5)


@given(
    drawn=drawing(),
    path=st.sampled_from(["/v1/completions", "/beta/completions"]),
    prompt=st.one_of(TEXTS, BYTES),
    more=st.fixed_dictionaries(
        {
            "n": st.integers(1, 2),
            "echo": st.booleans(),
            "logprobs": st.sampled_from([None, 0, 2]),
            "use_beam_search": st.booleans(),
        }
    ),
)
@example(
    drawn={"max_tokens": 6, "min_tokens": 6, "temperature": 0, "seed": 0, "stop": [], "halves": 20, "ends": -100},
    path="/v1/completions",
    prompt=[0xF0, 0x9F],
    more={"n": 1, "echo": True, "logprobs": 1},
)
@example(
    drawn={"max_tokens": 3, "min_tokens": 0, "temperature": 0, "seed": 0, "stop": [], "halves": 0, "ends": 0},
    path="/v1/completions",
    prompt="ab",
    more={"n": 2, "echo": True, "logprobs": 1, "use_beam_search": True},
)
@steady
def test_openai(world: World, drawn: dict[str, Any], path: str, prompt: str | list[int], more: dict[str, Any]) -> None:
    client, local = world
    ids = [local.of_byte[byte] for byte in prompt] if isinstance(prompt, list) else []
    is_scored = more["echo"] and more["logprobs"] is not None
    body = {**asked(local, drawn), **more, "prompt": ids or prompt}
    local.results = []
    whole, results = answered(client, path, body), local.results
    *chunks, last = streamed(client, path, {**body, "stream_options": {"include_usage": True}})
    assert counts(last["usage"]) == counts(whole["usage"])
    assert whole["usage"]["completion_tokens"] == computed(results)
    plain = answered(client, "/v1/completions", {"prompt": ids or prompt, "max_tokens": 0})
    assert whole["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    for number, choice in enumerate(whole["choices"]):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == number]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        blank = results[number].blanks[0] if results else EMPTY
        # The mask behind a text has swallowed its last space, with which the fill begins.
        is_spaced = isinstance(prompt, str) and prompt.endswith(" ") and not is_scored
        pieces = local.spelled([*ids, *blank.token_ids] if more["echo"] else blank.token_ids, is_spaced)
        if more["echo"] or not ids:  # else a character that the prompt begins is the text's first
            before = prompt if more["echo"] and isinstance(prompt, str) else ""
            text = choice["text"].removeprefix(before)
            text = text.lstrip(" ") if is_spaced else text
            assert_is_joined(local, text, pieces, blank.stop_string is not None)
        if more["logprobs"] is not None and (results or is_scored):
            lists = choice["logprobs"]
            for name, values in lists.items():
                assert [v for c in own if c["logprobs"] for v in c["logprobs"][name]] == values
            assert_offsets_index(choice["text"], lists["tokens"], lists["text_offset"])


@given(drawn=drawing(), before=TEXTS, after=st.one_of(TEXTS, st.none()), n=st.integers(1, 2))
@steady
def test_llama_cpp(world: World, drawn: dict[str, Any], before: str, after: str | None, n: int) -> None:
    client, local = world
    fields = asked(local, drawn)
    most, _ = max(fields.pop("max_tokens"), 1), fields.pop("min_tokens")
    path = "/completion" if after is None else "/infill"
    text = {"prompt": before} if after is None else {"input_prefix": before, "input_suffix": after}
    body = {**fields, **text, "n_predict": most, "n_cmpl": n, "n_probs": 2}
    answers = answered(client, path, {**body, "return_tokens": True})
    parts = streamed(client, path, body)
    for number, whole in enumerate(answers if n > 1 else [answers]):
        *own, last = [part for part in parts if part["index"] == number]
        assert "".join(part["content"] for part in own) == whole["content"]
        assert [i for part in own for i in part["tokens"]] == whole["tokens"]
        assert last["tokens_predicted"] == whole["tokens_predicted"]
        assert whole["tokens_predicted"] == len(whole["tokens"]) + (whole["stop_type"] == "eos")
        probabilities = [p for part in own for p in part["completion_probabilities"]]
        assert probabilities == whole.get("completion_probabilities", [])
        assert "completion_probabilities" not in last
        joined = b"".join(bytes(p["bytes"]) for p in probabilities).decode("utf-8", "replace")
        assert joined.startswith(whole["content"]) if whole["stop_type"] == "word" else joined == whole["content"]
        for found in probabilities:
            assert all(t["bytes"] == found["bytes"] for t in found["top_logprobs"] if t["id"] == found["id"])


@given(drawn=drawing(), before=TEXTS, after=TEXTS, of_ollama=st.booleans())
@steady
def test_mistral_s_and_ollama_s_fills(
    world: World, drawn: dict[str, Any], before: str, after: str, of_ollama: bool
) -> None:
    client, local = world
    fields = asked(local, drawn)
    fields["max_tokens"] += 1
    body: dict[str, Any] = {"prompt": before, "suffix": after, "logprobs": True, "top_logprobs": 2}
    if of_ollama:
        options = {**fields, "num_predict": fields["max_tokens"]}
        path, body = "/api/generate", {**body, "prompt": before or "a", "options": options}
        whole = answered(client, path, {**body, "stream": False})
        parts = [json.loads(line) for line in client.post(path, json=body).text.splitlines()]
        text, found = whole["response"], whole["logprobs"]
        texts, lists = [p["response"] for p in parts], [p.get("logprobs", []) for p in parts]
        assert (parts[-1]["eval_count"], parts[-1]["done_reason"]) == (whole["eval_count"], whole["done_reason"])
        assert whole["eval_count"] == computed(local.results)
    else:
        path = "/v1/fim/completions"
        body |= {**fields, "random_seed": fields["seed"]}
        whole = answered(client, path, body)
        (choice,), parts = whole["choices"], streamed(client, path, body)
        text, found = choice["message"]["content"], choice["logprobs"]["content"]
        texts = [p["choices"][0]["delta"]["content"] for p in parts]
        lists = [p["choices"][0]["logprobs"]["content"] for p in parts]
        assert counts(parts[-1]["usage"]) == counts(whole["usage"])
        assert whole["usage"]["completion_tokens"] == computed(local.results)
        assert parts[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert "".join(texts) == text
    assert [entry for entries in lists for entry in entries] == found
    joined = b"".join(bytes(entry["bytes"]) for entry in found).decode("utf-8", "replace")
    assert joined == text or (drawn["stop"] and joined.startswith(text))


@given(
    drawn=drawing(),
    texts=st.lists(TEXTS, min_size=2, max_size=3),
    more=st.sampled_from(
        [{}, {"n": 2}, {"strategy": "parallel"}, {"order": "confident"}, {"choices": ["é the", "\ufffd", " a"]},
         {"num_beams": 2, "temperature": 0}, {"num_beams": 2, "n": 2, "temperature": 0, "strategy": "parallel"}]
    ),
)  # fmt: skip
@steady
def test_native_infill(world: World, drawn: dict[str, Any], texts: list[str], more: dict[str, Any]) -> None:
    client, local = world
    segments = [part for text in texts for part in (text, {"mask": "[MASK]"})][:-1]
    fields = asked(local, {**drawn, "max_tokens": drawn["max_tokens"] + 1})
    if "choices" in more:
        fields |= {"max_tokens": 30, "min_tokens": 0}
    body = {**fields, "segments": segments, "logprobs": 1, **more}
    whole = answered(client, "/v1/infill", body)
    assert whole["usage"]["completion_tokens"] == computed(local.results)
    *events, done = streamed(client, "/v1/infill", body)
    assert counts(done["usage"]) == counts(whole["usage"])
    for result in whole["results"]:
        for blank in result["blanks"]:
            own = [e for e in events if e.get("index") == result["index"] and e.get("blank") == blank["index"]]
            assert "".join(e["text"] for e in own) == blank["text"]
            ids = [i for e in own for i in e["token_ids"]]
            assert ids == blank["token_ids"][: len(ids)]
            assert_offsets_index(blank["text"], blank["tokens"], blank["text_offsets"])
            is_cut = blank["stop_string"] is not None
            assert_is_joined(local, blank["text"].lstrip(" "), local.spelled(blank["token_ids"], True), is_cut)
