"""Several ranks against one: the same texts, log-probabilities and refusals, for every family and scheme."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.answers import FillResult
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Event, ResultDone
from engine.loading import load_runner
from engine.ranks import AdapterNews, Channel, Diverged, follow
from engine.requests import Fill, Mask, Request, Sampling, Score
from engine.schedule.batch import Batch, PrefixCopy, Rows
from engine.schedule.sequence import Output
from model.attention import Span
from model.checkpoint import Checkpoint, Description, assembled
from model.config import CheckpointError, Config
from model.families import family_of
from model.network import Network
from model.parallel import Ranks
from quant.registry import build
from tests.answers import wire
from tests.engine.test_families import ENCODERS, ENDS, MASKED, SPECIAL, NumberedWords, segments, words
from tests.ranks import on_ranks

WIDTH, HEADS, INNER = 256, 8, 512
CONFIGS: dict[str, dict[str, Any]] = {
    "glm_sat": {
        "model_type": "glm", "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS, "vocab_size": 101,
        "max_sequence_length": 128,
    },
    "glm130b_sat": {
        "model_type": "glm-130b", "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "inner_hidden_size": INNER, "vocab_size": 120, "max_sequence_length": 128,
    },
    "chatglm_sat": {
        "model_type": "chatglm", "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "inner_hidden_size": INNER, "vocab_size": 117, "max_sequence_length": 128,
    },
    "glm4": {
        "model_type": "glm", "num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": INNER, "vocab_size": 120,
        "max_position_embeddings": 128, "attention_bias": True,
    },
    "chatglm2": {
        "model_type": "chatglm", "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "multi_query_group_num": 2, "kv_channels": 32, "ffn_hidden_size": INNER, "padded_vocab_size": 120,
        "seq_length": 128, "add_qkv_bias": True, "eos_token_id": 2,
    },
    "proteinglm_mlm": {
        "model_type": "ProteinGLM", "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "kv_channels": 32, "ffn_hidden_size": INNER, "padded_vocab_size": 72, "seq_length": 128, "is_causal": False,
    },
    "proteinglm_clm": {
        "model_type": "ProteinGLM", "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "kv_channels": 32, "ffn_hidden_size": INNER, "padded_vocab_size": 72, "seq_length": 128, "is_causal": True,
    },
    "bert": {
        "model_type": "bert", "architectures": ["BertForPreTraining"], "num_hidden_layers": 2, "hidden_size": WIDTH,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "vocab_size": 101, "max_position_embeddings": 128,
        "hidden_act": "gelu",
    },
    "roberta": {
        "model_type": "roberta", "num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "vocab_size": 101, "max_position_embeddings": 130, "type_vocab_size": 1,
    },
    "distilbert": {
        "model_type": "distilbert", "n_layers": 2, "dim": WIDTH, "n_heads": HEADS, "hidden_dim": INNER,
        "vocab_size": 101, "max_position_embeddings": 128,
    },
    "esm2": {
        "model_type": "esm", "num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "vocab_size": 101, "max_position_embeddings": 128, "pad_token_id": 1,
        "position_embedding_type": "rotary", "mask_token_id": 32, "token_dropout": True,
    },
    "modernbert": {
        "model_type": "modernbert", "num_hidden_layers": 4, "hidden_size": WIDTH, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "vocab_size": 101, "max_position_embeddings": 128, "local_attention": 4,
    },
}  # fmt: skip
_DECODER: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": 2,
    "intermediate_size": INNER, "vocab_size": 120, "max_position_embeddings": 128,
}  # fmt: skip
# Models that fill in the middle, on fewer ranks: their blocks are cut as those above.
FIM: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_DECODER},
    "qwen2": {"model_type": "qwen2", **_DECODER, "tie_word_embeddings": True},
    "starcoder2": {"model_type": "starcoder2", **_DECODER},
    "iglm": {
        "model_type": "gpt2", "n_layer": 2, "n_embd": WIDTH, "n_head": HEADS, "vocab_size": 120, "n_positions": 129,
    },
}  # fmt: skip
LIKE_OTHERS = (
    "chatglm2",
    "proteinglm_mlm",
    "proteinglm_clm",
)  # cut as another family, so that two ranks show what there is to show
STORAGES: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {"quant": "int8", "head": "int8"},
    "int4": {"quant": "int4"},
    "int4-rows": {"quant": "int4", "group_size": 0, "head": "int4"},
}
BITSANDBYTES: dict[str, dict[str, Any]] = {"nf4": {"quant": "nf4"}, "llm-int8": {"quant": "llm-int8"}}
# Float sums in another order change the last bit of an activation, and with it, where that was halfway between two
# codes, what it is quantized to: one part in 254 of one number in many.
QUANTS = ("none", "int8", "int4")
TOLERANCES = {"none": 1e-4}
ROUNDING = 0.05
CONFIG = EngineConfig(kv_cache_gb=0.001)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every family, with random weights."""
    made = {}
    for name, fields in (CONFIGS | FIM).items():
        folder, architecture = tmp_path_factory.mktemp(name), described(name).architecture
        generator = torch.Generator().manual_seed(1)
        tensors = {}
        for key, parameter in Network(architecture).named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = 0.05 if key == "lm_head.weight" else 0.1
            tensors[key] = noise * spread + (1 if "norm" in key and key.endswith("weight") else 0)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(fields))
        made[name] = folder
    return made


