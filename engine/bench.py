"""`glm-infill bench decode`: whole steps of the runner on invented weights, beside the memory's own speed."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.batch import Batch, Rows
from engine.runner import Runner
from engine.sequence import Want
from model.architecture import Architecture
from model.attention import Span, part_b_start
from model.network import Network
from model.synthetic import synthetic
from quant import cpu
from quant.linear import Weight
from quant.schemes import build, build_head

_BLOCK = 16
_CONTEXT = 64  # tokens of part A that each measured sequence has
_BUFFER = 10**9  # bytes read to learn the memory's speed


@dataclass(frozen=True, slots=True)
class DecodeBench:
    """What is measured: a network's sizes and storage, the numbers of rows, the length of a prefill."""

    architecture: Architecture
    quant: str
    group_size: int
    quant_head: str
    rows: Sequence[int]
    prefill: int
    steps: int = 12


def decode(bench: DecodeBench) -> dict[str, Any]:
    """The JSON document of INTERFACE's `bench decode`."""
    head = build_head(bench.quant_head, torch.float32, "cpu")
    model = synthetic(bench.architecture, build(bench.quant, torch.float32, bench.group_size), head)
    weights = [module for module in model.modules() if isinstance(module, Weight)]
    macs = sum(w.in_features * w.out_features for w in weights)
    weight_bytes = sum(t.nbytes for w in weights for t in w.packed().values())
    bandwidth = read_bandwidth()
    steps = {rows: step_seconds(model, rows, bench.steps) for rows in bench.rows}
    # The memory may have become slower or faster meanwhile: a share refers to the mean of before and after.
    bandwidth = (bandwidth + read_bandwidth()) / 2
    result: dict[str, Any] = {
        "quant": bench.quant,
        "group_size": bench.group_size if bench.quant == "int4" else None,
        "quant_head": bench.quant_head,
        "macs_per_token": macs,
        "weight_bytes": weight_bytes,
        "read_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "threads": torch.get_num_threads(),
        "kernel": cpu.variant() or "torch",
        "decode": {
            str(rows): {
                "step_ms": round(seconds * 1e3, 2),
                "tokens_per_s": round(rows / seconds, 1),
                "ns_per_million_macs": round(seconds * 1e9 / (rows * macs / 1e6), 1),
                "bandwidth_share": round(weight_bytes / seconds / bandwidth, 3),
            }
            for rows, seconds in steps.items()
        },
    }
    if bench.prefill:
        seconds = _prefill_seconds(model, bench.prefill)
        # The head is computed for the last row alone.
        head_macs = bench.architecture.vocab_size * bench.architecture.hidden_size
        total = (macs - head_macs) * bench.prefill + head_macs
        result[f"prefill_{bench.prefill}"] = {
            "tokens_per_s": round(bench.prefill / seconds, 1),
            "gflops": round(2 * total / seconds / 1e9, 1),
        }
    return result


def read_bandwidth(rounds: int = 5) -> float:
    """Bytes a second at which all threads read a buffer larger than any cache; the best of `rounds`."""
    buffer = torch.ones(_BUFFER // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - began)
    return buffer.nbytes / best


def step_seconds(model: Network, num_rows: int, steps: int) -> float:
    """The median time of a step in which each of `num_rows` sequences gets one more token; of several ranks all call it
    at the same time."""
    first = part_b_start(_CONTEXT, _BLOCK)
    blocks_each = -(-(first + steps + 2) // _BLOCK)
    runner = Runner(model, num_rows * blocks_each, _BLOCK)
    own = [tuple(range(i * blocks_each, (i + 1) * blocks_each)) for i in range(num_rows)]
    runner.run(Batch(tuple(_context(model, _CONTEXT, blocks, number) for number, blocks in enumerate(own))), 0)
    seconds = []
    for step in range(steps + 2):
        rows = tuple(
            Rows(
                (_token(model, number + step),),
                (_CONTEXT - 1,),
                (1 + step,),
                Span(1, first + step, _CONTEXT, b),
                "token",
            )
            for number, b in enumerate(own)
        )
        began = time.perf_counter()
        runner.run(Batch(rows), 0)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def _prefill_seconds(model: Network, length: int) -> float:
    """The best of three encodings of one context, its last row's log-probabilities included."""
    blocks = tuple(range(-(-length // _BLOCK)))
    runner = Runner(model, len(blocks), _BLOCK)
    best = float("inf")
    for number in range(3):
        rows = _context(model, length, blocks, number, want="token")
        began = time.perf_counter()
        runner.run(Batch((rows,)), 0)
        best = min(best, time.perf_counter() - began)
    return best


def _context(model: Network, length: int, blocks: tuple[int, ...], seed: int, want: Want | None = None) -> Rows:
    ids = tuple(_token(model, seed + i) for i in range(length))
    causal = model.architecture.causal
    return Rows(ids, tuple(range(length)), (0,) * length, Span(length, 0, length, blocks, causal), want)


def _token(model: Network, number: int) -> int:
    """Ids all over the vocabulary, so that the embedding is read as in earnest."""
    return number * 7919 % model.architecture.vocab_size
