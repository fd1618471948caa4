"""Fills and scores of every family against the references' goldens: layout, positions, scheduling and all.

A tokenizer whose words are numbered (w12 is token 12) lets a request spell the golden's own sequence.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Done, ResultDone
from engine.requests import Fill, Mask, Request, RequestError, Sampling, Score, Segments, Tokens
from model.attention import DenseAttention, visible
from model.checkpoint import Checkpoint
from model.config import Config
from model.families import family_of
from model.layout import parse
from model.network import Network
from model.tokenizers.interface import Tokenizer
from tests.answers import wire
from tests.model.test_references import TOLERANCE, config_of, golden, read

SPECIAL: dict[str, dict[str, int]] = {
    "glm_sat": dict(zip(("cls", "eos", "mask", "smask", "gmask", "sop", "eop"), range(88, 95), strict=True)),
    "glm130b_sat": {"eos": 2, "mask": 110, "gmask": 111, "smask": 112, "sop": 114, "eop": 115},
    "chatglm_sat": {"mask": 104, "gmask": 105, "smask": 106, "sop": 108, "eop": 109, "eos": 109},
    "glm4": {
        "eos": 105, "mask": 106, "gmask": 107, "smask": 108, "sop": 109, "user": 112, "assistant": 113,
        "observation": 114, "code_prefix": 115, "code_suffix": 116, "code_middle": 117,
    },
    "chatglm2": {
        "unk": 0, "eos": 2, "mask": 104, "gmask": 105, "smask": 106, "sop": 107, "user": 110, "assistant": 111,
        "observation": 112,
    },
    "proteinglm_mlm": {"pad": 0, "mask": 28, "gmask": 29, "smask": 30, "sop": 32, "eop": 33, "eos": 34, "unk": 35},
    "proteinglm_clm": {"pad": 0, "mask": 28, "gmask": 29, "smask": 30, "sop": 32, "eop": 33, "eos": 34, "unk": 35},
    "bert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    "llama": {"eos": 105, "fim_prefix": 106, "fim_suffix": 107, "fim_middle": 108, "bos": 109, "fim_end": 110},
    "qwen2": {"eos": 105, "fim_prefix": 106, "fim_suffix": 107, "fim_middle": 108},
    "starcoder2": {"eos": 105, "fim_prefix": 106, "fim_suffix": 107, "fim_middle": 108, "file_sep": 109},
    "iglm": {"eos": 105, "mask": 106, "sep": 107, "cls": 108},
    "roberta": {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 71},
    "distilbert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    "esm2": {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 32, "null": 31},
    "modernbert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
}  # fmt: skip
FIM = ("llama", "qwen2", "starcoder2", "iglm")
ENCODERS = ("bert", "roberta", "distilbert", "esm2", "modernbert")
MASKED = (*ENCODERS, "proteinglm_mlm")
CAUSAL = ("glm4", "chatglm2", "proteinglm_clm")
ENDS: dict[str, tuple[str, ...]] = {"glm4": ("eos", "user", "observation"), "chatglm2": ("eos", "user", "observation")}
ENDS |= {**dict.fromkeys(MASKED, ()), "proteinglm_clm": ("eos", "eop"), "llama": ("fim_end", "eos"), "qwen2": ("eos",)}
ENDS |= {"starcoder2": ("eos", "file_sep"), "iglm": ("cls", "sep")}


class NumberedWords(Tokenizer):
    """Token n is the word w<n>; other words are token 9."""

    def __init__(self, special: dict[str, int], size: int, ends: Sequence[str]) -> None:
        super().__init__(special, {i: f"[{role}]" for role, i in special.items()}, size, ends)

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) if word[1:].isdigit() else 9 for word in text.split()]

    def text_ids(self) -> list[int]:
        return [i for i in range(self.size) if i not in self.special.values()]

    def opens_text(self, token_id: int) -> bool:
        return True

    def _bytes(self, token_id: int) -> bytes:
        return f" w{token_id}".encode() if token_id in self.text_ids() else b""


Engines = dict[str, Engine]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    made = {}
    for file, special in SPECIAL.items():
        model = read(tmp_path_factory.mktemp(file), config_of(file), golden(file, "weights")).requires_grad_(False)
        tokenizer = NumberedWords(special, model.architecture.vocab_size, ENDS.get(file, ("eop", "eos")))
        checkpoint = Checkpoint(file, family_of(Config(config_of(file))), model, tokenizer)
        made[file] = Engine(EngineConfig(kv_cache_gb=0.01), checkpoint)
    return made


def segments(text: str) -> Segments:
    return tuple(p if isinstance(p, str) else Mask(p[0]) for p in parse(text) if p != "")


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def spelled(ids: Sequence[int], mask: int) -> Segments:
    """The text between the first and the last token."""
    return segments(" ".join("[MASK]" if i == mask else f"w{i}" for i in ids[1:-1]))


def results(engine: Engine, request: Request) -> list[dict[str, Any]]:
    events = engine.run(request)
    assert isinstance(events[-1], Done), events[-1]
    return [wire(e.result) for e in events if isinstance(e, ResultDone)]


@pytest.mark.parametrize("strategy", [None, "parallel"])
@pytest.mark.parametrize(
    ("file", "tokens", "first", "last"),
    [
        ("glm_sat", "glm_greedy", 1, -1),
        ("glm130b_sat", "glm130b_sat", 0, -1),
        ("chatglm_sat", "chatglm_sat", 0, -1),
        ("glm4", "glm4", 2, None),
        ("chatglm2", "chatglm2", 2, None),
        ("proteinglm_clm", "proteinglm_clm", 3, None),
    ],
)
def test_a_greedy_fill_writes_the_reference_s_64_tokens(
    engines: Engines, file: str, tokens: str, first: int, last: int | None, strategy: Any
) -> None:
    expected = golden(tokens, "greedy")
    text = words(expected["context"].tolist()[first:last])
    count = 40 if file == "glm_sat" else 64  # as many as the golden's network has positions for
    fill = Fill((segments(f"{text} [gMASK]"),), max_tokens=(count,), strategy=strategy)
    (result,) = results(engines[file], fill)
    (blank,) = result["blanks"]
    assert blank["token_ids"] == expected["tokens"].tolist()[:count]
    assert blank["token_logprobs"] == pytest.approx(expected["token_logprobs"].tolist()[:count], abs=TOLERANCE)
    # Behind the text of a causal model the first word's own space counts too.
    assert result["text"] == f"{text} {' ' * (file in CAUSAL)}{words(blank['token_ids'])}"


@pytest.mark.parametrize("strategy", [None, "parallel"])
@pytest.mark.parametrize("file", FIM)
def test_a_greedy_fill_between_two_texts_is_the_reference_s(engines: Engines, file: str, strategy: Any) -> None:
    """The prompt of the model's card, laid out by the engine from the text."""
    expected, special = golden(file, "greedy"), SPECIAL[file]
    sentinels = [special[r] for r in (("mask", "sep") if file == "iglm" else ("fim_prefix", "fim_suffix"))]
    context = [i for i in expected["context"].tolist() if i not in (special.get("bos"), special.get("fim_middle"))]
    at = context.index(sentinels[0] if file == "iglm" else sentinels[1])
    before, after = ([i for i in side if i not in sentinels] for side in (context[:at], context[at:]))
    text = f"{words(before)} [MASK] {words(after)}"
    (result,) = results(engines[file], Fill((segments(text),), max_tokens=(64,), strategy=strategy))
    (blank,) = result["blanks"]
    assert blank["token_ids"] == expected["tokens"].tolist()
    assert blank["token_logprobs"] == pytest.approx(expected["token_logprobs"].tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("file", FIM)
def test_a_score_between_two_texts_is_the_reference_s(engines: Engines, file: str) -> None:
    """With the end that training put behind the span."""
    expected, special = golden(file, "infill"), SPECIAL[file]
    text, known = segments("w5 w6 w44 [MASK] w7 w90"), "w20 w86 w20"
    (result,) = results(engines[file], Score(text=text, spans=((known,),), include_end=True))
    first = len(expected["token_ids"]) - 6
    end = special[ENDS[file][0]]
    targets = [20, 86, 20, end]
    wanted = [float(expected["logprobs"][first + n, target]) for n, target in enumerate(targets)]
    span = result["spans"][0]
    assert [*span["token_logprobs"], span["end_logprob"]] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize(("file", "end"), [("llama", "eos"), ("iglm", "sep"), ("qwen2", "eos")])
def test_the_end_of_a_text_is_another_than_that_of_a_middle(engines: Engines, file: str, end: str) -> None:
    expected = golden(file, "plain")
    ids = expected["token_ids"].tolist()
    ids = ids[1:] if file == "llama" else ids
    score = Score(context=(words(ids[:3]),), targets=(words(ids[3:]),), include_end=True)
    (result,) = results(engines[file], score)
    wanted = float(expected["logprobs"][-1, SPECIAL[file][end]])
    assert result["spans"][0]["end_logprob"] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("file", "case", "text", "spans", "order"),
    [
        ("glm_sat", "one_span", "w11 w40 [MASK] w62 w9 w33", ("w25 w71 w8",), (0,)),
        ("glm_sat", "gmask", "w70 w28 w19 w4 w55 w12 w66 w41 [gMASK]", (words(range(10, 60, 3)),), (0,)),
        ("glm130b_sat", "gmask", "w70 w28 w19 w4 w55 w12 w66 w41 [gMASK]", (words(range(10, 60, 5)),), (0,)),
        ("chatglm_sat", "mask", "w44 w80 [MASK] w62 w9 w33 w27", ("w25 w71 w8",), (0,)),
        ("chatglm_sat", "two_spans", "[MASK] w14 w52 w83 [MASK] w77 w6 w36", ("w60 w12", "w31 w31 w87"), (1, 0)),
    ],
)
def test_a_score_is_the_reference_s(
    engines: Engines, file: str, case: str, text: str, spans: tuple[str, ...], order: tuple[int, ...]
) -> None:
    engine, expected = engines[file], golden(file, case)
    (result,) = results(engine, Score(text=segments(text), spans=(spans,), orders=(order,), include_end=True))
    rows = expected["logprobs"][int(expected["context_len"]) :]
    fed = expected["token_ids"][int(expected["context_len"]) :].tolist()
    targets = [*fed[1:], engine.tokenizer.eop]
    targets = [engine.tokenizer.eop if token == engine.tokenizer.sop else token for token in targets]
    wanted = [float(row[target]) for row, target in zip(rows, targets, strict=True)]
    found = [p for n in order for p in (*result["spans"][n]["token_logprobs"], result["spans"][n]["end_logprob"])]
    assert found == pytest.approx(wanted, abs=TOLERANCE)
    assert result["logprob"] == pytest.approx(sum(wanted), abs=1e-3)


