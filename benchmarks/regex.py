"""What a regular expression costs a step: the same model with a pattern and without one.

    python -m benchmarks.regex [--rows 8] [--tokens 48]

The same number of tokens is drawn in every way, round after round, in one process; medians are printed. "new" has to
read the vocabulary at every token, for its pattern has a state for each place of a text; "kept" finds its masks made.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

from engine.config import EngineConfig
from engine.engine import Engine
from engine.regex.constraint import Patterns
from engine.requests import Fill, Mask, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="samples filled at once")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--model")
    args = parser.parse_args()
    engine = Engine(EngineConfig(args.model, quant=args.quant))
    ways: dict[str, tuple[str, ...]] = {"free": (), "kept": ("[a-z ]+",), "new": ("[a-z ]{1,1000}",)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    Patterns(engine.tokenizer, len(engine.job_context.logit_mask)).get(["[a-z]+"])
    first = time.perf_counter() - began
    for _ in range(args.rounds + 1):
        for name, regex in ways.items():
            if name == "new":
                engine.job_context = replace(
                    engine.job_context, patterns=Patterns(engine.tokenizer, len(engine.job_context.logit_mask))
                )
            engine.job_context.patterns.get(regex)
            fill = Fill(
                (("The river ", Mask("[MASK]"), " over the hill."),),
                (args.tokens,),
                (args.tokens,),
                sampling=Sampling(1.0, seed=3),
                n=args.rows,
                regex=regex,
            )
            began = time.perf_counter()
            engine.run(fill)
            times[name].append((time.perf_counter() - began) / args.tokens)
    steps = {name: statistics.median(values[1:]) * 1e3 for name, values in times.items()}
    for name, step in steps.items():
        print(f"{name:>6} {step:8.3f} ms a step of {args.rows} rows")
    print(json.dumps({"rows": args.rows, "vocab": engine.card.vocab_size, "compile_ms": first * 1e3, "step_ms": steps}))


if __name__ == "__main__":
    main()