def described(name: str) -> Description:
    config = Config((CONFIGS | FIM)[name])
    family = family_of(config)
    architecture = family.architecture(config)
    tokenizer = NumberedWords(SPECIAL[name], architecture.vocab_size, ENDS.get(name, ("eop", "eos")))
    return Description(family, architecture, config, tokenizer)


def checkpoint(folder: Path, name: str, storage: str, ranks: Ranks) -> Checkpoint:
    return assembled("tiny", folder, described(name), ranks=ranks, **(STORAGES | BITSANDBYTES)[storage])


@dataclass(frozen=True)
class Served:
    """What came of requests that were all under way at once, and every rank's tensors."""

    events: list[Event]
    tp: int
    tensors: list[dict[str, torch.Tensor]]


def serve(
    load: Callable[[Ranks], Checkpoint], size: int, requests: list[Request], config: EngineConfig = CONFIG
) -> Served:
    """An engine of so many ranks at work."""

    def work(ranks: Ranks) -> tuple[list[Event], int, dict[str, torch.Tensor]]:
        loaded = load_runner(config, load(ranks), ranks)
        tensors = dict(loaded.runner.model.state_dict())
        channel = Channel(ranks, ranks.group) if size > 1 and ranks.group is not None else None
        if ranks.rank > 0:
            assert channel is not None
            follow(loaded.runner, channel)
            return [], size, tensors
        engine = Engine(config, loaded=loaded, channel=channel)
        for number, request in enumerate(requests):
            engine.add(engine.prepare(request, str(number)), request)
        events: list[Event] = []
        while not engine.idle:
            events += engine.step()
            engine.scheduler.check()
        if channel is not None:
            channel.stop()
        return events, engine.card.tp, tensors

    found = on_ranks(size, work)
    return Served(*found[0][:2], [tensors for _, _, tensors in found])


@cache
def alone(folder: Path, name: str, storage: str) -> Served:
    """What one rank gives."""
    return serve(lambda ranks: checkpoint(folder, name, storage, ranks), 1, requests_of(name, storage))