@pytest.mark.parametrize("file", ["glm_sat", "glm130b_sat", "chatglm_sat", "glm4", "chatglm2", "proteinglm_clm"])
def test_a_prompt_s_own_tokens_score_as_the_text_does(engines: Engines, file: str) -> None:
    engine, ids = engines[file], (11, 20, 22, 9, 13, 21)
    (native,) = results(engine, Score(text=(words(ids),)))
    for prompt in (Tokens(ids), words(ids), Tokens((engine.tokenizer.sop, *ids))):
        (result,) = results(engine, Fill(((prompt,),), max_tokens=(1,), echo=True, logprobs=2))
        found = result["echo"]["token_logprobs"]
        assert [p for p in found if p is not None] == native["spans"][0]["token_logprobs"]
        assert len(result["blanks"][0]["token_ids"]) + (result["blanks"][0]["end_token"] is not None) == 1


@pytest.mark.parametrize(
    ("file", "case", "mask"), [("glm_sat", "gmask", "[gMASK]"), ("glm130b_sat", "gmask", "[gMASK]")]
)
def test_a_prompt_with_a_context_scores_as_the_reference(engines: Engines, file: str, case: str, mask: str) -> None:
    engine, expected = engines[file], golden(file, case)
    ids, known = expected["token_ids"].tolist(), int(expected["context_len"])
    (result,) = results(engine, Fill(((Tokens(tuple(ids)),),), max_tokens=(1,), echo=True))
    rows = expected["logprobs"][known:]
    wanted = [float(row[target]) for row, target in zip(rows, ids[known + 1 :], strict=False)]
    assert mask in engine.tokenizer.masks
    assert result["echo"]["token_logprobs"][: known + 1] == [None] * (known + 1)
    assert result["echo"]["token_logprobs"][known + 1 :] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("file", CAUSAL)
