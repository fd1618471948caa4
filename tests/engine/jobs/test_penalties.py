"""Penalties against transformers' logits processors, vLLM's rule and the values in llama.cpp's own tests."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from engine.config import EngineConfig
from engine.engine import Engine
from engine.jobs.sampler import Sampler
from engine.requests import Fill, Sampling
from engine.runner import Runner
from model.attention import DenseAttention, visible
from model.layout import Layout
from model.network import Network
from tests.engine.test_engine import next_logprobs, results, segments
from tests.engine.test_families import engines, words  # noqa: F401

SIZE = 12
FREE = np.zeros(SIZE, np.float32)
TWO = "the river [MASK] under a bridge and the [MASK] sang"
Ids = st.lists(st.integers(0, SIZE - 1), max_size=20)
Logits = st.lists(st.floats(-30, 30, width=32), min_size=SIZE, max_size=SIZE)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    return Engine(EngineConfig(str(tiny_checkpoint()), quant="none", kv_cache_gb=0.01))


def network(engine: Engine) -> Network:
    assert isinstance(engine.runner, Runner)
    return engine.runner.model


def row_of(logits: torch.Tensor) -> Any:
    """Logits as the runner gives them: log-probabilities, and by how much the logits are greater."""
    logprobs = torch.log_softmax(logits, -1)
    return torch.cat([logprobs, (logits - logprobs)[:1]]).numpy()


def weighed(sampling: Sampling, logits: torch.Tensor, context: list[int], blank: list[int], banned: Any = ()) -> Any:
    sampler = Sampler(sampling, FREE, 0)
    sampler.read(context)
    return sampler.weighed(row_of(logits), blank, banned)


@given(Logits, Ids, Ids, st.sampled_from([0.5, 1.1, 1.3, 2.0, 50.0]))
def test_a_repetition_penalty_is_transformers_over_text_and_blank(
    values: list[float], context: list[int], blank: list[int], penalty: float
) -> None:
    logits = torch.tensor(values)
    expected = logits
    if context or blank:
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        expected = processor(torch.tensor([[*context, *blank]]), logits[None].clone())[0]
    found = weighed(Sampling(rules={"repetition_penalty": penalty}), logits, context, blank)
    assert found == pytest.approx(expected.numpy(), abs=1e-4 * penalty, rel=1e-4)


@given(Logits, Ids, Ids, st.integers(0, 5), st.dictionaries(st.integers(0, SIZE - 1), st.floats(-5, 5), max_size=4))
def test_bias_penalty_and_least_length_act_in_transformers_order(
    values: list[float], context: list[int], blank: list[int], least: int, bias: dict[int, float]
) -> None:
    """In the order of transformers 5.24's `_get_logits_processor`."""
    logits = torch.tensor(values)
    ids = torch.tensor([[0, *context, *blank]])
    processors = LogitsProcessorList()
    if bias:
        processors.append(SequenceBiasLogitsProcessor(cast(Any, {(token,): value for token, value in bias.items()})))
    processors.append(RepetitionPenaltyLogitsProcessor(1.3))
    processors.append(MinNewTokensLengthLogitsProcessor(1 + len(context), least, [7, 8]))
    expected = processors(cast(Any, ids), cast(Any, logits[None].clone()))[0]
    sampling = Sampling(rules={"repetition_penalty": 1.3}, logit_bias=bias)
    banned = (7, 8) if len(blank) < least else ()
    found = weighed(sampling, logits, [0, *context], blank, banned)
    assert found == pytest.approx(expected.numpy(), abs=1e-4, rel=1e-4)