def requests_of(name: str, storage: str) -> list[Request]:
    """Fills and scores of unequal lengths, over contexts of which some are shared."""
    temperature = 0.0 if storage != "none" else 1.0  # a draw from quantized sums could fall to the other side
    text = words(range(10, 40, 3))
    if name in MASKED:
        masks = segments("w11 w40 [MASK] w62 [MASK] w33")
        pair = Score(sentence_a="w11 w12", sentence_b="w20 w21")
        chosen = Fill((masks,), (1,), choices=(("w20", "w21"), None))
        scores = [Score(text=segments("w11 w40 w13")), Score(text=masks, spans=(("w20", "w30"),)), pair]
        fills = [Fill((masks,), (1,)), Fill((masks,), (1,), strategy="reencode")]
        return [*fills, chosen, *scores[: 3 if name == "bert" else 2]]
    spans = (("w25 w71 w8",), ("w9",), ("w30 w31",))
    open_text = segments(f"{text} [gMASK]")
    return [
        Fill((open_text,), max_tokens=(12,)),
        Fill((segments("w50 w51 [gMASK]"),), max_tokens=(7,), n=3, sampling=Sampling(temperature, seed=3)),
        Score(text=open_text, spans=spans, include_end=True, logprobs=4),
        Score(context=(text,), targets=("w10 w11", "w70")),
        Fill((("w60 w61 ", Mask("[gMASK]")), ("w62 ", Mask("[gMASK]"))), max_tokens=(3,), logprobs=3),
        Fill((open_text,), choices=(("w25 w71 w8", "w25 w71", "w9"),)),
        Fill((open_text,), (5,), num_beams=3, n=2),
        Fill((open_text,), (9,), regex=("( ?w[2-4][0-9]){2,4}",)),
        Fill((open_text,), (9,), sampling=Sampling(rules={"repetition_penalty": 1.4}, logit_bias={21: 1.0})),
    ]


def numbers(value: Any) -> Any:
    """A result with its floats apart, so that the rest can be compared exactly."""
    floats: list[float] = []

    def walk(item: Any) -> Any:
        if isinstance(item, float):
            floats.append(item)
            return None
        if isinstance(item, dict):
            # Perplexities follow from log-probabilities, and are large.
            return {key: walk(inner) for key, inner in item.items() if key != "perplexity"}
        return [walk(inner) for inner in item] if isinstance(item, list | tuple) else item

    return walk(value), floats


def assert_alike(found: list[Event], expected: list[Event], tolerance: float) -> None:
    def results(events: list[Event]) -> list[Any]:
        done = [(e.id, wire(e.result)) for e in events if isinstance(e, ResultDone)]
        return sorted(done, key=lambda pair: (pair[0], pair[1]["index"]))

    (shape, floats), (wanted, values) = numbers(results(found)), numbers(results(expected))
    assert shape == wanted
    assert floats == pytest.approx(values, abs=tolerance)
    assert all(math.isfinite(value) for value in floats)


# The later masked families differ from BERT in what all ranks compute alike: for them the extremes.
DIVIDED = [
    (name, storage, size)
    for name in CONFIGS
    for storage in STORAGES
    for size in (2, 4, 8)
    if (size == 2
    and storage in QUANTS)
    or name not in (*ENCODERS[1:], *LIKE_OTHERS)
    or (name not in LIKE_OTHERS
    and size == 8
    and storage == "none")
    or (name in LIKE_OTHERS
    and size == 2)
]


@pytest.mark.parametrize(("name", "storage", "size"), DIVIDED)
def test_ranks_give_what_one_gives(folders: dict[str, Path], name: str, storage: str, size: int) -> None:
    """From the very same numbers, also where scales of whole rows are made while each rank reads only some inputs."""
    expected = alone(folders[name], name, storage)
    found = serve(lambda ranks: checkpoint(folders[name], name, storage, ranks), size, requests_of(name, storage))
    assert found.tp == size
    assert_alike(found.events, expected.events, TOLERANCES.get(storage, ROUNDING))
    assert_same_numbers(found, expected)


@pytest.mark.parametrize("storage", ["none", "int8", "int4"])
@pytest.mark.parametrize("name", FIM)
def test_two_ranks_fill_in_the_middle_as_one_does(folders: dict[str, Path], name: str, storage: str) -> None:
    expected = alone(folders[name], name, storage)
    found = serve(lambda ranks: checkpoint(folders[name], name, storage, ranks), 2, requests_of(name, storage))
    assert_alike(found.events, expected.events, TOLERANCES.get(storage, ROUNDING))
    assert_same_numbers(found, expected)


