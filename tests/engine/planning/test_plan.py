"""Plans: bytes against networks that are really there, times against arithmetic on paper, and what must always hold."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from engine.planning.cards import Card, devices, read_cards
from engine.planning.deployment import Deployment
from engine.planning.footprint import Footprint, footprint
from engine.planning.plan import Plan, plan
from engine.planning.roofline import BANDWIDTH_SHARE, BLOCK_KERNELS, KERNEL_S, RATE_SHARE, STEP_KERNELS, Roofline
from engine.planning.workspace import workspace
from engine.runner import Runner
from engine.schedule.batch import Batch, Rows
from model.architecture import Architecture
from model.attention import Span
from model.config import CheckpointError
from model.families import PRESETS
from model.network import Network
from model.parallel import Ranks
from model.random_weights import synthetic
from model.storage import Storage
from quant.linear import Weight
from quant.usage import UsageError

CARDS = read_cards()
SCHEMES = ("none", "int8", "int4")
every_preset = pytest.mark.parametrize("preset", PRESETS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def architecture(preset: str, **changes: Any) -> Architecture:
    family, config = PRESETS[preset]
    return replace(family.architecture(config), **changes)


def planned(preset: str, gpus: str, scheme: str = "none", head: str = "none", **options: Any) -> Plan:
    storage = Storage(scheme, options.pop("group_size", None), head)
    return plan(Deployment(architecture(preset), storage, devices(gpus, CARDS), **options))


def tiny(preset: str, **changes: Any) -> Architecture:
    """A family's network, small, whose widths several ranks can divide."""
    whole = architecture(preset)
    sizes: dict[str, Any] = {
        "num_layers": 3,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": min(whole.num_key_value_heads, 2 if preset.startswith("glm-4") else 4),
        "head_dim": 64 if whole.rotary is None else whole.rotary.size * whole.head_dim // whole.rotary.size,
        "inner_hidden_size": 512,
        "vocab_size": 1003,
        "max_sequence_length": 1024,
    }
    if whole.position_rows:
        sizes["position_rows"] = 1025
    return replace(whole, **sizes | changes)


# ---- bytes, against networks that are there