@given(Logits, Ids, Ids)
def test_presence_and_frequency_count_the_blank_only_as_in_vllm(
    values: list[float], context: list[int], blank: list[int]
) -> None:
    """vLLM's `apply_penalties`: repetition over prompt and output first, then what the output's counts take off."""
    logits = torch.tensor(values)
    counts = torch.bincount(torch.tensor(blank, dtype=torch.int64), minlength=SIZE)
    is_met = torch.bincount(torch.tensor([*context, *blank], dtype=torch.int64), minlength=SIZE) > 0
    factors = torch.where(is_met, 1.3, 1.0)
    expected = torch.where(logits > 0, logits / factors, logits * factors)
    expected = expected - 0.25 * counts - 0.5 * (counts > 0)
    rules = {"repetition_penalty": 1.3, "frequency_penalty": 0.25, "presence_penalty": 0.5}
    assert weighed(Sampling(rules=rules), logits, context, blank) == pytest.approx(expected.numpy(), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize(
    ("tokens", "penalties", "expected"),
    [
        ([0], (50.0, 0.0, 0.0), [0, 0.25, 0.25, 0.25, 0.25]),
        ([0, 1, 2], (50.0, 0.0, 0.0), [0, 0, 0, 0.5, 0.5]),
        ([0, 1, 2, 0, 0], (50.0, 0.0, 0.0), [0, 0, 0, 0.5, 0.5]),
        ([0], (1.0, 5.0, 5.0), [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
        ([0, 1, 2], (1.0, 5.0, 5.0), [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
        ([0, 1, 2, 0, 0], (1.0, 5.0, 5.0), [0.0, 0.000023, 0.000023, 0.499977, 0.499977]),
    ],
)
@pytest.mark.parametrize("read", [0, 1, 2, 9])
def test_over_the_last_tokens_penalties_are_llama_cpp_s(
    tokens: list[int], penalties: tuple[float, float, float], expected: list[float], read: int
) -> None:
    """The values of llama.cpp's tests/test-sampling.cpp, whose logits are log(0.2); however the tokens fall to the
    text and the blank, and with others before them that the window leaves out."""
    repeat, frequency, presence = penalties
    rules = {"repetition_penalty": repeat, "frequency_penalty": frequency, "presence_penalty": presence}
    sampler = Sampler(Sampling(rules=rules, repeat_last_n=len(tokens)), np.zeros(5, np.float32), 0)
    all_read = [4, 3, 4, *tokens]
    sampler.read(all_read[: 3 + read])
    scores = sampler.weighed(row_of(torch.full((5,), math.log(0.2))), all_read[3 + read :], ())
    assert torch.softmax(torch.tensor(scores), 0).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_window_of_no_tokens_has_no_penalties() -> None:
    logits = torch.linspace(-3, 4, SIZE)
    rules = {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "presence_penalty": 1.0}
    assert weighed(Sampling(rules=rules, repeat_last_n=0), logits, [1, 2], [3]) == pytest.approx(logits.numpy())


def next_logits(model: Network, part: Layout, rows: list[tuple[int, int, int]]) -> torch.Tensor:
    """Logits behind `rows`, computed from scratch."""
    ids = [*part.token_ids, *(r[0] for r in rows)]
    positions = [*range(len(part)), *(r[1] for r in rows)]
    blocks = [*(0 for _ in part.token_ids), *(r[2] for r in rows)]
    mask = visible(len(ids), torch.tensor([len(part)]))
    with torch.no_grad():
        hidden = model(*(torch.tensor([v]) for v in (ids, positions, blocks)), DenseAttention(mask))
        return model.logits(hidden[0, -1:])[0]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 3.0])
def test_a_greedy_fill_is_transformers_processor_on_the_network_s_own_logits(engine: Engine, penalty: float) -> None:
    """Two blanks on one sequence: the second one sees the first, and so does its penalty."""
    model, tokenizer = network(engine), engine.tokenizer
    part = engine.job_context.lay_out(segments(TWO), "text")
    processor, never = RepetitionPenaltyLogitsProcessor(penalty), torch.tensor(engine.job_context.logit_mask)
    rows: list[tuple[int, int, int]] = []
    expected: list[list[tuple[int, float]]] = []
    for place in part.blanks:
        token, found = place.start, []
        for number in range(9):
            rows.append((token, *place.place(number)))
            if number == 8:
                break
            logits = next_logits(model, part, rows)
            ids = torch.tensor([[*part.token_ids, *(r[0] for r in rows)]])
            scores = processor(ids, logits[None].clone())[0] + never
            scores[list(tokenizer.ends)] = -math.inf
            token = int(scores.argmax())
            found.append((token, float(torch.log_softmax(logits, -1)[token])))
        expected.append(found)
    rules = {} if penalty == 1 else {"repetition_penalty": penalty}
    fill = Fill((segments(TWO),), (8,), (8,), Sampling(rules=rules), logprobs=3)
    (result,) = results(engine.run(fill))
    for blank, tokens in zip(result["blanks"], expected, strict=True):
        assert blank["token_ids"] == [token for token, _ in tokens]
        assert blank["token_logprobs"] == pytest.approx([logprob for _, logprob in tokens], abs=1e-4)
        for top in blank["top_logprobs"]:
            assert all(t["token_id"] < len(never) and t["logprob"] <= 0 for t in top)


def test_log_probabilities_have_the_same_bits_with_and_without_a_penalty(engine: Engine) -> None:
    """The first token is the same, since the penalty is mild; what is told of it is the model's own number."""
    text = (segments("one day the [MASK] came"),)
    plain, mild = (
        results(engine.run(Fill(text, (1,), (1,), Sampling(rules=rules), logprobs=5)))[0]["blanks"][0]
        for rules in ({}, {"repetition_penalty": 1.0001})
    )
    assert plain == mild


def test_a_beam_search_weighs_log_probabilities_as_transformers_does(engine: Engine) -> None:
    """transformers' `generate` hands its processors log-probabilities there."""
    text = "one day the [MASK] came"
    part = engine.job_context.lay_out(segments(text), "text")
    (place,) = part.blanks
    logprobs = next_logprobs(network(engine), part, [(place.start, *place.place(0))])
    ids = torch.tensor([[*part.token_ids, place.start]])
    scores = RepetitionPenaltyLogitsProcessor(5.0)(ids, logprobs[None].clone())[0]
    scores = scores + torch.tensor(engine.job_context.logit_mask)
    scores[list(engine.tokenizer.ends)] = -math.inf
    sampling = Sampling(rules={"repetition_penalty": 5.0})
    found = results(engine.run(Fill((segments(text),), (1,), (1,), sampling, n=4, num_beams=4)))
    assert [r["blanks"][0]["token_ids"][0] for r in found] == scores.topk(4).indices.tolist()


def test_a_masked_model_s_penalty_counts_its_text(engines: dict[str, Engine]) -> None:  # noqa: F811
    """What the text has already is divided away: nothing of it is drawn."""
    engine, text = engines["bert"], words((40, 7))
    inputs = (segments(f"{text} [MASK] w33"),)
    (plain,) = results(engine.run(Fill(inputs, logprobs=20)))
    (token_id,) = plain["blanks"][0]["token_ids"]
    again = (segments(f"w{token_id} {text} [MASK] w33"),)
    sampling = Sampling(rules={"repetition_penalty": 100.0})
    (punished,) = results(engine.run(Fill(again, sampling=sampling)))
    assert punished["blanks"][0]["token_ids"][0] not in {token_id, 40, 7, 33}


class TestEnds:
    """Stop tokens, ends that are ignored, and stops that are kept."""

    def filled(self, engine: Engine, length: int = 8, **sampling: Any) -> dict[str, Any]:
        fill = Fill((segments("one day the [MASK] came"),), (length,), sampling=Sampling(**sampling))
        (result,) = results(engine.run(fill))
        found: dict[str, Any] = result["blanks"][0]
        return found

    def plain(self, engine: Engine) -> dict[str, Any]:
        return self.filled(engine, ignore_eos=True)

    def test_an_ignored_end_never_comes(self, engine: Engine) -> None:
        (end, *_) = engine.tokenizer.ends
        assert self.filled(engine, logit_bias={end: 100.0})["token_ids"] == []
        blank = self.filled(engine, logit_bias={end: 100.0}, ignore_eos=True)
        assert (len(blank["token_ids"]), blank["finish_reason"]) == (8, "length")

    def test_a_stop_token_ends_a_blank_with_or_without_it(self, engine: Engine) -> None:
        plain = self.plain(engine)
        at = 3
        stop = plain["token_ids"][at]
        first = plain["token_ids"].index(stop)
        blank = self.filled(engine, ignore_eos=True, stop_token_ids=(stop,))
        assert (blank["token_ids"], blank["finish_reason"]) == (plain["token_ids"][:first], "stop")
        assert blank["end_logprob"] == plain["token_logprobs"][first]
        kept = self.filled(engine, ignore_eos=True, stop_token_ids=(stop,), include_stop=True)
        assert (kept["token_ids"], kept["finish_reason"]) == (plain["token_ids"][: first + 1], "stop")
        assert kept["end_token"] is None

    def test_a_stop_token_waits_for_the_least_length(self, engine: Engine) -> None:
        stop = self.plain(engine)["token_ids"][0]
        sampling = Sampling(ignore_eos=True, stop_token_ids=(stop,), logit_bias={stop: 100.0})
        fill = Fill((segments("one day the [MASK] came"),), (8,), (5,), sampling)
        (result,) = results(engine.run(fill))
        blank = result["blanks"][0]
        assert len(blank["token_ids"]) == 5
        assert stop not in blank["token_ids"]

    def test_a_beam_ends_at_a_stop_token(self, engine: Engine) -> None:
        stop = self.plain(engine)["token_ids"][1]
        sampling = Sampling(ignore_eos=True, stop_token_ids=(stop,))
        fill = Fill((segments("one day the [MASK] came"),), (4,), sampling=sampling, num_beams=4, n=4)
        blanks = [r["blanks"][0] for r in results(engine.run(fill))]
        assert all(stop not in b["token_ids"] for b in blanks)
        assert {b["finish_reason"] for b in blanks} <= {"stop", "length"}
        assert any(b["finish_reason"] == "stop" for b in blanks)

    def test_a_stop_string_is_kept_if_asked(self, engine: Engine) -> None:
        text = self.plain(engine)["text"]
        stop = text[2:4]
        at = text.index(stop)
        assert self.filled(engine, ignore_eos=True, stop=(stop,))["text"] == text[:at]
        kept = self.filled(engine, ignore_eos=True, stop=(stop,), include_stop=True)
        assert (kept["text"], kept["stop_string"]) == (text[: at + 2], stop)
