"""What adapters cost: decode steps of 32 rows by 8 LoRAs against the same steps by none, and the gap of a load.

    python -m benchmarks.adapters [--layers 8] [--rank 8] [--rounds 15]

A network of ChatGLM-6B's sizes with invented weights, INT4 in groups of 32; the steps of each kind are taken in turn.
Products of query_key_value alone are peft's default for ChatGLM, those of all four linears the most there can be. Then
one row decodes while adapters are read and attached beside it, as `/v1/adapters` does: the longest step with that, and
the longest without.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import torch
from safetensors.torch import save_file

from engine.runner import Runner
from engine.schedule.batch import Batch, Rows
from model.adapters.adapter import Adapter
from model.adapters.target import AdapterTarget
from model.architecture import Architecture
from model.attention import Span, part_b_start
from model.families import PRESETS
from model.network import Network
from model.random_weights import synthetic
from quant.adapted import LowRank
from quant.registry import build, build_head

BLOCK, CONTEXT, ROWS, ADAPTERS = 16, 64, 32, 8
LINEARS = {
    "query_key_value": ("query_key_value",),
    "all": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


def architecture(layers: int) -> Architecture:
    family, config = PRESETS["chatglm-6b"]
    return replace(family.architecture(config), num_layers=layers)


def lora(target: AdapterTarget, linears: tuple[str, ...], rank: int, seed: int) -> Adapter:
    """A LoRA of these linears of every block."""
    draw = torch.Generator().manual_seed(seed)
    pieces: dict[str, tuple[LowRank, ...]] = {}
    for path, (outputs, inputs) in target.linears.items():
        if ".layers." in path and path.rpartition(".")[2] in linears:
            down = torch.randn(rank, inputs, generator=draw) * 0.01
            pieces[path] = (LowRank(down, torch.randn(rank, outputs, generator=draw) * 0.01),)
    return Adapter(pieces)


class Steps:
    """Sequences over contexts of their own, each of which gets one more token a step."""

    def __init__(self, runner: Runner, rows: int, steps: int) -> None:
        self.runner = runner
        self.first = part_b_start(CONTEXT, BLOCK)
        each = -(-(self.first + steps) // BLOCK)
        self.blocks = [tuple(range(i * each, (i + 1) * each)) for i in range(rows)]
        self.done = 0

    def seconds(self, adapters: list[int]) -> float:
        """How long the next step takes, row by row by these adapters."""
        rows = tuple(
            Rows(
                (number * 7919 % 100_000,),
                (CONTEXT - 1,),
                (1 + self.done,),
                Span(1, self.first + self.done, CONTEXT, blocks),
                "token",
                adapter=adapter,
            )
            for number, (blocks, adapter) in enumerate(zip(self.blocks, adapters, strict=True))
        )
        self.done += 1
        began = time.perf_counter()
        self.runner.run(Batch(rows), 0)
        return time.perf_counter() - began


def cost(model: Network, rank: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step by no adapter and by 8, of query_key_value and of all linears; the least of the rounds."""
    target = AdapterTarget(model)
    runner = Runner(model, ROWS * 8, BLOCK, target=target)
    held = runner.adapters.held
    kinds: dict[str, list[int]] = {"none": [0] * ROWS}
    for number, (kind, linears) in enumerate(LINEARS.items()):
        own = [1 + number * ADAPTERS + n for n in range(ADAPTERS)]
        for adapter in own:
            held.add(adapter, lora(target, linears, rank, adapter))
        kinds[kind] = [own[row % ADAPTERS] for row in range(ROWS)]
    steps = Steps(runner, ROWS, 64)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, adapters in kinds.items():
            times[kind].append(steps.seconds(adapters))
    for adapter in range(1, 1 + ADAPTERS * len(LINEARS)):
        held.drop(adapter)
    return {kind: min(found) * 1e3 for kind, found in times.items()}


def gaps(model: Network, rank: int, folder: Path) -> dict[str, float]:
    """The longest of 40 steps of one row, in milliseconds, without and with adapters being loaded meanwhile."""
    target = AdapterTarget(model)
    adapter = lora(target, LINEARS["all"], rank, 0)
    tensors = {}
    for path, (piece,) in adapter.pieces.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = piece.down
        tensors[f"base_model.model.{path}.lora_B.weight"] = piece.up.t().contiguous()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    runner = Runner(model, 64, BLOCK, target=target)
    alone, _ = longest_step(runner, None)
    loading, loads = longest_step(runner, folder)
    num_bytes = (folder / "adapter_model.safetensors").stat().st_size
    return {"alone_ms": alone * 1e3, "loading_ms": loading * 1e3, "loads": loads, "adapter_mb": num_bytes / 1e6}


def longest_step(runner: Runner, folder: Path | None, count: int = 40) -> tuple[float, int]:
    """Seconds from one step to the next, the most of them, and how often an adapter was loaded meanwhile."""
    steps, longest, loads = Steps(runner, 1, count + 3), 0.0, 0
    ready: SimpleQueue[int] = SimpleQueue()
    if folder is not None:
        runner.adapters.read(1, str(folder), lambda: ready.put(1))
    for step in range(count + 3):
        began = time.perf_counter()
        steps.seconds([0])
        if folder is not None and not ready.empty():  # between two steps, as the engine does
            loads += ready.get()
            runner.adapters.attach(loads)
            runner.adapters.drop(loads)
            runner.adapters.read(loads + 1, str(folder), lambda: ready.put(1))
        if step >= 3:
            longest = max(longest, time.perf_counter() - began)
    if folder is not None:
        ready.get()  # of the reading that is under way
    return longest, loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    model = synthetic(
        architecture(args.layers), build("int4", torch.float32, 32), build_head("int8", torch.float32, "cpu")
    )
    steps = cost(model, args.rank, args.rounds)
    print(f"a step of {ROWS} rows by no adapter: {steps['none']:.1f} ms")
    for kind in LINEARS:
        more = steps[kind] / steps["none"] - 1
        print(f"by {ADAPTERS} LoRAs of rank {args.rank} of {kind}: {steps[kind]:.1f} ms, {more:+.1%}")
    with tempfile.TemporaryDirectory() as folder:
        longest = gaps(model, args.rank, Path(folder))
    print(
        f"the longest of 40 steps of one row: {longest['alone_ms']:.1f} ms, {longest['loading_ms']:.1f} ms while an "
        f"adapter of {longest['adapter_mb']:.0f} MB was loaded {longest['loads']:.0f} times"
    )
    print(json.dumps({"layers": args.layers, "rank": args.rank, "step_ms": steps, "gap": longest}))


if __name__ == "__main__":
    main()
