"""Scores computed elsewhere, by a plain forward, from nothing but what a reading says; and what a reading counts.

The networks are those of the goldens, which `tests/model/test_references.py` holds to their references.
"""

import itertools
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Done, ResultDone
from engine.requests import Fill, Request, RequestError, Score, Tokens
from model.attention import DenseAttention, visible
from model.checkpoint import Checkpoint
from model.config import Config
from model.families import family_of
from tests.answers import wire
from tests.engine.test_engine import segments
from tests.engine.test_families import ENDS, SPECIAL, NumberedWords
from tests.model.test_references import TOLERANCE, config_of, golden, read

Engines = dict[str, Engine]
CAUSAL = "glm4"
FILES = ("glm_sat", "glm130b_sat", "chatglm_sat", "glm4")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    made = {}
    for file in (*FILES, "bert"):
        model = read(tmp_path_factory.mktemp(file), config_of(file), golden(file, "weights")).requires_grad_(False)
        tokenizer = NumberedWords(SPECIAL[file], model.architecture.vocab_size, ENDS.get(file, ("eop", "eos")))
        checkpoint = Checkpoint(file, family_of(Config(config_of(file))), model, tokenizer)
        made[file] = Engine(EngineConfig(kv_cache_gb=0.01, threads=1), checkpoint)
    return made


def answer(engine: Engine, request: Request) -> tuple[list[dict[str, Any]], Done]:
    *events, done = engine.run(request)
    assert isinstance(done, Done), done
    return [wire(e.result) for e in events if isinstance(e, ResultDone)], done


def forward(engine: Engine, rows: list[tuple[int, int, int]], num_context: int) -> torch.Tensor:
    """Log-probabilities [rows, vocab_size] after rows of token, position, block position."""
    tokens, positions, blocks = (torch.tensor([column]) for column in zip(*rows, strict=True))
    mask = visible(len(rows), torch.tensor([num_context]))
    with torch.no_grad():
        hidden = engine.runner.model(tokens, positions, blocks, DenseAttention(mask))  # type: ignore[union-attr]
        return torch.log_softmax(engine.runner.model.logits(hidden[0]), -1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("file", "text", "spans"),
    [
        ("glm_sat", "w11 [MASK] w40 [MASK] w62 w9 w33", (("w25 w71", "w8"), ("w3", "w4 w5 w6"))),
        ("glm_sat", "w70 w28 [gMASK]", (("w25 w71 w8",),)),
        ("glm130b_sat", "w11 w40 [MASK] w62 w9", (("w25 w71 w8",),)),
        ("glm130b_sat", "w11 w40 [gMASK]", (("w25 w71 w8",),)),
        ("chatglm_sat", "[MASK] w14 w52 [MASK] w77", (("w60 w12", "w31 w31 w87"),)),
        ("glm4", "w11 w12 w13 [gMASK]", (("w25 w71 w8",),)),
        ("glm4", "w11 w12 [MASK] w13", (("w25 w71",),)),
    ],
)
def test_a_score_can_be_computed_from_a_reading(
    engines: Engines, file: str, text: str, spans: tuple[tuple[str, ...], ...]
) -> None:
    engine = engines[file]
    (reading,) = wire(engine.read(Fill((segments(text),)), scored=True))
    results, done = answer(engine, Score(text=segments(text), spans=spans, include_end=True))
    assert done.usage.prompt_tokens == reading["num_tokens"]
    for result in results:
        blanks = reading["blanks"]
        assert ("context" in blanks[0]) == (file == CAUSAL)
        ids = blanks[0].get("context", reading["token_ids"])
        places = range(len(ids)) if file == CAUSAL else reading["positions"]
        assert file == CAUSAL or not any(reading["block_positions"])
        rows = [(token, position, 0) for token, position in zip(ids, places, strict=True)]
        num_context, begins = len(rows), []
        for blank, span in zip(blanks, result["spans"], strict=True):
            begins.append(len(rows))
            rows += [
                (
                    token,
                    blank["position"] + number * blank["position_step"],
                    blank["block_position"] + number * blank["block_position_step"],
                )
                for number, token in enumerate([blank["start_token_id"], *span["token_ids"]])
            ]
        logprobs = forward(engine, rows, 0 if file == CAUSAL else num_context)
        for begin, span in zip(begins, result["spans"], strict=True):
            expected = [float(logprobs[begin + n][token]) for n, token in enumerate(span["token_ids"])]
            assert span["token_logprobs"] == pytest.approx(expected, abs=TOLERANCE)
            end = float(logprobs[begin + len(expected)][engine.tokenizer.ends[0]])
            assert span["end_logprob"] == pytest.approx(end, abs=TOLERANCE)


