"""What an answer says that it took: each token whose log-probability was computed for it, the end tokens too.

So count vLLM (entrypoints/openai/serving_completion.py: the lengths of `output.token_ids`, which hold the end token)
and llama.cpp (server: `n_decoded` grows with each sampled token, before it looks whether that is the end).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta, BlankDone, Done, ResultDone
from engine.requests import Fill, Request, RequestError, Sampling, Score
from tests.answers import wire
from tests.engine.test_engine import segments

THREE = "the river [MASK] under a bridge and the [MASK] sang of a [MASK]"


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    return Engine(EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01, threads=1))


def answer(engine: Engine, request: Request) -> tuple[list[dict[str, Any]], Done]:
    *events, done = engine.run(request)
    assert isinstance(done, Done), done
    return [wire(e.result) for e in events if isinstance(e, ResultDone)], done


def logprobs(results: list[dict[str, Any]]) -> int:
    """How many tokens of an answer have a log-probability."""
    parts = [part for result in results for part in result.get("blanks") or result["spans"]]
    return sum(len(part["token_logprobs"]) + (part["end_logprob"] is not None) for part in parts)


def ending(engine: Engine, amount: float = 100.0) -> Sampling:
    """Draws the end token as soon as it may."""
    return Sampling(logit_bias={engine.tokenizer.eop: amount})


@pytest.mark.parametrize("min_tokens", [0, 1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_the_end_token_counts_also_where_it_comes_first(engine: Engine, min_tokens: int, stream: bool) -> None:
    fill = Fill((segments("the [MASK]"),), (8,), (min_tokens,), ending(engine), stream=stream)
    _, done = answer(engine, fill)
    assert done.usage.completion_tokens == min_tokens + 1
    assert done.usage.total_tokens == done.usage.prompt_tokens + min_tokens + 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(["plain", "several", "beams", "choices", "regex", "stop", "confident", "echo"]),
    bias=st.sampled_from([-100.0, 0.0, 6.0, 100.0]),
    drawn=st.fixed_dictionaries(
        {
            "strategy": st.sampled_from(["append", "reencode", "parallel"]),
            "min_tokens": st.tuples(st.integers(0, 2)),
            "stream": st.booleans(),
        }
    ),
)
def test_usage_is_the_number_of_log_probabilities(
    engine: Engine, shape: str, bias: float, drawn: dict[str, Any]
) -> None:
    sampling = replace(ending(engine, bias), temperature=1.0, seed=5)
    fill = Fill((segments(THREE),), max_tokens=(4,), sampling=sampling, **drawn)
    greedy = replace(sampling, temperature=0.0)
    fill = {
        "plain": fill,
        "several": replace(fill, inputs=(segments(THREE), segments("a [MASK]")), n=2),
        "beams": replace(fill, inputs=(segments("a [MASK]"),), num_beams=3, n=2, sampling=greedy),
        "choices": replace(fill, choices=(("red boat", "cat"), None, ("hill",)), min_tokens=(0,), max_tokens=(20,)),
        "regex": replace(fill, regex=("(red|blue)", None, "a+"), min_tokens=(0,)),
        "stop": replace(fill, sampling=replace(sampling, stop=(" ", "a"))),
        "confident": replace(fill, order="confident", strategy=None),
        "echo": replace(fill, inputs=(("the old cat",), ("",)), echo=True, logprobs=1, strategy=None),
    }[shape]
    events = engine.run(fill)
    done = events[-1]
    assert isinstance(done, Done)
    results = [wire(e.result) for e in events if isinstance(e, ResultDone)]
    assert done.usage.completion_tokens == logprobs(results) > 0
    sent = sum(len(e.token_ids) for e in events if isinstance(e, BlankDelta))
    told = [e.blank for e in events if isinstance(e, BlankDone)]
    assert sent > 0 or bias == 100.0 or shape in ("beams", "stop") or not fill.stream
    assert bool(told) == fill.stream


@pytest.mark.parametrize("orders", ["left_to_right", "all"])
@pytest.mark.parametrize("include_end", [False, True])
def test_a_score_counts_each_token_and_end_once_in_whatever_many_orders(
    engine: Engine, orders: str, include_end: bool
) -> None:
    spans = (("red", "blue boat", "cat"), ("a", "b", "the old hill"))
    score = Score(text=segments(THREE), spans=spans, orders=orders, include_end=include_end)
    results, done = answer(engine, score)
    assert done.usage.completion_tokens == logprobs(results)
    assert done.usage.completion_tokens == sum(len(s["token_ids"]) + 1 for r in results for s in r["spans"])


def test_an_empty_span_is_worth_its_end(engine: Engine) -> None:
    """log p(end | start), which is what a fill that ends at once reports."""
    text = segments("the [MASK] sang")
    results, done = answer(engine, Score(text=text, spans=(("sea",), ("",)), include_end=True))
    fill = Fill((text,), (4,), (0,), ending(engine))
    (ended,), _ = answer(engine, fill)
    assert results[1]["logprob"] == results[1]["spans"][0]["end_logprob"] == ended["blanks"][0]["end_logprob"]
    assert results[1]["spans"][0]["token_ids"] == []
    assert (results[1]["num_tokens"], results[1]["spans"][0]["logprob"]) == (1, results[1]["logprob"])
    assert done.usage.completion_tokens == results[0]["num_tokens"] + 1
    (alone,), _ = answer(engine, Score(context=segments("the"), targets=("",), include_end=True, normalize="token"))
    assert alone["normalized"] == alone["logprob"] < 0


def test_an_empty_span_in_several_is_the_end_between_two_others(engine: Engine) -> None:
    (result,), _ = answer(engine, Score(text=segments(THREE), spans=(("red", "", "cat"),), include_end=True))
    total = sum(s["logprob"] for s in result["spans"])
    assert result["logprob"] == pytest.approx(total, abs=1e-5)
    assert [len(s["token_ids"]) > 0 for s in result["spans"]] == [True, False, True]


@pytest.mark.parametrize(
    ("request_", "member"),
    [
        (Score(text=segments("a [MASK]"), spans=(("b",), ("",))), "candidate 1: an empty"),
        (Score(text=segments("a [MASK] [MASK]"), spans=(("b", "c"), ("d", ""))), "candidate 1: blank 1: an empty"),
        (Score(text=segments("a [MASK] [MASK]"), spans=(("b", ""),)), "blank 1: an empty"),
        (Score(text=segments("a [MASK]"), spans=(("b",), ("c", "d"))), "text has 1 blanks, candidate 1 has 2"),
        (Score(context=segments("a"), targets=("b", "c", "word " * 2000)), "candidate 2: "),
        (Fill((segments("a [MASK]"), segments("word " * 2000))), "input 1: the text has"),
        (Fill((segments("a [MASK]"), segments("a"), segments("[MASK][MASK]")), order=(0,)), "input 2: order"),
        (Fill((("a",), ("word " * 2000,)), max_tokens=(0,), echo=True), "input 1: the text has"),
        (Fill((segments("[MASK][MASK]"),), choices=(None, ("a", ""))), "blank 1: choice 1: the choice '' has"),
        (Fill((segments("[MASK][MASK]"),), (1,), choices=(("a red boat", "b"), None)), "blank 0: choice 0: the"),
        (Fill((segments("[MASK][MASK]"),), regex=("a", "(")), "pattern 1: "),
        (Fill((segments("the [MASK]"),), regex=("(",)), "regex cannot be used"),
    ],
)
def test_what_is_wrong_with_one_of_several_is_named_by_its_index(
    engine: Engine, request_: Request, member: str
) -> None:
    with pytest.raises(RequestError) as caught:
        engine.run(request_)
    assert caught.value.message.startswith(member), caught.value.message
    assert engine.idle


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_prompt_is_scored_like_others(engine: Engine, stream: bool) -> None:
    fill = Fill((("",), ("a",)), max_tokens=(0,), echo=True, logprobs=1, stream=stream)
    (empty, other), done = answer(engine, fill)
    assert empty["echo"] == {name: [] for name in empty["echo"]}
    assert empty["blanks"][0]["finish_reason"] == "length"
    assert len(other["echo"]["token_logprobs"]) == 1
    assert done.usage.completion_tokens == 0
    (written,), _ = answer(engine, replace(fill, inputs=(("",),), max_tokens=(2,), min_tokens=(2,)))
    (plain,), _ = answer(engine, Fill(((),), (2,), (2,)))
    assert written["blanks"][0]["token_ids"] == plain["blanks"][0]["token_ids"]
