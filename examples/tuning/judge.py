"""Asks a server what it makes of lines: `python examples/tuning/judge.py FILE [--adapter NAME] [--choices a,b]`.

Prints the loss a token, ends included, as `/v1/score` gives it; with choices instead how often the best of them is the
line's own, with a 95 % interval (Wilson's).
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import httpx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--adapter")
    parser.add_argument("--choices", help="with commas")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.file.read_text("utf-8").splitlines()]
    choices = options.choices.split(",") if options.choices else None
    named = {"adapter": options.adapter} if options.adapter else {}
    total, tokens, right = 0.0, 0, 0
    with httpx.Client(base_url=options.url, timeout=120) as client:
        for line in lines:
            spans: list[Any] = [[choice] for choice in choices] if choices else line["spans"]
            body = {"text": line["text"], "spans": spans, "include_end": True, "priority": "interactive", **named}
            answer = client.post("/v1/score", json=body).raise_for_status().json()
            if choices:
                right += [choices[answer["best"]]] == line["spans"]
            else:
                total -= answer["results"][0]["logprob"]
                tokens += answer["results"][0]["num_tokens"]
    if choices:
        low, high = wilson(right, len(lines))
        print(json.dumps({"lines": len(lines), "accuracy": round(right / len(lines), 4), "interval": [low, high]}))
    else:
        print(json.dumps({"lines": len(lines), "tokens": tokens, "loss": round(total / tokens, 4)}))


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return round(middle - half, 4), round(middle + half, 4)


if __name__ == "__main__":
    main()