@pytest.mark.parametrize("preset", ["glm-10b", "glm-130b", "chatglm-6b", "glm-4-9b", "bert-base"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("scheme", "head"), [("none", "none"), ("int8", "none"), ("int4", "int8"), ("int4", "int4")])
def test_weights_are_those_of_the_loaded_network_to_the_byte(preset: str, ranks: int, scheme: str, head: str) -> None:
    a = tiny(preset)
    if ranks == 3:
        a = replace(a, num_attention_heads=6, num_key_value_heads=min(a.num_key_value_heads, 3) * 2 // 2)
        a = replace(a, num_key_value_heads=1 if preset.startswith("glm-4") else 6, inner_hidden_size=768)
    storage = Storage(scheme, None, head)
    for rank in range(ranks):
        f = footprint(Deployment(a, storage, devices(f"{ranks}xCPU", CARDS)), rank)
        blocks, embedding = storage.schemes(torch.float32, "cpu")
        with torch.device("meta"):
            model = Network(a, blocks, torch.float32, embedding, Ranks(rank, ranks))
        for module in model.modules():
            if isinstance(module, Weight):
                stored = module.scheme.tensors(module.out_features, module.in_features)
                module.assign({name: torch.zeros(shape, dtype=kind) for name, (shape, kind) in stored.items()})
        assert f.weights_bytes == sum(p.nbytes for p in model.parameters())


@every_preset
@every_scheme
def test_a_gpu_holds_the_stored_bytes(preset: str, scheme: str) -> None:
    a = architecture(preset)
    storage = Storage(scheme, 0 if a.inner_hidden_size % 32 else None)  # no group divides ProteinGLM's widths
    if scheme == "int4" and a.inner_hidden_size % 2:
        with pytest.raises(CheckpointError, match=f"int4 needs an even number of inputs, not {a.inner_hidden_size}"):
            footprint(Deployment(a, storage, devices("H200", CARDS)), 0)
        return
    f = footprint(Deployment(a, storage, devices("H200", CARDS)), 0)
    with torch.device("meta"):
        model = Network(a, storage.schemes(torch.float16, "cuda")[0], torch.float16, None)
    assert f.weights_bytes == sum(p.nbytes for p in model.parameters())


def test_glm_130b_has_the_bytes_that_are_published() -> None:
    f = footprint(Deployment(architecture("glm-130b"), Storage(), devices("H200", CARDS)), 0)
    assert f.weights_bytes == pytest.approx(257.4e9, rel=1e-3)  # 128.7 billion parameters
    assert f.kv_bytes_per_token == 3_440_640
    quantized = planned("glm-130b", "8xRTX2080Ti", "int4", group_size=0)
    assert sum(d.weights_bytes for d in quantized.devices) == pytest.approx(67e9, rel=0.02)  # "about 70 GB"


@pytest.mark.parametrize(("preset", "ranks", "heads"), [("glm-4-9b", 1, 2), ("glm-4-9b", 2, 1), ("glm-4-9b", 4, 1)])
def test_key_heads_are_copied_where_ranks_are_more(preset: str, ranks: int, heads: int) -> None:
    a = architecture(preset)
    f = footprint(Deployment(a, Storage(), devices(f"{ranks}xRTX3090", CARDS)), 0)
    assert f.kv_bytes_per_token == 2 * 2 * a.num_layers * heads * a.head_dim


def test_int8_keys_and_values_have_a_scale_a_head() -> None:
    a = architecture("glm-130b")
    d = Deployment(a, Storage(), devices("8xA100-80", CARDS), kv_cache_type="int8")
    assert footprint(d, 0).kv_bytes_per_token == 2 * 70 * 12 * (128 + 4)


def test_a_vocabulary_that_ranks_do_not_divide_is_uneven_among_them() -> None:
    d = Deployment(tiny("glm-10b", vocab_size=1001), Storage(), devices("4xRTX3090", CARDS))
    even = replace(d, architecture=replace(d.architecture, vocab_size=1000))
    more = [footprint(d, rank).weights_bytes - footprint(even, rank).weights_bytes for rank in range(4)]
    assert sum(more) == 256 * 2  # one row, wherever it is


@pytest.mark.parametrize("preset", ["glm-10b", "glm-130b", "chatglm-6b", "glm-4-9b", "bert-base"])
@every_scheme
@pytest.mark.parametrize("contexts", [1, 4])
def test_a_step_allocates_what_was_counted(preset: str, scheme: str, contexts: int) -> None:
    rows, wide = 512, {"glm-10b": 2048, "chatglm-6b": 2048}.get(preset, 1024)
    a = tiny(preset, inner_hidden_size=wide, num_layers=2)
    each = rows // contexts
    d = Deployment(a, Storage(scheme), devices("CPU", CARDS), request_tokens=each, max_batch_tokens=rows)
    counted = _counted(d)
    allocated = _allocated(a, Storage(scheme), rows, contexts, scored=False)
    assert 0.93 < counted / allocated < 1.25
    small = tiny(preset, hidden_size=64, head_dim=16, num_layers=1, inner_hidden_size=64, vocab_size=4001)
    if small.rotary is None:
        d = replace(d, architecture=small)
        assert 0.95 < _counted(d) / _allocated(small, Storage(scheme), rows, contexts, True) < 1.4


def _counted(d: Deployment) -> int:
    """The most at once, without what the heap keeps."""
    with torch.device("meta"):
        network = Network(replace(d.architecture, num_layers=1), d.storage.schemes(torch.float32, "cpu")[0])
    return replace(workspace(d, 0, network), keeps=False, tables_bytes=0).num_bytes


def _allocated(a: Architecture, storage: Storage, rows: int, contexts: int, scored: bool) -> int:
    """The most that a step has allocated at once, as torch's own profiler saw it."""
    scheme, head = storage.schemes(torch.float32, "cpu")
    model = synthetic(a, scheme, head)
    each, blocks = rows // contexts, rows // contexts // 16
    runner = Runner(model, contexts * blocks, 16)
    batch = Batch(
        tuple(
            Rows(
                tuple(range(each)),
                tuple(range(each)),
                (0,) * each,
                Span(each, 0, each, tuple(range(i * blocks, (i + 1) * blocks)), a.causal),
                "scores" if scored else None,
                targets=tuple(range(each)) if scored else (),
            )
            for i in range(contexts)
        )
    )
    runner.run(batch, 0)  # the tables of cosines and sines are made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        runner.run(batch, 0)
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


# ---- the configurations that GLM-130B was published for


def test_glm_130b_in_int4_fits_four_3090() -> None:
    p = planned("glm-130b", "4xRTX3090", "int4")
    assert p.fits
    assert p.reason is None
    assert p.instead == []
    assert p.max_requests >= 2
    assert 5000 < p.max_tokens < 9000


def test_glm_130b_in_int4_fits_eight_2080_ti() -> None:
    p = planned("glm-130b", "8xRTX2080Ti", "int4")
    assert p.fits
    assert p.max_requests == 1
    assert 2064 <= p.max_tokens < 3000
    assert "--kv-cache-type int8" in p.notes[0]  # a context and a span of full length each need more


def test_glm_130b_in_int8_does_not_fit_four_3090_but_eight() -> None:
    p = planned("glm-130b", "4xRTX3090", "int8")
    assert not p.fits
    assert p.reason is not None
    assert "32.66 GB of weights" in p.reason
    assert "more than the 25.77 GB of RTX3090" in p.reason
    assert p.max_tokens == p.max_requests == 0
    assert all(device.free_bytes < 0 for device in p.devices)
    assert p.instead == ["--quant int4", "--gpus 8xRTX3090"]
    assert planned("glm-130b", "8xRTX3090", "int8").fits


def test_glm_130b_in_float16_fits_eight_a100_of_40_gb() -> None:
    assert planned("glm-130b", "8xA100-40").fits
    assert not planned("glm-130b", "8xV100-32").fits
    assert planned("glm-130b", "8xV100-32", "int8").fits


@pytest.mark.parametrize(
    ("preset", "gpus", "scheme", "options", "reason", "instead"),
    [
        ("glm-130b", "5xRTX3090", "int4", {}, "num_attention_heads 96 is not divisible by 5 ranks", "--gpus 4xRTX3090"),
        ("glm-4-9b", "8xRTX3090", "int4", {}, "group_size 32 does not divide the 1712 inputs", "--gpus 4xRTX3090"),
        ("proteinglm-3b-mlm", "RTX3090", "int4", {}, "group_size 32 does not divide the 6832 in", "--group-size 0"),
        ("proteinglm-1b-clm", "RTX3090", "int4", {}, "needs an even number of inputs, not 5461", "--quant int8"),
        ("glm-130b", "7xCPU", "int4", {}, "num_attention_heads 96 is not divisible by 7 ranks", None),
        ("glm-130b", "4xRTX3090", "int4", {"group_size": 32, "request_tokens": 2048}, None, None),
    ],
)
def test_what_ranks_do_not_divide_is_said_with_what_they_do(
    preset: str, gpus: str, scheme: str, options: dict[str, Any], reason: str | None, instead: str | None
) -> None:
    p = planned(preset, gpus, scheme, **options)
    assert p.fits == (reason is None)
    if reason is not None:
        assert p.reason is not None
        assert reason in p.reason
        assert "\n" not in p.reason
        assert p.devices == []
        assert p.predicted.token_s is None
    if instead is not None:
        assert instead in p.instead


def test_a_shorter_context_and_a_smaller_cache_are_proposed() -> None:
    little = Card(
        name="little", memory_gib=8.0, bandwidth_gb_s=600, float_tflops=50, int8_tops=100, link_gb_s=10, hop_us=3,
        capability=8.6,
    )  # fmt: skip
    d = Deployment(architecture("chatglm-6b"), Storage("int8"), (little,))
    p = plan(d)
    assert not p.fits
    assert p.reason is not None
    assert "a request of 2048 needs" in p.reason
    assert "--kv-cache-type int8" in p.instead
    assert "--context 1024" in p.instead
    assert "--quant int4" in p.instead
    assert "--quant int4" not in plan(d, requantize=False).instead


@pytest.mark.parametrize(("scheme", "options"), [("none", {}), ("none", {"kv_cache_type": "int8"})])
def test_what_is_proposed_fits(scheme: str, options: dict[str, Any]) -> None:
    d = Deployment(architecture("glm-10b"), Storage(scheme), devices("T4", CARDS), **options)
    p = plan(d)
    assert not p.fits
    assert p.instead
    for line in p.instead:
        words = line.split()
        given = dict(zip(words[::2], words[1::2], strict=True))
        storage = Storage.asked(given.get("--quant", scheme), None, given.get("--quant-head"))
        other = replace(
            d,
            storage=storage,
            devices=devices(given.get("--gpus", "T4"), CARDS),
            kv_cache_type=given.get("--kv-cache-type", d.kv_cache_type),
            request_tokens=int(given.get("--context", 0)) or None,
        )
        assert plan(other).fits, line


# ---- times, against arithmetic on paper


def test_a_token_on_one_card_takes_the_reading_of_its_weights() -> None:
    d = Deployment(architecture("glm-4-9b"), Storage(), devices("RTX3090", CARDS))
    f = footprint(d, 0)
    line = Roofline(d, d.devices[0], f)
    a = d.architecture
    # Everything but the table of embeddings, of which a row is read.
    assert f.step_bytes == f.weights_bytes - 2 * a.vocab_size * a.hidden_size
    seconds = f.step_bytes / (936e9 * BANDWIDTH_SHARE) + (40 * BLOCK_KERNELS + STEP_KERNELS) * KERNEL_S
    assert line.token(0) == pytest.approx(seconds)
    assert line.token(1000) - line.token(0) == pytest.approx(1000 * f.kv_bytes_per_token / (936e9 * BANDWIDTH_SHARE))
    assert line.generate(512) == pytest.approx(sum(line.token(n) for n in range(1, 513)))


def test_encoding_takes_the_products_of_all_rows() -> None:
    d = Deployment(architecture("glm-130b"), Storage("int4", 0), devices("8xA100-40", CARDS))
    line = Roofline(d, d.devices[0], footprint(d, 0))
    layers = 70 * (12288 * 3 * 12288 + 12288 * 12288 + 3 * 12288 * 32768) / 8
    assert line.footprint.layer_macs == layers
    products = 2 * 2048 * layers / (312e12 * RATE_SHARE)
    sums = 141 * 2 * 7 / 8 * 2048 * 12288 * 2 / (300e9 * 0.7)
    assert line.encode(2048) == pytest.approx(products + sums, rel=0.06)  # attention, kernels and hops


def test_before_ampere_encoding_pays_for_float_copies() -> None:
    turing, ampere = (replace(CARDS["rtx2080ti"], name="card", capability=capability) for capability in (7.5, 8.0))
    d = Deployment(architecture("glm-10b"), Storage("int8"), (turing,))
    f = footprint(d, 0)
    assert Roofline(d, turing, f).encode(512) > Roofline(d, ampere, f).encode(512)
    assert Roofline(d, turing, f).encode(64) == Roofline(d, ampere, f).encode(64)
    assert Roofline(d, turing, f).token(100) == Roofline(d, ampere, f).token(100)


def test_a_masked_language_model_computes_its_text_anew_for_a_word() -> None:
    p = planned("bert-base", "T4").predicted
    assert p.decode_s == {}
    assert p.token_s == p.encode_s["512"]


# ---- what must always hold

some_cards = st.sampled_from(sorted(set(CARDS) - {"cpu"}))
deployments = st.builds(
    lambda preset, card, ranks, scheme, head, kv: Deployment(
        architecture(preset), Storage(scheme, None, head), (CARDS[card],) * ranks, kv
    ),
    st.sampled_from(sorted(PRESETS)),
    some_cards,
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from(SCHEMES),
    st.sampled_from(SCHEMES),
    st.sampled_from(["auto", "int8"]),
)


def footprints(d: Deployment) -> list[Footprint] | None:
    try:
        return [footprint(d, rank) for rank in range(d.ranks)]
    except (CheckpointError, UsageError):
        return None


@given(deployments)
@settings(max_examples=60, deadline=None)
def test_a_plan_is_finite_json_that_agrees_with_itself(d: Deployment) -> None:
    p = plan(d)
    found = json.loads(json.dumps(p.to_json(), allow_nan=False))
    assert {"fits", "reason", "devices", "max_tokens", "max_requests", "predicted"} <= found.keys()
    assert found["predicted"].keys() >= {"encode_s", "token_s"}
    assert p.fits == (p.reason is None) == (p.max_requests >= 1)
    for device in p.devices:
        held = device.weights_bytes + device.workspace_bytes + device.reserve_bytes
        assert held + device.free_bytes == device.memory_bytes
        assert p.max_tokens * device.kv_bytes_per_token <= max(device.free_bytes, 0)
        assert p.max_tokens * device.kv_bytes_per_token <= p.kv_cache_gb * 1e9 * (1 + 1e-12)
    seconds = [*p.predicted.encode_s.values(), *p.predicted.decode_s.values()]
    assert all(math.isfinite(s) and s > 0 for s in seconds)
    assert sorted(p.predicted.encode_s.values()) == [*p.predicted.encode_s.values()]


@given(deployments, st.floats(1.0, 4.0))
@settings(max_examples=40, deadline=None)
def test_more_memory_never_fits_fewer_tokens(d: Deployment, factor: float) -> None:
    more = tuple(replace(card, memory_gib=card.memory_gib * factor) for card in d.devices)
    assert plan(replace(d, devices=more)).max_tokens >= plan(d).max_tokens


@given(deployments)
@settings(max_examples=40, deadline=None)
def test_more_ranks_never_hold_more_each(d: Deployment) -> None:
    few, many = footprints(d), footprints(replace(d, devices=d.devices * 2))
    if few is not None and many is not None:
        for name in ("weights_bytes", "step_bytes", "layer_macs", "head_macs", "kv_bytes_per_token"):
            assert max(getattr(f, name) for f in many) <= max(getattr(f, name) for f in few), name


@given(deployments)
@settings(max_examples=40, deadline=None)
def test_ranks_together_hold_the_model_at_least_once(d: Deployment) -> None:
    alone, together = footprints(replace(d, devices=d.devices[:1])), footprints(d)
    if alone is not None and together is not None:
        assert sum(f.weights_bytes for f in together) >= alone[0].weights_bytes
        assert sum(f.layer_macs for f in together) >= alone[0].layer_macs


@given(deployments, st.integers(1, 2048))
@settings(max_examples=40, deadline=None)
def test_a_shorter_request_never_fits_less_often(d: Deployment, tokens: int) -> None:
    longer = min(tokens * 2, d.architecture.max_sequence_length)
    short, long = (plan(replace(d, request_tokens=n)) for n in (min(tokens, longer), longer))
    assert short.max_requests >= long.max_requests
    assert short.max_tokens >= long.max_tokens


@given(deployments)
@settings(max_examples=40, deadline=None)
def test_a_faster_card_is_never_slower(d: Deployment) -> None:
    fast = tuple(
        replace(c, bandwidth_gb_s=2 * c.bandwidth_gb_s, float_tflops=2 * c.float_tflops, int8_tops=2 * c.int8_tops)
        for c in d.devices
    )
    slow, quick = plan(d).predicted, plan(replace(d, devices=fast)).predicted
    assert (quick.token_s or 0) <= (slow.token_s or 0)
    assert all(quick.encode_s[n] <= slow.encode_s[n] for n in slow.encode_s)


def test_the_slowest_and_the_smallest_of_unlike_cards_decide() -> None:
    mixed = planned("glm-10b", "A100-80,RTX2080Ti")
    slow, large = planned("glm-10b", "2xRTX2080Ti"), planned("glm-10b", "2xA100-80")
    assert mixed.max_tokens == slow.max_tokens < large.max_tokens
    assert mixed.predicted.token_s == slow.predicted.token_s