@pytest.mark.parametrize("storage", ["none", "int4"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_give_a_request_the_same_bits_alone_and_among_others(
    folders: dict[str, Path], size: int, storage: str
) -> None:
    requests = requests_of("glm_sat", storage)

    def results(chosen: list[Request]) -> dict[str, list[Any]]:
        served = serve(lambda ranks: checkpoint(folders["glm_sat"], "glm_sat", storage, ranks), size, chosen)
        found: dict[str, list[Any]] = {}
        for event in served.events:
            if isinstance(event, ResultDone):
                found.setdefault(event.id, []).append(wire(event.result))
        return found

    together = results(requests)
    for number in (0, 2, 3):
        assert results([requests[number]])["0"] == together[str(number)]


@pytest.mark.parametrize("storage", ["nf4", "llm-int8"])
def test_ranks_have_bitsandbytes_own_numbers(folders: dict[str, Path], storage: str) -> None:
    """What they compute differs: products in bfloat16, or inputs with one scale a row of each rank's own."""
    build(storage)  # imports bitsandbytes once, not in several threads
    requests = requests_of("glm_sat", storage)
    found = serve(lambda ranks: checkpoint(folders["glm_sat"], "glm_sat", storage, ranks), 2, requests)
    expected = alone(folders["glm_sat"], "glm_sat", storage)
    assert_same_numbers(found, expected)
    totals = [
        {(e.id, e.result.index): e.result.logprob for e in events if isinstance(e, ResultDone)}
        for events in (found.events, expected.events)
    ]
    scores = [key for key in totals[0] if isinstance(requests[int(key[0])], Score)]
    assert [totals[0][key] for key in scores] == pytest.approx([totals[1][key] for key in scores], abs=0.2)


def assert_same_numbers(found: Served, expected: Served) -> None:
    """Every rank's tensors are those of the one, or together hold just its numbers."""
    for key, tensor in expected.tensors[0].items():
        own = [tensors[key] for tensors in found.tensors]
        if own[0].shape == tensor.shape:
            assert all(torch.equal(part, tensor) for part in own), key
        else:
            assert sum(part.numel() for part in own) >= tensor.numel()
            values = torch.cat([part.flatten().double() for part in own])
            assert torch.equal(values.unique(), tensor.double().unique()), key


@pytest.mark.parametrize("name", ["glm_sat", "glm4"])
def test_ranks_keep_keys_and_values_in_int8_as_one_does(folders: dict[str, Path], name: str) -> None:
    config, requests = CONFIG.model_copy(update={"kv_cache_type": "int8"}), requests_of(name, "int8")
    one, two = (serve(lambda r: checkpoint(folders[name], name, "none", r), size, requests, config) for size in (1, 2))
    assert_alike(two.events, one.events, ROUNDING)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["glm_sat", "glm4"])
def test_a_token_s_rank_counts_the_tokens_of_all_ranks(folders: dict[str, Path], name: str, size: int) -> None:
    every = described(name).architecture.vocab_size
    fill = Fill(((words(range(10, 40, 3)),),), (3,), echo=True, prompt_logprobs=every, logprobs=0)
    served = serve(lambda ranks: checkpoint(folders[name], name, "none", ranks), size, [fill])
    (result,) = (e.result for e in served.events if isinstance(e, ResultDone))
    assert isinstance(result, FillResult)
    echo = result.echo
    assert echo is not None
    assert len(echo.ranks) == 10
    for token, logprob, rank, top in zip(
        echo.token_ids, echo.token_logprobs, echo.ranks, echo.top_logprobs, strict=True
    ):
        values = {t.token_id: t.logprob for t in top or ()}
        assert len(values) == every
        assert values[token] == logprob
        assert rank == sum(value >= values[token] for value in values.values())


def test_heads_and_groups_that_ranks_do_not_divide_are_refused_by_name(folders: dict[str, Path]) -> None:
    def refusal(name: str, storage: dict[str, Any], size: int, **fields: Any) -> str:
        description = described(name)
        architecture = replace(description.architecture, **fields)
        with pytest.raises(CheckpointError) as error:
            assembled(
                "tiny", folders[name], replace(description, architecture=architecture), ranks=Ranks(0, size), **storage
            )
        return str(error.value).replace(f"{folders[name]}: ", "")

    assert refusal("glm_sat", {}, 3) == "num_attention_heads 8 is not divisible by 3 ranks"
    assert refusal("glm4", {}, 8, num_key_value_heads=3) == "num_key_value_heads 3 is not divisible by 8 ranks"
    assert refusal("glm_sat", {}, 8, inner_hidden_size=500) == "inner_hidden_size 500 is not divisible by 8 ranks"
    message = refusal("glm_sat", {"quant": "int4", "group_size": 64}, 8)
    assert message.endswith(
        "attention.dense.weight: group_size 64 does not divide the 32 inputs of a rank's share, one of 8"
    )


class TestBatch:
    """A batch as whole numbers."""

    @given(st.data())
    def test_is_decoded_to_what_it_was(self, data: st.DataObject) -> None:
        def some(count: int) -> tuple[int, ...]:
            return tuple(data.draw(st.lists(st.integers(-1, 2**40), min_size=count, max_size=count)))

        rows = []
        for _ in range(data.draw(st.integers(0, 4))):
            count, num_blocks = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 5))
            span = Span(count, *some(2), some(num_blocks), data.draw(st.booleans()))  # type: ignore[call-arg,arg-type]
            want = data.draw(st.sampled_from([None, *get_args(Output)]))
            asked, targets = some(data.draw(st.integers(0, 3))), some(data.draw(st.integers(0, 6)))
            rows.append(Rows(some(count), some(count), some(count), span, want, asked, targets, *some(1)))  # type: ignore[arg-type]
        copies = data.draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99))).map(tuple))
        num_prefixes = data.draw(st.integers(0, 3))
        prefixes = tuple(PrefixCopy(*some(2), some(data.draw(st.integers(0, 3)))) for _ in range(num_prefixes))  # type: ignore[call-arg,arg-type]
        batch = Batch(tuple(rows), copies, prefixes)
        assert Batch.decoded([*batch.encoded()]) == batch


