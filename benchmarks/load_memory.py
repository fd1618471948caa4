"""Memory of loading and of quantizing: a checkpoint of ChatGLM-6B's shapes, written, quantized and loaded.

    python -m benchmarks.load_memory --folder /tmp/memory [--layers 8]

Writes a float16 checkpoint of random weights tensor by tensor (4.3 GB for the default), as a GLM v1, whose tokenizer is
at hand and which has two position tables besides. Then, each in a process of its
own: `glm-infill quantize` to INT4, a load of what it wrote, a load of the float one that quantizes on the way, and one
that keeps its floats.
`peak` is the process's largest resident set (VmHWM, file pages included), `resident` what stays after loading (VmRSS);
a bare `import torch` is printed beside them.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import DEMO, matrices
from model.families import PRESETS, glm
from model.network import Network
from model.safetensors_writer import SafetensorsWriter

MEASURED = """
import json, resource, sys
def status(field):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(field))
import torch
{code}
print(json.dumps({{"peak": status("VmHWM"), "resident": status("VmRSS")}}))
"""
LOAD = "from pathlib import Path; from model.checkpoint import load; c = load(Path({path!r}), {quant!r}, head={head!r})"
QUANTIZE = """
from pathlib import Path
from model.storage import Storage
from model.convert import Conversion, Recipe
recipe = Recipe(Storage.asked("int4", 32, {head!r}), None, 256, 4 * 10**9)
Conversion(Path({source!r}), Path({target!r}), recipe).run(lambda n: 0)
"""


def write(folder: Path, layers: int) -> tuple[int, int, int]:
    """The float16 checkpoint. Numbers of quantized weights, of embedding weights, bytes of the largest tensor."""
    sizes = PRESETS["chatglm-6b"][1].fields
    names = ("hidden_size", "num_attention_heads", "vocab_size", "max_sequence_length")
    architecture = glm.architecture(layers, *(sizes[name] for name in names))
    with torch.device("meta"):
        model = Network(architecture)
    tensors = {name: (tuple(p.shape), torch.float16) for name, p in model.named_parameters()}
    counts = {path: m.in_features * m.out_features for path, m in matrices(model)}
    embeddings = sum(p.numel() for n, p in model.named_parameters() if "embeddings" in n)
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(DEMO / name, folder / name)
        with SafetensorsWriter(folder / "model.safetensors", tensors) as shard:
            for name, (shape, dtype) in tensors.items():
                shard.write(name, torch.randn(shape).mul_(0.02).to(dtype))
        (folder / "config.json").write_text(json.dumps(glm.config(architecture)))
    weights = sum(counts.values()) - counts["word_embeddings"]
    return weights, embeddings, max(2 * p.numel() for p in model.parameters())


def measured(code: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(code=code)], check=True, stdout=subprocess.PIPE, text=True
    )
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--head", choices=["none", "int8"], default="int8", help="storage of the embedding")
    args = parser.parse_args()
    source, target = args.folder / "float16", args.folder / "int4"
    weights, embeddings, largest = write(source, args.layers)
    shutil.rmtree(target, ignore_errors=True)
    result: dict[str, Any] = {"quantized_weights": weights, "embedding_weights": embeddings, "largest_tensor": largest}
    result["import torch"] = measured("")
    result["quantize"] = measured(QUANTIZE.format(source=str(source), target=str(target), head=args.head))
    result["load int4"] = measured(LOAD.format(path=str(target), quant=None, head=None))
    result["load float16 as int4"] = measured(LOAD.format(path=str(source), quant="int4", head=args.head))
    result["load float16"] = measured(LOAD.format(path=str(source), quant=None, head=None))
    table = embeddings * (2 if args.head == "none" else 1)
    for name, figures in result.items():
        if isinstance(figures, dict):
            print(f"{name}: peak {figures['peak'] / 1e6:.0f} MB, resident {figures['resident'] / 1e6:.0f} MB")
    resident = result["load int4"]["resident"]
    result["bytes_per_weight"] = round((resident - table) / weights, 4)
    result["allowed"] = round(0.60 * weights + table + 300e6)
    print(f"resident less embeddings: {result['bytes_per_weight']} bytes a quantized weight")
    print(f"allowed, 0.60 bytes a weight + embeddings + 300 MB: {result['allowed'] / 1e6:.0f} MB")
    result["file"] = (source / "model.safetensors").stat().st_size
    more = result["load float16"]["resident"] - result["file"]
    print(f"resident floats less their file of {result['file'] / 1e6:.0f} MB: {more / 1e6:.0f} MB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
