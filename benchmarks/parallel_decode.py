"""Decode steps of two ranks with one thread each beside one rank with two threads, and what they send each other.

    python -m benchmarks.parallel_decode [--preset chatglm-6b] [--layers 8] [--quant int4] [--rounds 5] [--threads 1]

Invented weights; both ways are measured by turns, in processes that are there all the time, and the least of each is
compared: the machine has `ranks` × `threads` cores to give either way. `exchange_ms` is the time of a step's sums over
ranks alone, taken without the step around them; `bytes` is what a rank sends for one sum of hidden states.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from engine.bench import step_seconds
from engine.processes.supervisor import LOCAL
from engine.rank_info import RankInfo
from engine.ranks import join
from model.families import PRESETS
from model.parallel import ALONE, Ranks
from model.random_weights import synthetic
from quant.registry import build, build_head

ROWS = (1, 4, 16, 32)


def worker(options: argparse.Namespace, rank_info: RankInfo) -> None:
    """Waits for a line on standard input, measures, and writes a line; all ranks of a group are asked at once."""
    torch.set_num_threads(options.threads)
    ranks = join(rank_info, cuda=False).ranks if rank_info.size > 1 else ALONE
    family, config = PRESETS[options.preset]
    architecture = dataclasses.replace(family.architecture(config), num_layers=options.layers)
    head = build_head("int8", torch.float32, "cpu")
    model = synthetic(architecture, build(options.quant, torch.float32, 32), head, ranks=ranks)
    print("ready", flush=True)
    for _ in sys.stdin:
        with torch.inference_mode():
            steps = {rows: step_seconds(model, rows, 10) * 1e3 for rows in ROWS}
            sums = {rows: exchange(ranks, rows, architecture.hidden_size, options.layers) * 1e3 for rows in ROWS}
        print(json.dumps({"step_ms": steps, "exchange_ms": sums}), flush=True)


def exchange(ranks: Ranks, rows: int, width: int, layers: int) -> float:
    """Seconds of a step's sums: two a block, and one of the embedding."""
    x = torch.randn(rows, width)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2 * layers + 1):
            x = ranks.all_reduce(x.clone()) * 0.5
        best = min(best, time.perf_counter() - began)
    return best


def started(options: argparse.Namespace, size: int, threads: int, folder: str) -> list[subprocess.Popen[str]]:
    found = []
    for rank in range(size):
        rank_info = RankInfo(rank, size, rank, size, f"file://{folder}/ranks-{size}")
        command = [
            sys.executable,
            "-m",
            "benchmarks.parallel_decode",
            "--worker",
            json.dumps(dataclasses.asdict(rank_info)),
        ]
        command += ["--preset", options.preset, "--layers", str(options.layers), "--quant", options.quant]
        command += ["--threads", str(threads)]
        pipe, variables = subprocess.PIPE, os.environ | LOCAL
        found.append(subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, text=True))
    for process in found:
        answer(process)
    return found


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def measured(group: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """Rank 0's figures of one round."""
    for process in group:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [json.loads(answer(process)) for process in group]
    first: dict[str, Any] = answers[0]
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="chatglm-6b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options, RankInfo(**json.loads(options.worker)))
        return
    with tempfile.TemporaryDirectory() as folder:
        groups = {
            "one": started(options, 1, options.ranks * options.threads, folder),
            "ranks": started(options, options.ranks, options.threads, folder),
        }
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in groups}
        for _ in range(options.rounds):
            for name, group in groups.items():
                rounds[name].append(measured(group))
        for group in groups.values():
            for process in group:
                process.communicate()
    width = PRESETS[options.preset][0].architecture(PRESETS[options.preset][1]).hidden_size
    table = {}
    for rows in map(str, ROWS):
        least = {name: min(r["step_ms"][rows] for r in runs) for name, runs in rounds.items()}
        sums = min(r["exchange_ms"][rows] for r in rounds["ranks"])
        table[rows] = {
            "one_ms": round(least["one"], 2),
            "ranks_ms": round(least["ranks"], 2),
            "ratio": round(least["one"] / least["ranks"], 3),
            "exchange_ms": round(sums, 2),
            "exchange_share": round(sums / least["ranks"], 3),
            "bytes": int(rows) * width * 4,
        }
        print(
            f"{rows:>2} rows: {least['one']:.1f} ms on one rank, {least['ranks']:.1f} ms on {options.ranks}; "
            f"sums {sums:.2f} ms ({sums / least['ranks']:.1%}), {int(rows) * width * 4} bytes each"
        )
    facts = {"preset": options.preset, "layers": options.layers, "quant": options.quant, "ranks": options.ranks}
    print(json.dumps({"benchmark": "parallel_decode", **facts, "threads": options.threads, "rows": table}))


if __name__ == "__main__":
    main()