def test_a_causal_model_s_prompt_as_its_own_tokenizer_makes_it(engines: Engines, file: str) -> None:
    expected = golden(file, "prefixed")
    ids = expected["token_ids"].tolist()
    (result,) = results(engines[file], Fill(((Tokens(tuple(ids)),),), max_tokens=(1,), echo=True))
    first = 3 if file == "proteinglm_clm" else 2  # <gmask> <sop> <eos>
    wanted = [float(expected["logprobs"][row, ids[row + 1]]) for row in range(first - 1, len(ids) - 1)]
    assert result["echo"]["token_logprobs"] == [*[None] * first, *(pytest.approx(w, abs=TOLERANCE) for w in wanted)]


def test_a_masked_model_cannot_score_from_left_to_right(engines: Engines) -> None:
    with pytest.raises(RequestError) as caught:
        engines["bert"].prepare(Fill((("w11 w12",),), max_tokens=(1,), echo=True), "x")
    assert (caught.value.param, caught.value.code) == ("echo", "unsupported")


def test_tokens_fill_a_causal_model_s_infill_as_text_does(engines: Engines) -> None:
    engine = engines["glm4"]
    by_text = Fill(((words((11, 40)), Mask("[MASK]"), words((62, 9))),), max_tokens=(6,))
    by_ids = Fill(((Tokens((11, 40)), Mask("[MASK]"), Tokens((62, 9))),), max_tokens=(6,))
    (text,), (ids,) = results(engine, by_text), results(engine, by_ids)
    assert text["blanks"][0]["token_logprobs"] == ids["blanks"][0]["token_logprobs"]


