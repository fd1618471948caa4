"""What sharing one encoding of the context is worth: candidates in one request against one request each.

    python -m benchmarks.shared_context [--candidates 16] [--context 400]

The three ways are timed in turn, round after round, in one process; the medians and their ratios are printed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

from engine.config import EngineConfig
from engine.engine import Engine
from engine.requests import Mask, Score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--context", type=int, default=400, help="tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--model")
    args = parser.parse_args()
    engine = Engine(EngineConfig(args.model, quant=args.quant))
    word = engine.tokenizer.encode(" the")
    text = engine.tokenizer.decode(word * (args.context - 4))
    context = (text, " ", Mask("[MASK]"), ".")
    pairs = [engine.tokenizer.decode([300 + 2 * i, 301 + 2 * i]) for i in range(args.candidates)]
    packed = Score(text=context, spans=tuple((p,) for p in pairs))
    single = [Score(text=context, spans=((p,),)) for p in pairs]

    def forget() -> None:
        engine.scheduler.clear_contexts()

    def cold_packed() -> None:
        forget()
        engine.run(packed)

    def cold_singles() -> None:
        for score in single:
            forget()
            engine.run(score)

    def cached_singles() -> None:
        forget()
        for score in single:
            engine.run(score)

    ways: dict[str, Callable[[], None]] = {
        "packed": cold_packed,
        "separate": cold_singles,
        "separate_cached_context": cached_singles,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    ms = {name: round(statistics.median(values[1:]) * 1e3, 2) for name, values in times.items()}
    for name, value in ms.items():
        print(f"{name:26} {value:9.2f} ms")
    result = {
        "benchmark": "shared_context",
        "model": engine.card.name,
        "quant": args.quant,
        "context_tokens": engine.prepare(packed, "count").counts.prompt_tokens,
        "candidates": args.candidates,
        "ms": ms,
        "packed_over_separate": round(ms["packed"] / ms["separate"], 4),
        "packed_over_separate_cached_context": round(ms["packed"] / ms["separate_cached_context"], 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
