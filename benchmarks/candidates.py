"""Rows and time of many candidates in one blank, as one score beside a score for each batch of one.

`python -m benchmarks.candidates WORDS.txt` takes the 1,000 most frequent words of a text. "Each alone" counts the rows
that the candidates would need if each were computed by itself over the shared context, which is what this server did
before candidates shared their beginnings.
"""

import argparse
import re
import time
from collections import Counter
from pathlib import Path

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Mask, Score


def measured(engine: Engine, score: Score) -> tuple[int, float, list[float]]:
    """Rows, seconds and log-probabilities of a score whose context is cached already."""
    began, rows, found = time.perf_counter(), 0, {}
    engine.add(engine.prepare(score, "x"), score)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, ResultDone):
                found[event.result.index] = event.result.logprob
        assert engine.clock.last_stats is not None
        rows += engine.clock.last_stats.rows
    return rows, time.perf_counter() - began, [found[index] for index in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    words = Counter(re.findall(r"[a-z]+", args.text.read_text(encoding="utf-8").lower())).most_common(args.count)
    spans = tuple((word,) for word, _ in words)
    engine = Engine(EngineConfig(quant="int8"))
    text = ("And God said, Let there be ", Mask("[MASK]"), ": and there was light.")
    measured(engine, Score(text=text, spans=spans[:1]))  # caches the context
    alone = [measured(engine, Score(text=text, spans=(span,))) for span in spans]
    each = sum(rows for rows, _, _ in alone)
    print(f"{len(spans)} candidates, rows and seconds:")
    print(f"  each alone             {each:6}  {sum(seconds for _, seconds, _ in alone):6.2f}")
    for name, ends in (("together", True), ("together, without ends", False)):
        rows, seconds, logprobs = measured(engine, Score(text=text, spans=spans, end_logprobs=ends))
        assert logprobs == [one for _, _, (one,) in alone], "together they have other numbers"
        print(f"  {name:22} {rows:6}  {seconds:6.2f}  {rows / each:.2f} of the rows, same numbers to the bit")


if __name__ == "__main__":
    main()