def test_a_causal_model_s_candidates_have_the_bits_that_they_have_alone(engines: Engines) -> None:
    engine = engines["glm4"]
    targets = ("w21", "w21 w22", "w21 w22 w30", "w22 w21", "w21 w30")
    together = results(engine, Score(context=segments("w11 w12"), targets=targets))
    alone = [results(engine, Score(context=segments("w11 w12"), targets=(target,)))[0] for target in targets]
    assert [result["spans"] for result in together] == [result["spans"] for result in alone]


@pytest.mark.parametrize("file", CAUSAL)
def test_a_causal_model_scores_a_text_from_its_prefix(engines: Engines, file: str) -> None:
    expected = golden(file, "prefixed")
    ids = expected["token_ids"].tolist()
    first = 3 if file == "proteinglm_clm" else 2
    (result,) = results(engines[file], Score(text=(words(ids[first:]),)))
    wanted = [float(expected["logprobs"][row, ids[row + 1]]) for row in range(first - 1, len(ids) - 1)]
    assert result["spans"][0]["token_logprobs"] == pytest.approx(wanted, abs=TOLERANCE)


def test_a_causal_model_fills_between_prefix_and_suffix(engines: Engines) -> None:
    engine = engines["glm4"]
    (result,) = results(engine, Fill((segments("w5 w6 [MASK] w7"),), max_tokens=(3,)))
    s = SPECIAL["glm4"]
    infix = [s["code_suffix"], 7, s["code_prefix"], 5, 6, s["code_middle"]]
    prompt = [s["gmask"], s["sop"], s["user"], 9, *infix, s["assistant"]]
    whole = torch.tensor([*prompt, *result["blanks"][0]["token_ids"][:-1]])
    allowed = torch.from_numpy(engine.job_context.logit_mask == 0)
    best = (
        reference(engine.runner.model, whole, 0)[len(prompt) - 1 :].where(allowed, torch.tensor(-torch.inf)).argmax(-1)  # type: ignore[union-attr]
    )
    assert result["blanks"][0]["token_ids"] == best.tolist()
    assert result["text"] == f"w5 w6 {words(best.tolist())} w7"


def test_a_causal_model_s_second_blank_sees_the_first_as_text(engines: Engines) -> None:
    engine = engines["glm4"]
    spans = ("w8 w9", "w10")
    (result,) = results(engine, Score(text=segments("w5 [MASK] w6 [MASK] w7"), spans=(spans,)))
    (first,) = results(engine, Score(text=segments("w5 [MASK] w6 w7"), spans=(spans[:1],)))
    (second,) = results(engine, Score(text=segments("w5 w8 w9 w6 [MASK] w7"), spans=(spans[1:],)))
    assert result["logprob"] == pytest.approx(first["logprob"] + second["logprob"], abs=1e-5)


