"""What batching, sharing and filling at once give through the whole server, on ChatGLM-6B's widths:

    python -m benchmarks.serving --folder /tmp/serving [--layers 8] [--rivals PYTHON] [options of serve]

A server with invented INT4 weights (4096 wide, 16384 inside, 32 heads, 32,000 embeddings) is asked over HTTP by the
load of `bench serve`: 1, 16 and 32 clients; a text with four blanks one after the other and at once; 16 candidates on a
context of 512 tokens in one request and in 16; a context that comes again. PYTHON has gguf and llama-cpp-python, whose
steps at 1 and 16 sequences are taken in the same run. The last line is one JSON document.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession

from model.families import glm
from server.commands.load import WORDS, Goal, Workload, client_of, closed_loop, summary

DEMO = Path(__file__).parents[1] / "model" / "demo"
TOKENS = 48


def make(folder: Path, layers: int) -> None:
    """A folder with the sizes, and the demo's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    sizes = glm.architecture(
        num_layers=layers, hidden_size=4096, num_attention_heads=32, vocab_size=32000, max_sequence_length=1024
    )
    (folder / "config.json").write_text(json.dumps(glm.config(sizes)))


def macs(layers: int) -> int:
    """Multiply-accumulates of a token, the head included."""
    return layers * (4 * 4096**2 + 2 * 4096 * 16384) + 32000 * 4096


