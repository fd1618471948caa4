"""`glm-infill bench decode`: whole steps of the runner on random weights, beside the bandwidth of the memory."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.runner import Runner
from engine.schedule.batch import Batch, Rows
from engine.schedule.sequence import Output
from model.architecture import Architecture
from model.attention import KVCache, Span, part_b_start
from model.checkpoint import matrix_dtype
from model.network import Network
from model.random_weights import synthetic
from model.storage import Storage
from quant import cpu
from quant.linear import Weight
from quant.usage import UsageError

_BLOCK = 16
_BUFFER = 10**9  # bytes read to learn the memory's speed


@dataclass(frozen=True, slots=True)
class DecodeBench:
    """The parameters of a benchmark.

    They are a network's sizes and storage (`Storage.asked` gives that of `serve` with the same options), the numbers of
    rows, the tokens of a prefill, the tokens of part A of each sequence, the type of the KV cache, and
    the dtype of float matrices in the model's files.
    """

    architecture: Architecture
    storage: Storage
    rows: Sequence[int]
    prefill: int
    context: int = 64
    kv_cache_type: str = "auto"
    steps: int = 12
    floats: torch.dtype = torch.float16


def decode(bench: DecodeBench) -> dict[str, Any]:
    """Runs the benchmark; returns the JSON document of `bench decode` (docs/contract.md).

    Raises UsageError for a storage that the network cannot have, and for more positions than it has.
    """
    a, positions = bench.architecture, bench.context + bench.steps + 2
    if positions > a.max_sequence_length:
        raise UsageError(f"a context of {bench.context} needs {positions} positions of {a.max_sequence_length}")
    model = synthetic(bench.architecture, *bench.storage.schemes(matrix_dtype("cpu", bench.floats), "cpu"))
    weights = [module for module in model.modules() if isinstance(module, Weight)]
    macs = sum(w.in_features * w.out_features for w in weights)
    weight_bytes = sum(t.nbytes for w in weights for t in w.packed().values())
    bandwidth = read_bandwidth()
    steps = {rows: step_seconds(model, rows, bench.steps, bench.context, bench.kv_cache_type) for rows in bench.rows}
    # The memory may have become slower or faster meanwhile: a share refers to the mean of before and after.
    bandwidth = (bandwidth + read_bandwidth()) / 2
    result: dict[str, Any] = {
        "quant": bench.storage.scheme,
        "group_size": bench.storage.to_json().get("group_size"),
        "quant_head": bench.storage.head,
        "kv_cache_type": bench.kv_cache_type,
        "context": bench.context,
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
        seconds = _prefill_seconds(model, bench)
        # The head is computed for the last row alone.
        head_macs = bench.architecture.vocab_size * bench.architecture.hidden_size
        total = (macs - head_macs) * bench.prefill + head_macs
        result[f"prefill_{bench.prefill}"] = {
            "tokens_per_s": round(bench.prefill / seconds, 1),
            "gflops": round(2 * total / seconds / 1e9, 1),
        }
    return result


def read_bandwidth(rounds: int = 5) -> float:
    """Bytes per second at which all threads read a buffer larger than any cache; the best of `rounds`."""
    buffer = torch.ones(_BUFFER // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - began)
    return buffer.nbytes / best


class Steps:
    """Sequences over contexts of their own. Each step adds one token to each."""

    def __init__(self, model: Network, num_rows: int, context: int, num_steps: int, kv_cache_type: str) -> None:
        first = part_b_start(context, _BLOCK)
        blocks_each = -(-(first + num_steps) // _BLOCK)
        self.context, self.first, self.done = context, first, 0
        self.runner = Runner(model, num_rows * blocks_each, _BLOCK, kv_cache_type=kv_cache_type)
        self.blocks = [tuple(range(i * blocks_each, (i + 1) * blocks_each)) for i in range(num_rows)]
        _invent(self.runner.cache, context, [blocks[0] for blocks in self.blocks])

    def seconds(self) -> float:
        """Runs the next step and returns its time in seconds."""
        rows = tuple(
            Rows(
                (_token(self.runner.model, number + self.done),),
                (self.context - 1,),
                (1 + self.done,),
                Span(1, self.first + self.done, self.context, blocks),
                "token",
            )
            for number, blocks in enumerate(self.blocks)
        )
        self.done += 1
        began = time.perf_counter()
        self.runner.run(Batch(rows), 0)
        return time.perf_counter() - began


def step_seconds(model: Network, num_rows: int, steps: int, context: int = 64, kv_cache_type: str = "auto") -> float:
    """The median time, in seconds, of a step that adds one token to each of `num_rows` sequences.

    Two steps before it do not count. All ranks call this at the same time.
    """
    timed = Steps(model, num_rows, context, steps + 2, kv_cache_type)
    return statistics.median([timed.seconds() for _ in range(steps + 2)][2:])


def _invent(cache: KVCache, context: int, first_blocks: Sequence[int]) -> None:
    """Writes keys and values of contexts, the same numbers for each: to encode long ones would take minutes."""
    num_layers, _, heads, head_dim = cache.keys.numbers.shape
    numbers = torch.randn(context, heads, head_dim, generator=torch.Generator().manual_seed(0))
    for layer in range(num_layers):
        for vectors in (cache.keys[layer], cache.values[layer]):
            for block in first_blocks:
                vectors.write(torch.arange(context) + block * _BLOCK, numbers)


def _prefill_seconds(model: Network, bench: DecodeBench) -> float:
    """The best of three encodings of one context, its last row's log-probabilities included."""
    blocks = tuple(range(-(-bench.prefill // _BLOCK)))
    runner = Runner(model, len(blocks), _BLOCK, kv_cache_type=bench.kv_cache_type)
    best = float("inf")
    for number in range(3):
        rows = _context(model, bench.prefill, blocks, number, output="token")
        began = time.perf_counter()
        runner.run(Batch((rows,)), 0)
        best = min(best, time.perf_counter() - began)
    return best


def _context(model: Network, length: int, blocks: tuple[int, ...], seed: int, output: Output | None = None) -> Rows:
    ids = tuple(_token(model, seed + i) for i in range(length))
    causal = model.architecture.causal
    return Rows(ids, tuple(range(length)), (0,) * length, Span(length, 0, length, blocks, causal), output)


def _token(model: Network, number: int) -> int:
    """Ids all over the vocabulary, so that the embedding is read as in earnest."""
    return number * 7919 % model.architecture.vocab_size
