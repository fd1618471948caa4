"""Memory of every rank of a served model, while it is loaded and at work, beside what `glm-infill plan` foretells.

    python -m benchmarks.parallel_memory FOLDER --tp 8 --quant int4 [--tokenizer FOLDER] [--kv-cache-gb 0.2]

Starts the ranks, asks for fills and scores until every block of the cache has been written, and reads /proc. `resident`
is a rank's own memory after that (RssAnon and RssShmem), `peak` the largest resident set while loading, mapped pages of
the files included; `bare` is a process that has imported what a rank imports.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.events import Done
from engine.processes.process import EngineProcess
from engine.requests import Fill, Mask, Score

MB = 1e6
FILL = Fill((("a text with a ", Mask("[MASK]"), " in it"),), max_tokens=(4,))
SCORE = Score(text=("a text with a ", Mask("[MASK]")), spans=(("blank",), ("span",)))


def long_text(number: int, words: int) -> Score:
    """A text of its own for each number, scored as a continuation."""
    return Score(context=(" ".join(f"{number} red" for _ in range(words // 2)),), targets=("and so on",))


def status(pid: int) -> dict[str, float]:
    """MB by the names of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 / MB for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem")}


def bare() -> dict[str, float]:
    """Of a process that has imported what a rank imports."""
    code = "import engine.processes.worker; from benchmarks.parallel_memory import status; import os, json; "
    code += "print(json.dumps(status(os.getpid())))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    own: dict[str, float] = json.loads(done.stdout)
    return {"peak": own["VmHWM"], "resident": own["RssAnon"] + own["RssShmem"], "files": own["RssFile"]}


async def served(config: EngineConfig) -> list[dict[str, float]]:
    """Every rank's memory: its peak while loading, and what is resident after work."""
    engine = EngineProcess(config)
    await engine.start()
    try:
        while engine.state()[0] != "ready":
            if engine.state()[0] == "failed":
                sys.exit(engine.state()[1])
            print(f"\r{engine.state()[1]:<60}", end="", file=sys.stderr)
            await asyncio.sleep(0.2)
        print(file=sys.stderr)
        loading = [status(pid)["VmHWM"] for pid in engine.pids]
        filled, number = 0, 0
        while filled < engine.card.kv_cache_tokens:
            words = engine.card.max_context // 4
            for request in (FILL, SCORE, long_text(number, words)):
                async with aclosing(engine.submit(request, str(number))) as events:
                    last = [event async for event in events][-1]
                assert isinstance(last, Done), last
                number, filled = number + 1, filled + last.usage.total_tokens
        await asyncio.sleep(3)  # what the steps left on the heap is given back meanwhile
        after = [status(pid) for pid in engine.pids]
    finally:
        await engine.stop()
    return [
        {"peak": peak, "resident": own["RssAnon"] + own["RssShmem"], "files": own["RssFile"]}
        for peak, own in zip(loading, after, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--quant")
    parser.add_argument("--quant-head")
    parser.add_argument("--tokenizer")
    parser.add_argument("--kv-cache-gb", type=float, default=0.2)
    options = parser.parse_args()
    config = EngineConfig(
        str(options.model),
        quant=options.quant,
        quant_head=options.quant_head,
        tokenizer=options.tokenizer,
        kv_cache_gb=options.kv_cache_gb,
        tp=options.tp,
    )
    ranks = asyncio.run(served(config))
    result: dict[str, Any] = {"benchmark": "parallel_memory", "model": options.model.name, "tp": options.tp}
    empty = bare()
    print("bare: " + ", ".join(f"{name} {value:.0f} MB" for name, value in empty.items()))
    for rank, own in enumerate(ranks):
        print(f"rank {rank}: " + ", ".join(f"{name} {value:.0f} MB" for name, value in own.items()))
    rounded = [{name: round(value) for name, value in own.items()} for own in (empty, *ranks)]
    print(json.dumps(result | {"quant": options.quant, "bare": rounded[0], "ranks": rounded[1:]}))


if __name__ == "__main__":
    main()
