"""llama.cpp on a GGUF file: greedy tokens with their log-probabilities, and times of loading and of writing.

Runs in an environment of its own, for `benchmarks.gguf_files`: pip install gguf llama-cpp-python. Prints one JSON
document.

    python benchmarks/llama_cpp_gguf.py FILE --prompt 5,6,7 --steps 64 --threads 2 [--out logprobs.npy]
"""

import argparse
import json
import time
from ctypes import c_void_p
from pathlib import Path

import llama_cpp
import numpy as np


class Llama:
    """One sequence, by llama.cpp's own C interface."""

    def __init__(self, path: Path, threads: int, length: int) -> None:
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # the library keeps only its address
        llama_cpp.llama_log_set(self._silent, c_void_p(0))
        began = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        limits = llama_cpp.llama_context_default_params()
        limits.n_ctx = limits.n_batch = length
        limits.n_threads = limits.n_threads_batch = threads
        # Keys and values in float32: what the weights' form does is to be seen.
        limits.type_k = limits.type_v = llama_cpp.GGML_TYPE_F32
        limits.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, limits)
        self.load_s = time.perf_counter() - began
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.position = 0

    def feed(self, token_ids: list[int]) -> np.ndarray:
        """Log-probabilities of what follows each token, float64 [tokens, vocab]."""
        batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
        batch.n_tokens = len(token_ids)
        for i, token in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, self.position + i, 1, True
            batch.seq_id[i][0] = 0
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode: status {status}")
        self.position += len(token_ids)
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.vocab,)).astype(np.float64)
            for i in range(len(token_ids))
        ]
        logits = np.stack(rows)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", required=True, help="token ids with commas between")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, help="where the log-probabilities of all rows are written")
    args = parser.parse_args()
    tokens = [int(token) for token in args.prompt.split(",")]
    llama = Llama(args.file, args.threads, len(tokens) + args.steps + 8)
    rows = [llama.feed(tokens)]
    began = time.perf_counter()
    for _ in range(args.steps):
        tokens.append(int(rows[-1][-1].argmax()))
        rows.append(llama.feed(tokens[-1:]))
    seconds = time.perf_counter() - began
    if args.out is not None:
        np.save(args.out, np.concatenate(rows))
    print(
        json.dumps(
            {
                "llama_cpp_python": llama_cpp.__version__,
                "tokens": tokens,
                "load_s": round(llama.load_s, 2),
                "tokens_per_s": round(args.steps / seconds, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
