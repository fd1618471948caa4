"""What a step takes beside the network: `python -m benchmarks.step_overhead [--rows 32] [--folder FOLDER]`.

An engine in this process, many fills at once, each step taken apart: the network with its log-probabilities, and all
that the host does around it (schedule, draw, detokenize, make events). `frame` is what the engine's process then takes
to write a step's events as a JSON frame, `read` what the HTTP process takes to read it, beside the next step. The last
line is one JSON document, times in ms, medians over the steps; `share` is that of host and frame.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.processes.messages import FROM_RANK, HEADER, Happened
from engine.requests import Fill, Mask, Sampling
from engine.schedule.batch import Result
from server.commands.load import WORDS


class Timed:
    """A runner, and the seconds of its last step."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.seconds = 0.0

    def run(self, batch: Any, num_top: int) -> tuple[list[Result], int]:
        began = time.perf_counter()
        found: tuple[list[Result], int] = self.runner.run(batch, num_top)
        self.seconds = time.perf_counter() - began
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


def measure(config: EngineConfig, rows: int, steps: int, sampling: Sampling) -> dict[str, Any]:
    engine = Engine(config)
    timed = Timed(engine.runner)
    engine.runner = timed  # type: ignore[assignment]
    for number in range(rows):
        words = " ".join(WORDS[number % 7 : number % 7 + 24])
        fill = Fill(((f"{words} ", Mask("[MASK]"), " and so on"),), (steps + 8,), (steps + 8,), sampling, stream=True)
        fill = replace(fill, tenant=str(number % 4))
        engine.add(engine.prepare(fill, str(number)), fill)
    for _ in range(4):
        engine.step()
    whole, network, frames, reads = [], [], [], []
    for _ in range(steps):
        began = time.perf_counter()
        events = engine.step()
        whole.append(time.perf_counter() - began)
        network.append(timed.seconds)
        began = time.perf_counter()
        data = FROM_RANK.frame(Happened(events))
        frames.append(time.perf_counter() - began)
        began = time.perf_counter()
        FROM_RANK.decode(data[HEADER.size :])
        reads.append(time.perf_counter() - began)
    step, inside, sent, read = (statistics.median(times) * 1000 for times in (whole, network, frames, reads))
    host = step - inside
    return {"rows": rows, "step": step, "network": inside, "host": host, "frame": sent, "read": read,
            "share": (host + sent) / (step + sent)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,16,32,128")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="a folder of benchmarks.serving, with invented INT4 weights")
    options = parser.parse_args()
    if options.folder:
        config = EngineConfig(
            str(options.folder), quant="int4", quant_head="int4", kv_cache_gb=3.0, load_format="dummy"
        )
    else:
        config = EngineConfig(quant="int8")
    found = {}
    for name, sampling in {"greedy": Sampling(), "sampled": Sampling(temperature=0.8, top_p=0.9, seed=1)}.items():
        found[name] = [measure(config, int(rows), options.steps, sampling) for rows in options.rows.split(",")]
        for line in found[name]:
            print(name, *(f"{key} {value:.3g}" for key, value in line.items()))
    print(json.dumps({"benchmark": "step_overhead", "model": str(config.model or "glm-demo"), **found}))


if __name__ == "__main__":
    main()
