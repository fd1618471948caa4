"""Decode steps and a prefill of llama.cpp on random weights, in the JSON form of `glm-infill bench decode`.

Runs in an environment of its own: pip install gguf llama-cpp-python (compiles for some minutes). The network has
llama's architecture with GLM-6B-like sizes; weights are random bytes in Q4_0 or Q8_0, or numbers in F16, also those of
embedding and head.

    python benchmarks/llama_cpp_decode.py --quant q4_0 --folder /tmp
"""

import argparse
import json
import statistics
import time
from ctypes import c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

CONTEXT = 64  # tokens that each sequence has before the measured steps
STEPS = 12
BYTES_PER_BLOCK = {"q4_0": 16, "q8_0": 32}  # of 32 weights, the float16 scale apart
KINDS = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "f16": gguf.GGMLQuantizationType.F16,
}
FILE_TYPES = {"q4_0": 2, "q8_0": 7, "f16": 1}


@dataclass(frozen=True)
class Sizes:
    """A llama network's sizes."""

    layers: int = 8
    hidden: int = 4096
    ffn: int = 16384
    vocab: int = 32000

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a token, the head included."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn) + self.vocab * self.hidden


def write(path: Path, quant: str, sizes: Sizes) -> None:
    """A GGUF file of random blocks whose weights have a standard deviation of about 0.02."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.hidden // 128)
    writer.add_head_count_kv(sizes.hidden // 128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(128)
    writer.add_vocab_size(sizes.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(FILE_TYPES[quant])
    scale = np.frombuffer(np.float16(0.02 / (4 if quant == "q4_0" else 64)).tobytes(), np.uint8)

    def matrix(name: str, rows: int, columns: int) -> None:
        if quant == "f16":
            numbers = rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)
            writer.add_tensor(f"{name}.weight", numbers.astype(np.float16))
            return
        blocks = np.empty((rows, columns // 32, 2 + BYTES_PER_BLOCK[quant]), np.uint8)
        blocks[..., :2] = scale
        blocks[..., 2:] = rng.integers(0, 256, (rows, columns // 32, BYTES_PER_BLOCK[quant]), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=KINDS[quant])

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(sizes.hidden, np.float32))

    matrix("token_embd", sizes.vocab, sizes.hidden)
    matrix("output", sizes.vocab, sizes.hidden)
    norm("output_norm")
    for layer in range(sizes.layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}", sizes.hidden, sizes.hidden)
        matrix(f"blk.{layer}.ffn_gate", sizes.ffn, sizes.hidden)
        matrix(f"blk.{layer}.ffn_up", sizes.ffn, sizes.hidden)
        matrix(f"blk.{layer}.ffn_down", sizes.hidden, sizes.ffn)
        norm(f"blk.{layer}.attn_norm")
        norm(f"blk.{layer}.ffn_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """llama.cpp's own C interface: batches of tokens of several sequences."""

    def __init__(self, path: Path, threads: int, vocab: int) -> None:
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # the library keeps only its address
        llama_cpp.llama_log_set(self._silent, c_void_p(0))
        options = llama_cpp.llama_model_default_params()
        if "load_mode" not in dict(options._fields_):  # ctypes takes any other name, and nothing changes
            raise RuntimeError(f"llama-cpp-python {llama_cpp.__version__} has no load_mode: a mapped file reads slower")
        options.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        limits = llama_cpp.llama_context_default_params()
        limits.n_ctx, limits.n_batch, limits.n_ubatch, limits.n_seq_max = 8192, 2048, 512, 64
        limits.n_threads = limits.n_threads_batch = threads
        limits.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, limits)
        self.vocab = vocab

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def step(self, sequences: int, tokens: int, position: int) -> float:
        """Seconds for `tokens` more tokens of each sequence, logits after the last of each."""
        batch = llama_cpp.llama_batch_init(sequences * tokens, 0, 1)
        batch.n_tokens = sequences * tokens
        for i in range(batch.n_tokens):
            sequence, token = divmod(i, tokens)
            batch.token[i] = i * 7919 % self.vocab
            batch.pos[i] = position + token
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = token == tokens - 1
        began = time.perf_counter()
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        seconds = time.perf_counter() - began
        llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: status {status}")
        return seconds


def measure(llama: Llama, sizes: Sizes, rows: list[int], prefill: int) -> dict[str, Any]:
    decode = {}
    for count in rows:
        llama.clear()
        llama.step(count, CONTEXT, 0)
        seconds = statistics.median([llama.step(count, 1, CONTEXT + i) for i in range(STEPS + 2)][2:])
        decode[str(count)] = {
            "step_ms": round(seconds * 1e3, 2),
            "tokens_per_s": round(count / seconds, 1),
            "ns_per_million_macs": round(seconds * 1e9 / (count * sizes.macs / 1e6), 1),
        }
    best = float("inf")
    for _ in range(3):
        llama.clear()
        best = min(best, llama.step(1, prefill, 0))
    head = sizes.vocab * sizes.hidden
    total = (sizes.macs - head) * prefill + head
    return {
        "macs_per_token": sizes.macs,
        "decode": decode,
        f"prefill_{prefill}": {
            "tokens_per_s": round(prefill / best, 1),
            "gflops": round(2 * total / best / 1e9, 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", choices=list(KINDS), default="q4_0")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", default="1,4,16,32")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the random model is kept")
    args = parser.parse_args()
    sizes = Sizes(layers=args.layers)
    path: Path = args.folder / f"random-{args.quant}-{sizes.layers}x{sizes.hidden}x{sizes.ffn}x{sizes.vocab}.gguf"
    if not path.exists():
        write(path, args.quant, sizes)
    result = measure(
        Llama(path, args.threads, sizes.vocab), sizes, [int(r) for r in args.rows.split(",")], args.prefill
    )
    print(json.dumps({"quant": args.quant, "llama_cpp_python": llama_cpp.__version__, **result}))


if __name__ == "__main__":
    main()
