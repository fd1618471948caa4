"""What choosing a step's rows takes, with many tenants and with one: `python -m benchmarks.scheduler`.

The same requests, sent by many tenants and by a single one, wait for two schedulers; more of them than there are cache
blocks for, or rows in a step. Both then take decode steps in turns. `one` and `many` are ms a step, each the least of
several rounds' medians. No model runs. The last line is one JSON document, whose `ratio` is the worst one of all.
"""

import argparse
import json
import statistics
import time
from typing import Any

from engine.schedule.blocks import BlockPool
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Sequence

CONTEXT = 40  # tokens
BLOCK_SIZE = 16
CASES = ((64, 4), (128, 32))  # tenants, requests of each
WARM_UP = 60  # steps


class Side:
    """A scheduler and the requests of so many tenants in turn."""

    def __init__(self, tenants: int, requests: int, short_of: str) -> None:
        # Of blocks there are those for a tenth, of few blocks those for a request or two of each of many tenants.
        blocks = {"blocks": requests, "few blocks": requests // 4, "rows": requests * 40}[short_of]
        rows = requests // 4 if short_of == "rows" else 2048
        self.scheduler = Scheduler(BlockPool(blocks, BLOCK_SIZE), max(rows, 2 * CONTEXT))
        for number in range(requests):
            tokens = (number, *range(1, CONTEXT))
            sequence = Sequence(self.scheduler.context(tokens, f"tenant {number % tenants}"), "token", float(number))
            sequence.push(7, 1, 1)
            self.scheduler.add(sequence)

    def step(self) -> float:
        """Seconds that it takes to choose a step; then each row chosen is followed by another."""
        began = time.perf_counter()
        _, chosen = self.scheduler.schedule()
        seconds = time.perf_counter() - began
        for sequence in chosen:
            sequence.push(7, 1, len(sequence.token_ids) + 1)
        return seconds


def measure(tenants: int, each: int, short_of: str, rounds: int, steps: int) -> dict[str, Any]:
    least = [float("inf")] * 2
    for _ in range(rounds):
        sides = [Side(count, tenants * each, short_of) for count in (1, tenants)]
        for _ in range(WARM_UP):
            for side in sides:
                side.step()
        times = [[side.step() for side in sides] for _ in range(steps)]
        medians = [statistics.median(column) * 1000 for column in zip(*times, strict=True)]
        least = [min(pair) for pair in zip(least, medians, strict=True)]
    one, many = least
    running = [len(side.scheduler.running) for side in sides]
    return {"tenants": tenants, "requests": tenants * each, "short_of": short_of, "one": round(one, 3),
            "many": round(many, 3), "ratio": round(many / one, 2), "running": running}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48)
    options = parser.parse_args()
    found = []
    for tenants, each in CASES:
        for short_of in ("blocks", "few blocks", "rows"):
            found.append(measure(tenants, each, short_of, options.rounds, options.steps))
            print(*(f"{key} {value}" for key, value in found[-1].items()), flush=True)
    print(json.dumps({"benchmark": "scheduler", "ratio": max(line["ratio"] for line in found), "cases": found}))


if __name__ == "__main__":
    main()
