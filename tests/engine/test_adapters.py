"""Adapters by request: alone and in a crowd, preempted and cached, on one rank and on two."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Event, Failed, ResultDone
from engine.loading import load_runner
from engine.ranks import Channel, follow
from engine.registry import Registry
from engine.requests import Fill, Mask, Request, RequestError, Sampling, Score
from model.adapters.target import AdapterTarget
from model.checkpoint import Checkpoint, load
from model.network import Network
from model.parallel import Ranks
from quant.linear import Linear
from tests.answers import wire
from tests.engine.test_engine import results, segments
from tests.engine.test_families import MASKED
from tests.engine.test_ranks import CONFIGS, checkpoint, folders  # noqa: F401
from tests.ranks import on_ranks

NAMES = [f"a{number}" for number in range(8)]
TEXTS = ["the river [MASK] under a bridge", "[MASK] of the hill", "one day the [MASK] came and [MASK] sang"]


def write_lora(folder: Path, model: Network, seed: int, rank: int = 4) -> Path:
    """Of all linears of all blocks, as peft writes it for our own network."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (outputs, inputs) in AdapterTarget(model).linears.items():
        if ".layers." in path:
            tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) * 0.2
            tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * 0.2
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    return write(folder, config, tensors)


def write_prefix(folder: Path, model: Network, seed: int, length: int = 21) -> Path:
    a = model.architecture
    draw = torch.Generator().manual_seed(seed)
    width = 2 * a.num_layers * a.num_key_value_heads * a.head_dim
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": length}
    return write(folder, config, {"prompt_embeddings": torch.randn(length, width, generator=draw) * 0.5})


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def eight(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Five LoRAs of several ranks and three prefixes of several lengths."""
    root, model = tmp_path_factory.mktemp("adapters"), load(folder).model
    made = []
    for number, name in enumerate(NAMES):
        if number % 3 == 2:
            path = write_prefix(root / name, model, number, length=[5, 16, 37][number % 4 % 3])
        else:
            path = write_lora(root / name, model, number, rank=1 + 3 * (number % 4))
        made.append((name, str(path)))
    return made


def engine_of(folder: Path, adapters: list[tuple[str, str]], **options: Any) -> Engine:
    return Engine(EngineConfig(str(folder), **{"kv_cache_gb": 0.02, "adapters": dict(adapters), **options}))


def requests(adapters: list[str | None]) -> list[Request]:
    """32 fills and scores, with every adapter and with none."""
    made: list[Request] = []
    for number in range(32):
        text, adapter = segments(TEXTS[number % 3]), adapters[number % len(adapters)]
        if number % 4 == 3:
            spans = ("runs",) * sum(isinstance(s, Mask) for s in text)
            made.append(Score(text=text, spans=(spans,), adapter=adapter))
        elif number % 8 == 6:
            made.append(Fill((text,), (4,), num_beams=3, adapter=adapter))
        else:
            sampling = Sampling(temperature=0.8 * (number % 2), seed=number)
            made.append(Fill((text,), (6,), (4,), sampling=sampling, adapter=adapter, logprobs=2))
    return made


def run_all(engine: Engine, wanted: list[Request]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for number, request in enumerate(wanted):
        engine.add(engine.prepare(request, str(number)), request)
    while not engine.idle:
        for event in engine.step():
            found.setdefault(event.id, []).append(event)
        engine.scheduler.check()
    return found


@pytest.mark.parametrize("kv_cache_type", ["auto", "int8"])
@pytest.mark.parametrize("quant", ["none", "int4"])
def test_eight_adapters_in_one_batch_give_the_bits_of_each_alone(
    folder: Path, eight: list[tuple[str, str]], quant: str, kv_cache_type: str
) -> None:
    engine = engine_of(folder, eight, quant=quant, kv_cache_type=kv_cache_type)
    wanted = requests([*NAMES, None])
    together = run_all(engine, wanted)
    distinct = set()
    for number, request in enumerate(wanted):
        engine.scheduler.clear_contexts()
        alone = results(engine.run(request))
        assert results(together[str(number)]) == alone  # to the last bit
        distinct.add(alone[0]["logprob"])
    assert len(distinct) > 20  # some requests are the same


def test_a_request_without_an_adapter_has_the_bits_of_an_engine_without_any(
    folder: Path, eight: list[tuple[str, str]]
) -> None:
    with_adapters, without = engine_of(folder, eight), engine_of(folder, [])
    wanted = requests([*NAMES, None])
    together = run_all(with_adapters, wanted)
    for number, request in enumerate(wanted):
        if request.adapter is None:
            assert results(together[str(number)]) == results(without.run(request))


def test_the_torch_path_keeps_the_bits_too(
    folder: Path, eight: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM_INFILL_CPU_KERNEL", "torch")
    engine = engine_of(folder, eight)
    wanted = requests([*NAMES, None])
    together = run_all(engine, wanted)
    for number in range(0, 32, 5):
        engine.scheduler.clear_contexts()
        assert results(together[str(number)]) == results(engine.run(wanted[number]))


def test_preempted_and_evicted_prefixes_change_nothing(folder: Path, eight: list[tuple[str, str]]) -> None:
    roomy = engine_of(folder, eight, block_size=4)
    wanted = requests(["a2", "a5", "a0", None])
    expected = run_all(roomy, wanted)
    loaded = load_runner(EngineConfig(str(folder), kv_cache_gb=0.00016, block_size=4, adapters=dict(eight)))
    tight = Engine(EngineConfig(str(folder), block_size=4, adapters=dict(eight)), loaded=loaded)
    found = run_all(tight, wanted)
    assert tight.scheduler.preemptions > 0
    for number in expected:
        assert results(found[number]) == results(expected[number])


def test_contexts_are_cached_by_adapter(folder: Path, eight: list[tuple[str, str]]) -> None:
    engine = engine_of(folder, eight)
    fill = Fill((segments(TEXTS[0]),), (2,))

    def cached(request: Fill) -> int:
        return int(engine.run(request)[-1].usage.cached_tokens)  # type: ignore[union-attr]

    for adapter in (None, "a0", "a2"):
        assert cached(replace(fill, adapter=adapter)) == 0
        assert cached(replace(fill, adapter=adapter)) > 0
    assert cached(replace(fill, adapter="a0", tenant="x")) == 0


def test_a_lora_is_what_the_merged_weights_give(folder: Path, eight: list[tuple[str, str]]) -> None:
    engine = engine_of(folder, eight)
    score = Score(text=segments(TEXTS[2]), spans=(("boat", "birds"),))
    (found,) = results(engine.run(replace(score, adapter="a3")))
    merged = load(folder)
    adapter = engine.runner.adapters.held.get(4)  # type: ignore[union-attr]
    for path, pieces in adapter.pieces.items():
        module = merged.model.get_submodule(path)
        assert isinstance(module, Linear)
        module.weight.data += sum(((p.down.T @ p.up).T for p in pieces), torch.zeros(()))  # type: ignore[operator]
    (expected,) = results(Engine(EngineConfig(kv_cache_gb=0.02), merged).run(score))
    (base,) = results(engine.run(score))
    assert abs(base["logprob"] - expected["logprob"]) > 0.1
    assert found["logprob"] == pytest.approx(expected["logprob"], abs=1e-3)


def test_loading_and_unloading_while_others_run(folder: Path, eight: list[tuple[str, str]]) -> None:
    engine = engine_of(folder, eight[:1])
    fill = Fill((segments(TEXTS[0]),), (30,), (30,))
    expected = results(engine.run(fill))
    engine.add(engine.prepare(fill, "x"), fill)
    engine.step()
    ready: list[int] = []
    number = engine.adapters.begin_loading("new", eight[2][1], ready.append)
    with pytest.raises(RequestError, match="loaded already"):
        engine.adapters.begin_loading("new", eight[2][1])
    events: list[Event] = []
    while not ready:
        events += engine.step()
    card = engine.adapters.finish_loading(number, "new")
    assert (card.kind, card.prefix_tokens) == ("prefix", 37)
    other = replace(fill, adapter="new", max_tokens=(3,), min_tokens=(3,))
    engine.add(engine.prepare(other, "y"), other)
    engine.step()
    with pytest.raises(RequestError, match="in use by 1 requests") as error:
        engine.adapters.unload("new")
    assert error.value.code == "adapter_in_use"
    while not engine.idle:
        events += engine.step()
    assert [wire(e.result) for e in events if isinstance(e, ResultDone) and e.id == "x"] == expected
    engine.adapters.unload("new")
    engine.scheduler.check()
    with pytest.raises(RequestError, match="no adapter 'new' is loaded"):
        engine.prepare(other, "z")
    # The name is free again, for another one; nothing of the old is left.
    engine.adapters.finish_loading(engine.adapters.begin_loading("new", eight[0][1]), "new")
    new, old = (results(engine.run(replace(fill, adapter=name))) for name in ("new", "a0"))
    assert new == old


def test_a_request_that_is_refused_or_cancelled_leaves_its_adapter(folder: Path, eight: list[tuple[str, str]]) -> None:
    engine = engine_of(folder, [])
    engine.adapters.finish_loading(engine.adapters.begin_loading("p", eight[2][1]), "p")
    with pytest.raises(RequestError):
        engine.prepare(Fill(((" ".join(["river"] * 400), Mask("[MASK]")),), adapter="p"), "long")
    fill = Fill((segments(TEXTS[0]),), adapter="p")
    engine.add(engine.prepare(fill, "x"), fill)
    engine.step()
    assert isinstance(engine.cancel("x")[0], Failed)
    engine.adapters.unload("p")
    engine.scheduler.clear_contexts()
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def test_the_longest_text_behind_a_prefix_still_fits(folder: Path, eight: list[tuple[str, str]]) -> None:
    engine = engine_of(folder, [("p", eight[2][1])], kv_cache_gb=0.00015)
    limit = engine.adapters._contexts[1].card.max_context
    assert 16 <= limit < engine.card.max_context
    fill = Fill((("river " * 200, Mask("[MASK]")),), (limit,), (limit,), fit=True, adapter="p")
    (result,) = results(engine.run(fill))
    assert len(result["blanks"][0]["token_ids"]) > 0
    small = engine_of(folder, [], kv_cache_gb=0.0001)
    number = small.adapters.begin_loading("p", eight[2][1])
    with pytest.raises(RequestError, match="leaves no room"):
        small.adapters.finish_loading(number, "p")


class TestRegistry:
    """Names, references and the limit."""

    @staticmethod
    def enter(registry: Registry, name: str, pinned: bool = False) -> str | None:
        from engine.events import AdapterCard
        from engine.registry import Entry

        entry = Entry(registry.begin(name), AdapterCard(name, "lora", 0), pinned)
        gone = registry.enter(entry)
        return None if gone is None else gone.card.name

    def test_the_one_used_least_recently_makes_way(self) -> None:
        registry = Registry(3)
        assert [self.enter(registry, name) for name in "abc"] == [None] * 3
        registry.give_back(registry.take("a"))
        assert self.enter(registry, "d") == "b"
        held = registry.take("c")
        assert self.enter(registry, "e") == "a"
        assert self.enter(registry, "f") == "d"
        registry.give_back(held)
        assert [card.name for card in registry.cards] == ["c", "e", "f"]

    def test_those_in_use_and_the_operator_s_stay(self) -> None:
        registry = Registry(2)
        self.enter(registry, "a", pinned=True)
        self.enter(registry, "b")
        registry.take("b")
        with pytest.raises(RequestError, match="all 2 adapters") as error:
            self.enter(registry, "c")
        assert error.value.code == "adapters_full"
        with pytest.raises(RequestError, match="in use by 1"):
            registry.remove("b")
        registry.remove("a")
        assert self.enter(registry, "d") is None


@pytest.mark.parametrize(("name", "ranks"), [*((name, 2) for name in CONFIGS if name != "modernbert"), ("glm4", 4)])
def test_ranks_give_what_one_does(folders: dict[str, Path], tmp_path: Path, name: str, ranks: int) -> None:  # noqa: F811
    def serve(size: int) -> list[Event]:
        def work(ranks: Ranks) -> list[Event]:
            found: Checkpoint = checkpoint(folders[name], name, "none", ranks)
            config = EngineConfig(kv_cache_gb=0.001, block_size=8, adapters=dict(made[:2]))
            loaded = load_runner(config, found, ranks)
            channel = Channel(ranks, ranks.group) if size > 1 and ranks.group is not None else None
            if ranks.rank > 0 and channel is not None:
                follow(loaded.runner, channel)
                return []
            engine = Engine(config, loaded=loaded, channel=channel)
            events: list[Event] = []
            try:
                engine.adapters.finish_loading(engine.adapters.begin_loading("late", made[2][1]), "late")
                with pytest.raises(RequestError, match="no such folder"):
                    engine.adapters.finish_loading(
                        engine.adapters.begin_loading("bad", str(tmp_path / "nowhere")), "bad"
                    )
                for number, adapter in enumerate((None, "lora", "prefix", "late")):
                    for sort, request in enumerate(wanted(adapter)):
                        engine.add(engine.prepare(request, f"{number}.{sort}"), request)
                while not engine.idle:
                    events += engine.step()
                    engine.scheduler.check()
                engine.adapters.unload("late")
            finally:
                if channel is not None:
                    channel.stop()
            return events

        return on_ranks(size, work)[0]

    def wanted(adapter: str | None) -> list[Request]:
        continues = name in ("chatglm2", "proteinglm_clm")  # they have no form with a text behind the blank
        text = "w11 w40 w12 [gMASK]" if continues else "w11 w40 w12 [MASK] w33"
        spans = ("w20",) if name in MASKED else ("w20 w31",)
        return [
            Score(text=segments(text), spans=(spans,), adapter=adapter),
            Fill((segments(text),), (1 if name in MASKED else 5,), adapter=adapter),
        ]

    model = checkpoint(folders[name], name, "none", Ranks()).model
    made = [
        ("lora", str(write_lora(tmp_path / "lora", model, 1))),
        ("prefix", str(write_prefix(tmp_path / "prefix", model, 2, 13))),
        ("late", str(write_lora(tmp_path / "late", model, 3, 2))),
    ]
    one, several = ({e.id: wire(e.result) for e in serve(size) if isinstance(e, ResultDone)} for size in (1, ranks))
    assert len(one) == 8
    assert len({result["logprob"] for key, result in one.items() if key.endswith(".0")}) == 4
    for key, result in one.items():
        assert math.isclose(several[key]["logprob"], result["logprob"], abs_tol=1e-3), key
        if key.endswith(".1"):
            assert several[key]["text"] == result["text"]