def test_a_masked_model_s_score_too(engines: Engines) -> None:
    engine, text = engines["bert"], "w11 [MASK] w13 [MASK] w15"
    (reading,) = wire(engine.read(Fill((segments(text),)), scored=True))
    results, _ = answer(engine, Score(text=segments(text), spans=(("w20", "w30"),)))
    rows = list(zip(reading["token_ids"], reading["positions"], reading["block_positions"], strict=True))
    logprobs = forward(engine, rows, len(rows))
    for blank, span in zip(reading["blanks"], results[0]["spans"], strict=True):
        assert (blank["position_step"], blank["block_position_step"]) == (0, 0)
        expected = float(logprobs[blank["position"]][span["token_ids"][0]])
        assert span["token_logprobs"] == pytest.approx([expected], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("file", "first", "last"), [("glm_sat", 1, -1), ("glm130b_sat", 0, -1), ("chatglm_sat", 0, -1), ("glm4", 2, None)]
)
def test_a_prompt_counts_the_reference_s_own_tokens(engines: Engines, file: str, first: int, last: int | None) -> None:
    """The references' inputs: special tokens around a text, and of a causal model the start token."""
    context = golden("glm_greedy" if file == "glm_sat" else file, "greedy")["context"].tolist()
    text = " ".join(f"w{i}" for i in context[first:last])
    _, done = answer(engines[file], Fill((segments(f"{text} [gMASK]"),), max_tokens=(1,)))
    assert done.usage.prompt_tokens == len(context)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["text", "mask", "open mask", "ids", "framed ids", "a start token first", "nothing"])
def test_a_prompt_counts_the_same_however_it_is_asked(engines: Engines, file: str, kind: str) -> None:
    engine = engines[file]
    special = engine.tokenizer.special
    words = [11, 12, 13]
    around = [special[role] for role in (("gmask", "sop") if file == CAUSAL else ("cls",)) if role in special]
    prompt: Any = {
        "text": "w11 w12 w13",
        "mask": "w11 [gMASK]" if file == CAUSAL else "w11 [MASK] w13",
        "open mask": "w11 w12 [gMASK]",
        "ids": Tokens(tuple(words)),
        "framed ids": Tokens((*around, *words)) if file != CAUSAL else Tokens(tuple(words)),
        "a start token first": Tokens((special["sop"], *words)),
        "nothing": "",
    }[kind]
    plain = segments(prompt) if isinstance(prompt, str) else (prompt,)
    asked = [
        Fill((plain,), max_tokens=(1,)),
        Fill((plain,), max_tokens=(5,), logprobs=2),
        Fill(((prompt,),), max_tokens=(0,), echo=True, logprobs=1),
        Fill(((prompt,),), max_tokens=(3,), echo=True, logprobs=0),
        Fill(((prompt,),), max_tokens=(3,), echo=True, logprobs=0, stream=True, n=2),
    ]
    counts = {answer(engine, fill)[1].usage.prompt_tokens for fill in asked}
    counts |= {reading.num_tokens for reading in engine.read(Fill((plain,), max_tokens=(0,)))}
    assert len(counts) == 1, counts
    num_special = {"glm_sat": 2, "glm130b_sat": 1, "chatglm_sat": 1, "glm4": 2}[file]
    expected = {"mask": None, "open mask": 2, "nothing": 0}.get(kind, 3)
    if expected is not None:
        assert counts == {expected + num_special}


def test_a_batch_names_the_text_that_cannot_be_read(engines: Engines) -> None:
    engine = engines["glm_sat"]
    texts = (("w11",), (Tokens((10**6,)),))
    for ask in (engine.read, engine.run):
        with pytest.raises(RequestError, match=r"^input 1: token 1000000 is outside") as error:
            ask(Fill(texts))
        assert error.value.param == "text"
    with pytest.raises(RequestError, match=r"^token 1000000 is outside"):
        engine.read(Fill(texts[1:]))


def test_pieces_are_bytes_and_entries(engines: Engines) -> None:
    engine = engines["glm_sat"]
    found = engine.pieces([25, engine.tokenizer.sop])
    assert [(bytes(p.data).decode(), p.token_id) for p in found] == [(" w25", 25), ("[sop]", engine.tokenizer.sop)]
    assert list(itertools.chain(*(p.data for p in engine.pieces([1, 2])))) == [*b" w1 w2"]
    with pytest.raises(RequestError, match="outside the vocabulary"):
        engine.pieces([10**6])