async def post(client: ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with client.post(path, json=body, raise_for_status=True) as answer:
        return dict(await answer.json())


async def counted(client: ClientSession) -> tuple[float, float, float]:
    """Steps that the engine has taken, their seconds, and tokens of contexts."""
    async with client.get("metrics") as answer:
        text = await answer.text()
    names = ("step_seconds_count", "step_seconds_sum", "prompt_tokens_total")
    count, seconds, tokens = (float(re.findall(rf"^glm_infill_{n}(?:{{.*}})? (\S+)$", text, re.M)[0]) for n in names)
    return count, seconds, tokens


async def loop(client: ClientSession, clients: int, seconds: float) -> dict[str, Any]:
    """Fills by so many clients; also how much of the time the engine was not within a step."""
    workload = Workload(words=30, tokens=TOKENS)
    await closed_loop(client, workload, clients, 1.0, seed=9)
    before = await counted(client)
    began = time.perf_counter()
    found = summary(await closed_loop(client, workload, clients, seconds, seed=1), Goal(), seconds)
    elapsed = time.perf_counter() - began
    count, busy, tokens = (now - then for now, then in zip(await counted(client), before, strict=True))
    return found | {
        "steps": count,
        "step_ms": busy / count * 1000,
        "outside_steps": 1 - busy / elapsed,
        "context_tokens": tokens / found["requests"],
    }


def text_of(words: int, blanks: int, seed: int) -> str:
    drawn = random.Random(seed).choices(WORDS, k=words)
    for number in range(blanks):
        drawn.insert((number * len(drawn)) // blanks + 1, "[MASK]")
    return " ".join(drawn)


async def timed(work: Callable[[int], Awaitable[Any]], rounds: int = 5) -> float:
    """The median of some rounds, in seconds; each has a number, for texts that no cache knows."""
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        await work(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def blanks(client: ClientSession) -> dict[str, Any]:
    """Four blanks of one text, alone on the server: tokens a second one after the other, and at once."""

    async def fill(strategy: str, number: int) -> None:
        body = {"text": text_of(60, 4, number), "max_tokens": 32, "min_tokens": 32, "strategy": strategy}
        await post(client, "v1/infill", body)

    rates = {s: 4 * 32 / await timed(lambda n, s=s: fill(s, n), 3) for s in ("append", "parallel")}  # type: ignore[misc]
    return {"tokens_per_s": rates, "ratio": rates["parallel"] / rates["append"]}


async def candidates(client: ClientSession, context: int) -> dict[str, Any]:
    """16 candidates of two tokens on a context of so many: one request, 16 that share nothing, one that comes again."""
    pieces = (await post(client, "v1/tokenize", {"text": " ".join(WORDS)}))["tokens"]
    ids = [p for p in pieces if p > 300]

    async def words(number: int) -> str:
        drawn = random.Random(number).choices(ids, k=context - 3)
        text = (await post(client, "v1/detokenize", {"tokens": drawn}))["text"]
        return f"{text} [MASK]"

    texts = [await words(n) for n in range(40)]
    spans = [[f"{a} {b}"] for a, b in zip(WORDS[:16], WORDS[16:32], strict=True)]

    async def score(text: str, spans: list[list[str]]) -> dict[str, Any]:
        answer = await post(client, "v1/score", {"text": text, "spans": spans, "priority": "interactive"})
        return dict(answer["usage"])

    fresh = iter(texts)

    async def separate(_: int) -> None:
        for span in spans:  # no context is known: each is another one of the same length
            await score(next(fresh), [span])

    usage = await score(texts[39], spans)
    packed = await timed(lambda n: score(texts[32 + n], spans), 3)
    again = await timed(lambda n: score(texts[39], spans), 5)
    cached = (await score(texts[39], spans))["cached_tokens"]
    apart = await timed(separate, 2)
    return {
        "context_tokens": usage["prompt_tokens"],
        "candidate_tokens": usage["completion_tokens"],
        "ms": {"one_request": packed * 1000, "sixteen": apart * 1000, "again": again * 1000},
        "ratio": apart / packed,
        "cached_tokens": cached,
    }


async def measure(url: str, seconds: float, context: int) -> dict[str, Any]:
    async with client_of(url, None, 600.0) as client:
        for _ in range(1200):
            try:
                async with client.get("ready", raise_for_status=True):
                    break
            except ClientError:
                pass
            await asyncio.sleep(0.2)
        found: dict[str, Any] = {str(n): await loop(client, n, seconds) for n in (1, 16, 32)}
        found["blanks"] = await blanks(client)
        found["candidates"] = await candidates(client, context)
        return found


def rival(python: str, folder: Path, layers: int) -> dict[str, Any]:
    script = Path(__file__).parent / "llama_cpp_decode.py"
    command = [python, str(script), "--quant", "q4_0", "--folder", str(folder), "--layers", str(layers)]
    done = subprocess.run(
        [*command, "--rows", "1,16", "--prefill", "512", "--threads", "2"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def beside(found: dict[str, Any], own_macs: int, theirs: dict[str, Any]) -> dict[str, Any]:
    """16 clients beside 16 sequences of llama.cpp, by multiply-accumulates: decode steps alone, and with texts encoded,
    which llama.cpp is taken to do as fast as a prefill of 512."""
    rates = {rows: theirs["decode"][rows]["tokens_per_s"] for rows in ("1", "16")}
    fill_s = found["context_tokens"] / theirs["prefill_512"]["tokens_per_s"] + TOKENS / rates["16"]
    whole, decode = found["generated_tokens_per_s"], 16 * 1000 / found["token_ms"]["p50"]
    scale = own_macs / theirs["macs_per_token"]
    return {
        "tokens_per_s": rates,
        "own_gain": rates["16"] / rates["1"],
        "with_encoding": TOKENS / fill_s,
        "ratios": {"decode": scale * decode / rates["16"], "with_encoding": scale * whole / (TOKENS / fill_s)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rivals", help="an interpreter with gguf and llama-cpp-python")
    parser.add_argument("--demo", action="store_true", help="the demo model instead")
    options, more = parser.parse_known_args()
    make(options.folder, options.layers)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = ["--quant", "int8"]
    large = [
        str(options.folder),
        "--load-format",
        "dummy",
        "--quant",
        "int4",
        "--quant-head",
        "int4",
        "--kv-cache-gb",
        "3",
    ]
    command = [
        sys.executable,
        "-m",
        "server.cli",
        "serve",
        "--port",
        str(port),
        *(demo if options.demo else large),
        *more,
    ]
    server = subprocess.Popen(command, env={**os.environ, "GLM_INFILL_LOG_LEVEL": "error"})
    try:
        found = asyncio.run(measure(f"http://127.0.0.1:{port}", options.seconds, options.context))
    finally:
        server.terminate()
        server.wait()
    one, many = (found[n]["generated_tokens_per_s"] for n in ("1", "16"))
    decode = 16 * found["1"]["token_ms"]["p50"] / found["16"]["token_ms"]["p50"]
    found["batching"] = {"tokens_per_s": [one, many], "with_encoding": many / one, "decode": decode}
    if options.rivals:
        theirs = rival(options.rivals, options.folder, options.layers)
        found["llama_cpp"] = beside(found["16"], macs(options.layers), theirs)
    print(json.dumps({"benchmark": "serving", "layers": options.layers, **found}))


if __name__ == "__main__":
    main()
