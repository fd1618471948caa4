"""What `glm-infill plan` counts for ranks on a CPU beside what their processes take.

    python -m benchmarks.plan_against_resident --folder /tmp/resident [--ranks 2] [--quant int4] [--head int8]

Writes a float16 checkpoint of ChatGLM-6B's shapes (benchmarks/load_memory.py), starts the ranks, each of which loads
its part, then computes one context of as many rows as a step has and scores all of them. Of every rank are printed the
resident set before and after loading (VmRSS) and its largest during the step (VmHWM), and what the plan has for it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.load_memory import write
from engine.planning.cards import devices, read_cards
from engine.planning.deployment import Deployment
from engine.planning.plan import plan
from model.outline import Outline

RANK = """
import json, sys
from pathlib import Path
import torch
from engine.schedule.batch import Batch, Rows
from engine.rank_info import RankInfo
from engine.ranks import join
from engine.runner import Runner
from model.attention import Span
from model.checkpoint import load

def status(field):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(field))

folder, quant, head, rank, ranks, rendezvous, rows = json.loads(sys.argv[1])
torch.set_num_threads(1)
channel = join(RankInfo(rank, ranks, rank, ranks, rendezvous), cuda=False)
figures = {"before": status("VmRSS")}
model = load(Path(folder), quant, "cpu", head=head, ranks=channel.ranks).model
figures["loaded"] = status("VmRSS")
blocks = -(-rows // 16)
runner = Runner(model, blocks, 16)
ids = tuple(i * 7919 % model.architecture.vocab_size for i in range(rows))
span = Span(rows, 0, rows, tuple(range(blocks)))
open("/proc/self/clear_refs", "w").write("5")  # the largest resident set from here on
runner.run(Batch((Rows(ids, tuple(range(rows)), (0,) * rows, span, "scores", targets=ids),)), 0)
figures["step"] = status("VmHWM")
print(json.dumps(figures))
"""


def measured(folder: Path, quant: str, head: str, ranks: int, rows: int) -> list[dict[str, int]]:
    """Figures of every rank, bytes."""
    with tempfile.TemporaryDirectory() as meeting:
        asked = [[str(folder), quant, head, rank, ranks, f"file://{meeting}/ranks", rows] for rank in range(ranks)]
        lines = [[sys.executable, "-c", RANK, json.dumps(each)] for each in asked]
        running = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in lines]
        outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a rank failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1024, help="of the step")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--head", choices=["none", "int8", "int4"], default="int8", help="storage of the embedding")
    args = parser.parse_args()
    source = args.folder / "float16"
    write(source, args.layers)
    outline = Outline.read(str(source))
    storage = outline.storage(args.quant, None, args.head)
    cards = devices(f"{args.ranks}xCPU", read_cards())
    counted = plan(
        Deployment(outline.architecture, storage, cards, request_tokens=args.rows, max_batch_tokens=args.rows)
    )
    result: list[dict[str, Any]] = []
    found = measured(source, args.quant, args.head, args.ranks, args.rows)
    for device, figures in zip(counted.devices, found, strict=True):
        weights, step = figures["loaded"] - figures["before"], figures["step"] - figures["loaded"]
        in_step = device.workspace_bytes + args.rows * device.kv_bytes_per_token
        print(
            f"process {figures['before'] / 1e6:.0f} MB; weights {weights / 1e6:.0f}, counted "
            f"{device.weights_bytes / 1e6:.0f}; cache and workspace {step / 1e6:.0f}, counted {in_step / 1e6:.0f}"
        )
        result.append(
            {"process": figures["before"], "weights": weights, "counted_weights": device.weights_bytes}
            | {"step": step, "counted_step": in_step, "weights_ratio": round(weights / device.weights_bytes, 4)}
        )
    print(json.dumps({"ranks": result, "quant": args.quant, "head": args.head, "layers": args.layers}))


if __name__ == "__main__":
    main()
