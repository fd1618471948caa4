"""GGUF files of random GLM-4 models: our answers beside llama.cpp's, and memory and time of loading.

    python -m benchmarks.gguf_files --rivals PYTHON --folder /tmp/gguf [--layers 8]

PYTHON is an interpreter with gguf and llama-cpp-python. Answers: a small model in Q4_0 and in Q8_0; both sides write 64
tokens greedily, and llama.cpp also writes them from the same numbers in F32, its float path. Log-probabilities are
compared along those tokens. Loading: a model with the width, heads and vocabulary of ChatGLM-6B in Q4_0, served by us
(time from the start of `serve` to /ready, the largest resident set of its processes) and loaded by llama.cpp, in turn.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from model.attention import DenseAttention, visible
from model.checkpoint import Checkpoint, load
from tests.model.gguf.writing import write_tokenizer

HERE = Path(__file__).parent
PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114]
STEPS = 64
KINDS = dict(gguf.GGMLQuantizationType.__members__)


@dataclass(frozen=True)
class Sizes:
    """A GLM-4 network's sizes; heads have 128 numbers, or fewer in a small one."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """GGUF path → (outputs, inputs)."""
        keys = self.hidden // self.heads * self.kv_heads
        layer = {
            "attn_q": (self.hidden, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, self.hidden),
            "ffn_up": (2 * self.ffn, self.hidden),
            "ffn_down": (self.hidden, self.ffn),
        }
        blocks = {f"blk.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        return {"token_embd": (self.vocab, self.hidden), "output": (self.vocab, self.hidden), **blocks}


SMALL = Sizes(layers=4, hidden=512, heads=8, kv_heads=2, ffn=1024, vocab=2048)


def write(path: Path, kind: str, sizes: Sizes, exact: bool = True) -> None:
    """A file of random numbers whose standard deviation is about 0.05.

    If `exact`, they are drawn and then quantized; else the blocks are drawn. "F32:Q4_0" has the numbers of Q4_0 in F32.
    The next token is mostly the one whose row of the head is near the last token's embedding, as a trained network is
    mostly sure of a token: an argmax over random numbers would turn with every rounding.
    """
    stored, _, as_kind = kind.partition(":")
    rng, embedded = np.random.default_rng(0), np.zeros(0, np.float32)
    writer = gguf.GGUFWriter(str(path), "glm4", use_temp_file=not exact)
    _metadata(writer, sizes)
    for name, shape in sizes.matrices.items():
        if exact:
            drawn = rng.normal(0, 1 if name == "token_embd" else 0.05, shape).astype(np.float32)
            if name == "token_embd":
                embedded = drawn
            if name == "output":
                drawn += 0.02 * np.roll(embedded, 1, axis=0)
            raw = quantize(drawn, KINDS[as_kind or stored])
            if as_kind:
                raw = dequantize(raw, KINDS[as_kind])
        else:
            block, size = gguf.GGML_QUANT_SIZES[KINDS[stored]]
            raw = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
            raw[..., :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
            raw = raw.reshape(shape[0], -1)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=KINDS[stored])
    for name in _norms(sizes):
        level = 0.2 if name.split(".")[-1].startswith("post_") else 1  # what a branch adds to the stream
        writer.add_tensor(f"{name}.weight", (level * rng.normal(1, 0.1, sizes.hidden)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _norms(sizes: Sizes) -> list[str]:
    names = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
    return ["output_norm", *(f"blk.{i}.{name}" for i in range(sizes.layers) for name in names)]


def _metadata(writer: gguf.GGUFWriter, sizes: Sizes) -> None:
    head_dim = sizes.hidden // sizes.heads
    writer.add_block_count(sizes.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1.5625e-07)
    writer.add_rope_dimension_count(head_dim // 2)
    writer.add_rope_freq_base(10000.0)
    write_tokenizer(writer, sizes.vocab)


@torch.inference_mode()
def rows(checkpoint: Checkpoint, tokens: list[int]) -> Tensor:
    """Our log-probabilities of what follows each token, [tokens, vocab]."""
    count = len(tokens)
    zeros = torch.zeros(count, dtype=torch.long)
    attend = DenseAttention(visible(count, torch.tensor([0])))
    hidden = checkpoint.model(torch.tensor([tokens]), torch.arange(count)[None], zeros[None], attend)[0]
    return checkpoint.model.logits(hidden).double().log_softmax(-1)


def greedy(checkpoint: Checkpoint) -> list[int]:
    """The prompt and the tokens that we write behind it."""
    tokens = list(PROMPT)
    for _ in range(STEPS):
        tokens.append(int(rows(checkpoint, tokens)[-1].argmax()))
    return tokens


def rival(python: str, path: Path, out: Path | None = None) -> dict[str, Any]:
    """llama.cpp's tokens and times on a file."""
    prompt = ",".join(map(str, PROMPT))
    command = [python, str(HERE / "llama_cpp_gguf.py"), str(path), "--prompt", prompt, "--steps", str(STEPS)]
    command += ["--threads", str(torch.get_num_threads())] + (["--out", str(out)] if out else [])
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def answers(python: str, folder: Path, kind: str) -> dict[str, Any]:
    """Both sides on one small file."""
    path, floats = folder / f"small.{kind}.gguf", folder / f"small.{kind}.F32.gguf"
    write(path, kind, SMALL)
    write(floats, f"F32:{kind}", SMALL)
    exact = rival(python, floats, folder / "floats.npy")
    theirs = rival(python, path, folder / "theirs.npy")
    ours = load(path)
    tokens = exact["tokens"]
    along = torch.from_numpy(np.load(folder / "floats.npy"))
    margins = along[len(PROMPT) - 1 : -1].topk(2).values
    own = rows(ours, tokens)
    same = next((n for n, (a, b) in enumerate(zip(theirs["tokens"], tokens, strict=True)) if a != b), len(tokens))
    rounded = torch.from_numpy(np.load(folder / "theirs.npy"))[:same]
    return {
        "kind": kind,
        "ours_is": ours.origin,
        "same_greedy_tokens_ours_and_float": _same(greedy(ours), tokens),
        "same_greedy_tokens_llama_cpp_and_float": _same(theirs["tokens"], tokens),
        "same_greedy_tokens_ours_and_llama_cpp": _same(greedy(ours), theirs["tokens"]),
        "smallest_margin": round(float((margins[:, 0] - margins[:, 1]).min()), 4),
        "largest_difference_ours_in_floats": float((rows(load(path, quant="none"), tokens) - along).abs().max()),
        "largest_difference_ours": round(float((own - along).abs().max()), 4),
        "largest_difference_llama_cpp": round(float((rounded - along[:same]).abs().max()), 4),
        "mean_difference_ours": round(float((own - along).abs().mean()), 5),
        "mean_difference_llama_cpp": round(float((rounded - along[:same]).abs().mean()), 5),
    }


def _same(first: list[int], second: list[int]) -> int:
    """Of the written tokens, how many come before the first difference."""
    pairs = list(zip(first, second, strict=True))[len(PROMPT) :]
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


def served(path: Path) -> dict[str, Any]:
    """Seconds to /ready, the largest resident set of a rank's process, and tokens a second of a fill."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "glm-infill"), "serve", str(path), "--port", str(port)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            while not _ready(f"{url}/ready"):
                if server.poll() is not None:
                    raise SystemExit(server.stdout.read() if server.stdout else "serve ended")
                time.sleep(0.02)
            ready = time.perf_counter() - began
            peak = max(_peak(pid) for pid in _children(server.pid))
            body = {"text": "Hello wor[gMASK]", "max_tokens": STEPS, "min_tokens": STEPS, "temperature": 0}
            request = urllib.request.Request(
                f"{url}/v1/infill", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            begun = time.perf_counter()
            with urllib.request.urlopen(request) as answer:
                answer.read()
            seconds = time.perf_counter() - begun
        finally:
            server.terminate()
    return {"ready_s": round(ready, 2), "peak": peak, "tokens_per_s": round(STEPS / seconds, 2)}


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _children(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _children(int(child))
    return found


def _peak(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+)", text)
    return int(match[1]) * 1024 if match else 0


def loading(python: str, folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    """Both sides on one large file, in turn; the least of the rounds."""
    sizes = Sizes(layers, hidden=4096, heads=32, kv_heads=32, ffn=10944, vocab=130528)
    path = folder / f"chatglm-6b-shapes-{layers}.Q4_0.gguf"
    if not path.exists():
        write(path, "Q4_0", sizes, exact=False)
    both = [(served(path), rival(python, path)) for _ in range(rounds)]
    numbers = sum(map(prod, sizes.matrices.values()))
    largest = max(map(prod, sizes.matrices.values()))
    bare = subprocess.run(
        [sys.executable, "-c", "import engine.processes.worker as w;print(open('/proc/self/status').read())"],
        check=True, stdout=subprocess.PIPE, text=True, env={**os.environ},
    ).stdout  # fmt: skip
    match = re.search(r"VmHWM:\s+(\d+)", bare)
    return {
        "layers": layers,
        "file": path.stat().st_size,
        "served": numbers * 9 // 16,
        "largest_tensor": largest * 9 // 16,
        "imports": int(match[1]) * 1024 if match else 0,
        "peak": min(ours["peak"] for ours, _ in both),
        "ready_s": min(ours["ready_s"] for ours, _ in both),
        "llama_cpp_load_s": min(theirs["load_s"] for _, theirs in both),
        "tokens_per_s": max(ours["tokens_per_s"] for ours, _ in both),
        "llama_cpp_tokens_per_s": max(theirs["tokens_per_s"] for _, theirs in both),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", required=True, help="an interpreter with gguf and llama-cpp-python")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for kind in ("Q4_0", "Q8_0"):
        print(json.dumps(answers(args.rivals, args.folder, kind)), flush=True)
    if args.layers:
        print(json.dumps(loading(args.rivals, args.folder, args.layers, args.rounds)))


if __name__ == "__main__":
    main()
