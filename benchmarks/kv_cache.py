"""What keys and values in int8, and in huge pages, are worth: bytes a token, tokens in a cache, decode steps.

    python -m benchmarks.kv_cache [--preset chatglm-6b] [--layers 2] [--rows 1,16,32] [--contexts 64,1024]

Whole decode steps on invented INT4 weights; the ways are timed in turn, step after step, on one network, and medians
told. Ordinary pages are what the C library gives. Prints a table in Markdown and, as the last line, JSON.
"""

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

import torch

from engine.bench import Steps
from model.attention import KVCache
from model.families import PRESETS
from model.network import Network
from model.random_weights import synthetic
from quant.cache_tensor import CacheTensor
from quant.registry import build, build_head

KINDS = {"float32": "auto", "int8": "int8"}
GIGABYTES = 0.5  # the server's default cache


def capacity(preset: str) -> dict[str, dict[str, int]]:
    """Bytes a token and tokens in the default cache, by what keys and values are kept as."""
    family, config = PRESETS[preset]
    a = family.architecture(config)
    found = {}
    for dtype in (torch.float32, torch.float16, torch.int8):
        size = KVCache.bytes_per_token(a.num_layers, a.num_key_value_heads, a.head_dim, dtype)
        found[str(dtype).removeprefix("torch.")] = {"bytes_per_token": size, "tokens": int(GIGABYTES * 1e9 // size)}
    return found


def ordinary(vectors: CacheTensor) -> CacheTensor:
    """A copy in ordinary pages."""
    return CacheTensor(vectors.numbers.clone(), None if vectors.scales is None else vectors.scales.clone())


def step_ms(model: Network, num_rows: int, context: int, num_steps: int) -> dict[str, float]:
    """The median time of a step, by kind and pages."""
    ways = {}
    for name, kind in KINDS.items():
        for pages in ("ordinary", "huge"):
            ways[f"{name}, {pages} pages"] = steps = Steps(model, num_rows, context, num_steps + 1, kind)
            cache = steps.runner.cache
            if pages == "ordinary":
                cache.keys, cache.values = ordinary(cache.keys), ordinary(cache.values)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_steps + 1):
        for name, steps in ways.items():
            times[name].append(steps.seconds())
    return {name: round(statistics.median(values[1:]) * 1e3, 2) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="chatglm-6b", choices=PRESETS)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", default="1,16,32", help="numbers of sequences in a step")
    parser.add_argument("--contexts", default="64,1024", help="tokens of each sequence's context")
    parser.add_argument("--steps", type=int, default=9)
    args = parser.parse_args()
    rows, contexts = ([int(part) for part in given.split(",")] for given in (args.rows, args.contexts))
    family, config = PRESETS[args.preset]
    architecture = replace(family.architecture(config), num_layers=args.layers)
    model = synthetic(architecture, build("int4"), build_head("int4", torch.float32, "cpu"))
    steps = [(context, count, step_ms(model, count, context, args.steps)) for context in contexts for count in rows]
    names = list(steps[0][2])
    print(f"| context | rows | {' | '.join(names)} |")
    print("|" + "---|" * (2 + len(names)))
    for context, count, ms in steps:
        print(f"| {context} | {count} | {' | '.join(f'{ms[name]:.1f}' for name in names)} |")
    result: dict[str, Any] = {
        "benchmark": "kv_cache",
        "preset": args.preset,
        "layers": args.layers,
        "threads": torch.get_num_threads(),
        "step_ms": [{"context": context, "rows": count, **ms} for context, count, ms in steps],
        "capacity": {name: capacity(name) for name in ("chatglm-6b", "glm-130b")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