def reference(model: Network, ids: torch.Tensor, context_len: int) -> torch.Tensor:
    with torch.inference_mode():
        attend = DenseAttention(visible(len(ids), torch.tensor([context_len])))
        hidden = model(ids[None], torch.arange(len(ids))[None], torch.zeros_like(ids)[None], attend)
        return torch.log_softmax(model.logits(hidden), dim=-1)[0]


class TestProteinGLM:
    TEXT = "[MASK] w3 w17 [MASK] [MASK] w20 w9 w9 w14 [MASK] w2"

    @pytest.mark.parametrize(("name", "strategy"), [("parallel", None), ("left_to_right", "reencode")])
    def test_fills_are_the_reference_s(self, engines: Engines, name: str, strategy: Any) -> None:
        (result,) = results(engines["proteinglm_mlm"], Fill((segments(self.TEXT),), strategy=strategy))
        found = [token for blank in result["blanks"] for token in blank["token_ids"]]
        whole = golden("proteinglm_mlm", "fill")
        wanted = whole[name][whole["token_ids"] == 28].tolist()
        assert found == wanted
        assert {blank["finish_reason"] for blank in result["blanks"]} == {"stop"}

    def test_masked_residues(self, engines: Engines) -> None:
        expected = golden("proteinglm_mlm", "single")["logprobs"]
        text = segments("w5 w19 [MASK] w22 w1 w1 w7 [MASK] w12")
        (result,) = results(engines["proteinglm_mlm"], Score(text=text, spans=(("w21", "w22 w23"),)))
        wanted = [float(expected[row, token]) for row, token in ((2, 21), (7, 22), (8, 23))]
        found = [p for span in result["spans"] for p in span["token_logprobs"]]
        assert found == pytest.approx(wanted, abs=TOLERANCE)

    def test_pseudo_log_likelihood_of_a_protein(self, engines: Engines) -> None:
        expected = golden("proteinglm_mlm", "pll")
        (result,) = results(engines["proteinglm_mlm"], Score(text=(words(expected["token_ids"].tolist()[:-1]),)))
        assert result["spans"][0]["token_logprobs"] == pytest.approx(expected["logprobs"].tolist(), abs=TOLERANCE)

    def test_a_pair_of_sentences_is_refused(self, engines: Engines) -> None:
        with pytest.raises(RequestError, match="need a model with a next-sentence head"):
            engines["proteinglm_mlm"].prepare(Score(sentence_a="w5", sentence_b="w6"), "r")

    @pytest.mark.parametrize(("file", "mask"), [("proteinglm_mlm", "[gMASK]"), ("proteinglm_clm", "[MASK]")])
    def test_a_mask_of_the_other_kind_is_refused(self, engines: Engines, file: str, mask: str) -> None:
        with pytest.raises(RequestError, match=r"this checkpoint (has no|cannot fill) \["):
            engines[file].prepare(Fill((segments(f"w5 {mask}"),)), "r")