class TestChannel:
    """What rank 0 says to the others."""

    @staticmethod
    def batch(length: int) -> Batch:
        ids = tuple(range(length))
        return Batch((Rows(ids, ids, ids, Span(length, 0, length, (1, 2)), "token"),))

    @pytest.mark.parametrize("length", [1, 80, 2000])
    def test_every_rank_hears_it(self, length: int) -> None:
        def work(ranks: Ranks) -> list[Any]:
            assert ranks.group is not None
            channel = Channel(ranks, ranks.group)
            if ranks.rank == 0:
                channel.tell(self.batch(length), 3)
                channel.tell_of(news)
                channel.tell(self.batch(1), 0)
                channel.stop()
                return []
            return [channel.told() for _ in range(4)]

        news = AdapterNews("read", 7, "/a path/床前" * length)
        for heard in on_ranks(3, work)[1:]:
            assert heard == [(self.batch(length), 3), news, (self.batch(1), 0), None]

    def test_a_step_that_is_not_due_is_noticed(self) -> None:
        def work(ranks: Ranks) -> None:
            assert ranks.group is not None
            channel = Channel(ranks, ranks.group)
            if ranks.rank == 0:
                channel._step = 5
                channel.tell(self.batch(1), 0)
            else:
                with pytest.raises(Diverged, match="received step 5 instead of step 0"):
                    channel.told()

        on_ranks(2, work)
