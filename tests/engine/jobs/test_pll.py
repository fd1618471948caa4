"""Pseudo-log-likelihoods of a masked language model against minicons 0.3.39 (golden/make_pll_minicons.py)."""

import json
from typing import Any

import pytest
from safetensors.torch import save_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Mask, RequestError, Score
from tests.answers import wire
from tests.model.test_references import golden, metadata

GOLDEN = "pll_minicons"
TEXTS = metadata(GOLDEN)["texts"]
TOLERANCE = 1e-5
BLANK = ("the ", Mask("[MASK]"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder, facts = tmp_path_factory.mktemp("bert"), metadata(GOLDEN)
    (folder / "config.json").write_text(json.dumps(facts["config"]))
    (folder / "vocab.txt").write_text("\n".join(facts["vocab"]))
    save_file(golden(GOLDEN, "weights"), folder / "model.safetensors")
    return Engine(EngineConfig(str(folder), kv_cache_gb=0.001))


def scored(engine: Engine, score: Score) -> dict[str, Any]:
    (result,) = (wire(event.result) for event in engine.run(score) if isinstance(event, ResultDone))
    return dict(result)


@pytest.mark.parametrize("number", range(len(TEXTS)))
@pytest.mark.parametrize("pll", ["original", "word_l2r"])
def test_tokens_of_a_text_are_minicons(engine: Engine, pll: Any, number: int) -> None:
    result = scored(engine, Score(text=(TEXTS[number],), pll=pll))
    wanted = golden(GOLDEN, pll)[str(number)].tolist()
    (span,) = result["spans"]
    assert span["token_ids"] == golden(GOLDEN, "token_ids")[str(number)].tolist()
    assert span["token_logprobs"] == pytest.approx(wanted, abs=TOLERANCE)
    assert result["logprob"] == pytest.approx(sum(wanted), abs=TOLERANCE)


def test_the_measures_differ_where_words_have_several_pieces(engine: Engine) -> None:
    """Else the comparison above would say little."""
    for number, text in enumerate(TEXTS):
        values = [golden(GOLDEN, pll)[str(number)] for pll in ("original", "word_l2r")]
        pieces = [metadata(GOLDEN)["vocab"][i] for i in golden(GOLDEN, "token_ids")[str(number)].tolist()]
        assert (max(abs(values[0] - values[1])) > 0.01) == any(p.startswith("##") for p in pieces), text


def test_the_original_is_the_default(engine: Engine) -> None:
    assert scored(engine, Score(text=(TEXTS[1],))) == scored(engine, Score(text=(TEXTS[1],), pll="original"))


@pytest.mark.parametrize("pll", ["original", "word_l2r"])
def test_a_word_s_surprisal_is_that_of_its_tokens(engine: Engine, pll: Any) -> None:
    (span,) = scored(engine, Score(text=(TEXTS[1],), pll=pll, words=True))["spans"]
    tokens = golden(GOLDEN, pll)["1"].tolist()
    # carl · took · a · souvenir , · un ##aff ##able · souvenir ##s !
    wanted = [tokens[0], tokens[1], tokens[2], sum(tokens[3:5]), sum(tokens[5:8]), sum(tokens[8:])]
    assert [word["text"] for word in span["words"]] == TEXTS[1].split()
    assert [word["logprob"] for word in span["words"]] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("score", "param"),
    [
        (Score(text=BLANK, spans=(("cat",),), pll="word_l2r"), "pll"),
        (Score(context=("the",), targets=("cat",), pll="word_l2r"), "pll"),
    ],
)
def test_it_is_a_measure_of_whole_texts(engine: Engine, score: Score, param: str) -> None:
    with pytest.raises(RequestError, match="pll applies to a whole text") as error:
        engine.prepare(score, "r")
    assert (error.value.param, error.value.code) == (param, "unsupported")
