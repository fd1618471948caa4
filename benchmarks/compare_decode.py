"""This project's decode steps beside llama.cpp's and transformers' with bitsandbytes NF4, taken in turn.

    python -m benchmarks.compare_decode --rivals PYTHON --folder /tmp [--rounds 3] [--picture benchmarks/decode.png]

PYTHON is an interpreter that has gguf, llama-cpp-python, transformers, accelerate and bitsandbytes. Every round runs
each side once, in a process of its own; what is compared is the time per multiply-accumulate of a whole step, the least
over the rounds. A prefill has one row of logits on both sides. INT4 in groups of 32 has the bits of Q4_0 (4.5 a
weight), INT8 about those of Q8_0 (8 and 8.5).

The machine must be at rest: llama.cpp's threads spin at barriers, so that other work slows it more than this project.
The command looks before every run and says what it found; a busy machine ends it, but for --even-if-busy.
GLM_INFILL_CPU_KERNEL=avx2 measures other kernels; llama.cpp is then to be built for the same instructions.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = "1,4,16,32"
PAIRS = {"int4": "q4_0", "int8": "q8_0", "none": "f16"}
GROUPS = {"int4": 32, "int8": 0}


MOST_BUSY = 0.05  # of all cores, before a run


def busy_share(seconds: float = 1.0) -> float:
    """The share of all cores' time that other processes, or other guests of the host, take."""

    def ticks() -> list[int]:
        return [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    before = ticks()
    time.sleep(seconds)
    spent = [now - then for then, now in zip(before, ticks(), strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent)  # idle, waiting for a disk


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} × {names[0].split(':')[1].strip()}" if names else "unknown"


@dataclass
class Rest:
    """Looks whether the machine is at rest, and keeps the busiest moment."""

    even_if_busy: bool
    shares: list[float] = field(default_factory=list)

    def check(self) -> None:
        self.shares.append(busy_share())
        if self.shares[-1] > MOST_BUSY and not self.even_if_busy:
            sys.exit(f"the machine is {self.shares[-1]:.0%} busy; a comparison needs one at rest (--even-if-busy)")

    def __str__(self) -> str:
        most = max(self.shares)
        return f"at rest ({most:.0%} busy at most)" if most <= MOST_BUSY else f"NOT at rest: up to {most:.0%} busy"


def run(*command: str) -> dict[str, Any]:
    """The JSON document that a command prints last."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def ours(quant: str, group_size: int | None, layers: int) -> dict[str, Any]:
    options = ["--preset", "chatglm-6b", "--layers", str(layers), "--rows", ROWS, "--json"]
    head = ["--quant-head", quant, "--quant", quant]
    groups = [] if group_size is None else ["--group-size", str(group_size)]
    return run(str(Path(sys.executable).parent / "glm-infill"), "bench", "decode", *options, *head, *groups)


def least(runs: list[dict[str, Any]], rows: str) -> float:
    """Nanoseconds per million multiply-accumulates."""
    return min(float(r["decode"][rows]["ns_per_million_macs"]) for r in runs)


def prefill(runs: list[dict[str, Any]]) -> float:
    return max(float(r["prefill_512"]["gflops"]) for r in runs)


def draw(table: dict[str, dict[str, float]], path: Path) -> None:
    """Bars: time per multiply-accumulate by number of rows, ours and the rivals'."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    for number, (name, values) in enumerate(table.items()):
        places = [i + (number - (len(table) - 1) / 2) * 0.8 / len(table) for i in range(len(ROWS.split(",")))]
        heights = [values.get(rows, 0.0) / 1e3 for rows in ROWS.split(",")]
        axes.bar(places, heights, 0.8 / len(table), label=name)
    axes.set_xticks(
        range(len(ROWS.split(","))), [f"{rows} rows" if rows != "1" else "1 row" for rows in ROWS.split(",")]
    )
    axes.set_ylabel("µs per million multiply-accumulates")
    axes.set_title("Whole decode steps on a CPU, less is better")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", required=True, help="the rivals' Python interpreter")
    parser.add_argument("--folder", required=True, help="where llama.cpp's random models are kept")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-nf4", action="store_true")
    parser.add_argument("--even-if-busy", action="store_true", help="measure on a machine that is not at rest")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    rest = Rest(args.even_if_busy)
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for quant, rival in PAIRS.items():
            rest.check()
            mine = ours(quant, GROUPS.get(quant), args.layers)
            results.setdefault(quant, []).append(mine)
            llama = [str(HERE / "llama_cpp_decode.py"), "--quant", rival, "--layers", str(args.layers), "--rows", ROWS]
            where = ["--folder", args.folder, "--threads", str(mine["threads"])]
            rest.check()
            results.setdefault(rival, []).append(run(args.rivals, *llama, *where))
        results.setdefault("int4 g128", []).append(ours("int4", 128, args.layers))
    if not args.without_nf4:
        threads = str(results["int4"][0]["threads"])
        results["nf4"] = [run(args.rivals, str(HERE / "transformers_nf4_decode.py"), "--threads", threads)]
    table = {
        name: {rows: least(runs, rows) for rows in ROWS.split(",") if rows in runs[0]["decode"]}
        for name, runs in results.items()
    }
    bandwidth = max(float(r["read_bandwidth_gb_s"]) for r in results["int4"])
    kernel = results["int4"][0]["kernel"]
    print(f"{processor()}, {kernel} kernels, {bandwidth} GB/s read, the machine {rest}")
    for quant, rival in PAIRS.items():
        for rows in ROWS.split(","):
            ns, rivals = table[quant][rows], table[rival][rows]
            print(f"{quant} against {rival}, {rows:>2} rows: {ns:.0f} and {rivals:.0f} ns, {rivals / ns:.2f}×")
        speed, other = prefill(results[quant]), prefill(results[rival])
        print(f"{quant} against {rival}, prefill of 512: {speed:.0f} and {other:.0f} GFLOP/s, {speed / other:.2f}×")
    shares = [r["decode"]["1"]["bandwidth_share"] for r in results["int4"]]
    print(f"int4, 1 row: {statistics.median(shares):.0%} of the read bandwidth measured in the same run")
    print(f"int4 in groups of 128 against 32, 1 row: {table['int4']['1'] / table['int4 g128']['1']:.3f}×")
    if "nf4" in table:
        print(f"int4 against transformers with NF4, 1 row: {table['nf4']['1'] / table['int4']['1']:.1f}×")
    if args.picture:
        names = {
            "int4": "glm-infill INT4",
            "q4_0": "llama.cpp Q4_0",
            "int8": "glm-infill INT8",
            "q8_0": "llama.cpp Q8_0",
        }
        draw({label: table[name] for name, label in names.items()}, args.picture)
    print(
        json.dumps(
            {
                "processor": processor(),
                "kernel": kernel,
                "read_bandwidth_gb_s": bandwidth,
                "busy": round(max(rest.shares), 3),
                "ns_per_million_macs": table,
                "prefill_512_gflops": {n: prefill(r) for n, r in results.items() if n != "nf4"},
            }
        )
    )


if __name__ == "__main__":
    main()
