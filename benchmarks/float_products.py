"""Products with float weights: the CPU kernels beside torch's sgemm, one thread, in turns.

    python -m benchmarks.float_products [--kernel avx2] [--outputs 4096] [--inputs 4096] [--rounds 5]

Times are CPU time of the thread, so that other work on the machine takes less part in them; each is the least of all
rounds. torch multiplies the weight in float32, filled up to 16 rows, as machines without the kernels do. The read
bandwidth is that of torch's sum over a buffer larger than the caches, in the same rounds.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial

import torch

from quant import cpu
from quant.operators.float_linear import DTYPES, float_linear
from quant.rows import linear

ROWS = (1, 4, 16, 32, 128, 512)
BUFFER = 2 * 10**8  # bytes


def seconds(run: Callable[[], object]) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", help="one of the CPU kernels' variants; the fastest")
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.kernel:
        os.environ[cpu.CHOICE] = args.kernel
    torch.set_num_threads(1)
    weight = torch.randn(args.outputs, args.inputs, generator=torch.Generator().manual_seed(0))
    weights = {str(dtype).removeprefix("torch."): weight.to(dtype) for dtype in DTYPES}
    buffer = torch.ones(BUFFER // 8, dtype=torch.int64)
    result: dict[str, dict[str, float]] = {}
    for rows in ROWS:
        x = torch.randn(rows, args.inputs)
        runs: dict[str, Callable[[], object]] = {"read": buffer.sum, "torch": partial(linear, x, weight)}
        runs |= {name: partial(float_linear, x, own, None) for name, own in weights.items()}
        least = {name: min(seconds(run) for _ in range(args.rounds)) for name, run in runs.items()}
        for _ in range(args.rounds):
            least = {name: min(least[name], seconds(run)) for name, run in runs.items()}
        bandwidth = BUFFER / least.pop("read")
        result[str(rows)] = {name: round(time * 1e3, 3) for name, time in least.items()}
        shares = {name: own.nbytes / least[name] / bandwidth for name, own in weights.items()}
        result[str(rows)] |= {f"{name}, share of {bandwidth / 1e9:.0f} GB/s": round(s, 2) for name, s in shares.items()}
        gflops = {name: round(2 * rows * weight.numel() / time / 1e9) for name, time in least.items()}
        print(f"{rows} rows: {result[str(rows)]}, GFLOP/s {gflops}", flush=True)
    print(json.dumps({"benchmark": "float_products", "kernel": cpu.variant(), "ms": result}))


if __name__ == "__main__":
    main()