class TestMaskedLM:
    """Every masked language model against its reference, through requests."""

    @pytest.mark.parametrize("file", ENCODERS)
    @pytest.mark.parametrize(
        ("name", "strategy", "order"),
        [
            ("parallel", None, "left_to_right"),
            ("parallel", "parallel", "right_to_left"),
            ("left_to_right", "reencode", "left_to_right"),
            ("confident", "reencode", "confident"),
        ],
    )
    def test_fills_are_the_reference_s(self, engines: Engines, file: str, name: str, strategy: Any, order: str) -> None:
        expected, mask = golden(file, "fill"), SPECIAL[file]["mask"]
        text = spelled(expected["token_ids"].tolist(), mask)
        (result,) = results(engines[file], Fill((text,), strategy=strategy, order=order))
        wanted = expected[name].tolist()
        assert result["text"] == words(wanted[1:-1])
        assert [blank["token_ids"] for blank in result["blanks"]] == [
            [found] for i, found in zip(expected["token_ids"].tolist(), wanted, strict=True) if i == mask
        ]
        assert {blank["finish_reason"] for blank in result["blanks"]} == {"stop"}

    @pytest.mark.parametrize("strategy", ["reencode", "parallel"])
    def test_a_stop_token_leaves_a_blank_without_a_token(self, engines: Engines, strategy: Any) -> None:
        expected = golden("roberta", "fill")
        text = spelled(expected["token_ids"].tolist(), SPECIAL["roberta"]["mask"])
        first = expected["left_to_right"].tolist()[2]
        sampling = Sampling(temperature=0.0, stop_token_ids=(first,))
        (result,) = results(engines["roberta"], Fill((text,), strategy=strategy, sampling=sampling))
        assert result["blanks"][0]["token_ids"] == []
        assert all(blank["finish_reason"] == "stop" for blank in result["blanks"])

    @pytest.mark.parametrize("file", ENCODERS)
    def test_masked_tokens_have_the_reference_s_log_probabilities(self, engines: Engines, file: str) -> None:
        expected, mask = golden(file, "single"), SPECIAL[file]["mask"]
        ids = expected["token_ids"].tolist()
        text = spelled(ids, mask)
        rows = [row for row, i in enumerate(ids) if i == mask]
        (result,) = results(engines[file], Score(text=text, spans=(("w9", "w21", "w11"),)))
        wanted = [float(expected["logprobs"][row, token]) for row, token in zip(rows, (9, 21, 11), strict=True)]
        found = [p for span in result["spans"] for p in span["token_logprobs"]]
        assert found == pytest.approx(wanted, abs=TOLERANCE)

    @pytest.mark.parametrize("file", ENCODERS)
    def test_pseudo_log_likelihood_of_a_text(self, engines: Engines, file: str) -> None:
        expected = golden(file, "pll")
        (result,) = results(engines[file], Score(text=(words(expected["token_ids"].tolist()[1:-1]),)))
        assert result["spans"][0]["token_logprobs"] == pytest.approx(expected["logprobs"].tolist(), abs=TOLERANCE)
        assert result["logprob"] == pytest.approx(float(expected["sum"]), abs=1e-3)

    def test_a_text_of_other_masks_is_another_text_to_esm2(self, engines: Engines) -> None:
        """Its embeddings depend on the share of masks, so that tokens that attention does not change change too."""
        model = engines["esm2"].runner.model  # type: ignore[union-attr]
        ids = torch.tensor([[0, 5, 32, 7, 8, 2], [0, 5, 32, 32, 8, 2]])
        attend = DenseAttention(visible(6, torch.tensor([6, 6])))
        with torch.inference_mode():
            found = model.embedded(ids, torch.arange(6).expand(2, 6), torch.zeros_like(ids), attend)
        table = model.word_embeddings(torch.tensor([5]))[0]
        assert not found[ids == 32].any()
        torch.testing.assert_close(found[:, 1], torch.stack([table * 0.88 / (1 - n / 6) for n in (1, 2)]))

    TEXT = "w30 [MASK] [MASK] w76 w14 [MASK] w58 [MASK] [MASK] [MASK] w91"

    def test_a_choice_is_one_token_with_the_scorer_s_number(self, engines: Engines) -> None:
        text = segments("w40 w7 [MASK] w33")
        (result,) = results(engines["bert"], Fill((text,), choices=(("w21", "w22", "w30"),), logprobs=2))
        scores = [
            r["logprob"] for r in results(engines["bert"], Score(text=text, spans=(("w21",), ("w22",), ("w30",))))
        ]
        blank = result["blanks"][0]
        assert blank["choice_logprobs"] == scores
        assert blank["text"] == ("w21", "w22", "w30")[scores.index(max(scores))]
        assert blank["end_token"] is None
        assert blank["finish_reason"] == "choice"

    def test_masked_words(self, engines: Engines) -> None:
        expected = golden("bert", "single")["logprobs"]
        spans = (("w21", "w22 w23"),)
        (result,) = results(engines["bert"], Score(text=segments("w40 w7 [MASK] w33 w88 [MASK] w12"), spans=spans))
        wanted = [float(expected[row, token]) for row, token in ((3, 21), (6, 22), (7, 23))]
        found = [p for span in result["spans"] for p in span["token_logprobs"]]
        assert found == pytest.approx(wanted, abs=TOLERANCE)
        assert result["spans"][0]["end_logprob"] is None

    def test_no_token_is_said_to_be_cached(self, engines: Engines) -> None:
        for _ in range(2):
            *_, done = engines["bert"].run(Fill((segments(self.TEXT),)))
            assert isinstance(done, Done)
            assert done.usage.cached_tokens == 0

    @pytest.mark.parametrize("name", ["pair", "other_pair"])
    def test_next_sentence(self, engines: Engines, name: str) -> None:
        expected = golden("bert", name)
        both = list(zip(expected["token_ids"].tolist(), expected["token_types"].tolist(), strict=True))
        first, second = (words([i for i, own in both if own == kind and i not in (2, 3)]) for kind in (0, 1))
        (result,) = results(engines["bert"], Score(sentence_a=first, sentence_b=second))
        assert result["logprob"] == pytest.approx(float(expected["nsp"][0]), abs=TOLERANCE)

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (Fill((segments("w5 [MASK]"),), strategy="append"), "strategy"),
            (Fill((segments("w5 [gMASK]"),)), "text"),
            (Score(text=segments("w5 [MASK]"), spans=(("w6",),), include_end=True), "include_end"),
            (Score(text=segments("w5 [MASK]"), spans=(("w6",),), orders="all"), "orders"),
            (Score(text=(words([7] * 400),)), "text"),
            (Score(text=segments("w5 [MASK]"), spans=(("w6",),), pll="word_l2r"), "pll"),
            (Score(sentence_a="w5", sentence_b="w6", pll="word_l2r"), "pll"),
            (Score(sentence_a="w5", sentence_b="w6", words=True), "words"),
            (Fill((segments("w5 [MASK]"),), choices=(("w6 w7",),)), "choices"),
            (Fill((segments("w5 [MASK]"),), num_beams=2), "num_beams"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, engines: Engines, request_: Request, field: str) -> None:
        with pytest.raises(RequestError) as error:
            engines["bert"].prepare(request_, "r")
        assert error.value.param == field


@pytest.mark.parametrize("file", list(SPECIAL))
def test_words_of_every_family(engines: Engines, file: str) -> None:
    """A numbered word is a token: a word's surprisal is its token's."""
    text = "w20 w21\n w22"
    requests = [Score(text=(text,), words=True), Score(context=("w5 w6",), targets=(text,), words=True)]
    requests += [] if file in (*CAUSAL, *FIM) else [Score(text=segments("w5 [MASK] w9"), spans=((text,),), words=True)]
    for request in requests:
        (result,) = results(engines[file], request)
        (plain,) = results(engines[file], replace(request, words=False))
        (span,) = result["spans"]
        found = span.pop("words")
        assert result == plain  # nothing else changes
        assert [(w["text"], w["start"], w["end"]) for w in found] == [("w20", 0, 3), ("w21", 4, 7), ("w22", 9, 12)]
        assert [w["logprob"] for w in found] == span["token_logprobs"]


@pytest.mark.parametrize("file", [name for name in SPECIAL if name not in MASKED])
def test_word_l2r_is_refused_by_models_that_are_not_masked(engines: Engines, file: str) -> None:
    with pytest.raises(RequestError, match="pll needs a masked language model") as error:
        engines[file].prepare(Score(text=("w5",), pll="word_l2r"), "r")
    assert (error.value.param, error.value.code) == ("pll", "unsupported")


def test_counting_blanks_end_at_the_last_position(engines: Engines) -> None:
    engine = engines["glm130b_sat"]
    text = words([5, 6, 7] * 80)
    (result,) = results(engine, Fill((segments(f"{text} [gMASK]"),), max_tokens=(200,), min_tokens=(200,)))
    (blank,) = result["blanks"]
    assert blank["finish_reason"] == "length"
    assert len(blank["token_ids"]) == engine.card.max_positions - 241


@pytest.mark.parametrize("file", list(SPECIAL))
def test_bits_are_those_of_a_request_alone(engines: Engines, file: str) -> None:
    engine = engines[file]
    texts = [f"{words([5 + n, *range(10, 13 + n % 7)])} [gMASK]" for n in range(16)]
    if "[MASK]" in engine.card.masks:
        texts = [f"{words(range(10, 13 + n % 7))} [MASK] {words([5 + n])}" for n in range(16)]
    requests: list[Request] = [Fill((segments(t),), max_tokens=(4,)) for t in texts]
    requests += [Score(text=segments(t), spans=(("w20 w21",), ("w23",))) for t in texts]
    alone = [results(engine, r) for r in requests]
    engine.scheduler.clear_contexts()
    for number, request in enumerate(requests):
        engine.add(engine.prepare(request, str(number)), request)
    together: dict[str, list[dict[str, Any]]] = {}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, ResultDone):
                together.setdefault(event.id, []).append(wire(event.result))
    assert [together[str(n)] for n in range(len(requests))] == alone
    engine.scheduler.check()
