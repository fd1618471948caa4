"""What `glm-infill plan` predicts for GLM-130B beside the times that its authors published.

    python -m benchmarks.plan_against_published

Prints the tables of docs/planning.md. Sources: GLM-130B's docs/quantization.md (times of SwissArmyTransformer and, in
INT4, of FasterTransformer) and docs/inference-with-fastertransformer.md (FasterTransformer in float16). Needs no card.
"""

from collections.abc import Iterator

from engine.planning.cards import devices, read_cards
from engine.planning.deployment import Deployment
from engine.planning.plan import Plan, plan
from model.families import PRESETS
from model.storage import Storage

TOKENS = (128, 512, 1024, 2048)

# FasterTransformer, INT4: encoding in ms and decoding in s of 128, 512, 1024 and 2048 tokens; None: out of memory.
FASTER_TRANSFORMER: dict[str, tuple[tuple[float | None, ...], tuple[float | None, ...]]] = {
    "8xA100-40": ((145, 183, 313, 495), (4.29, 17.7, 37.8, 86.0)),
    "4xA100-80": ((174, 272, 439, 810), (6.62, 27.1, 56.2, 123)),
    "8xV100-32": ((309, 666, 1208, 2304), (6.97, 28.1, 58.4, 125)),
    "4xV100-32": ((448, 843, 1488, 2803), (11.4, 45.87, 93.5, 196)),
    "8xRTX3090": ((283, 915, 1793, 3477), (5.07, 20.5, 42.7, 90.3)),
    "4xRTX3090": ((374, 1300, None, None), (8.16, 32.3, 66.5, 150)),
    "8xRTX2080Ti": ((392, 1044, None, None), (6.77, 27.29, 56.02, None)),
}
# Seconds for a full text of 512, 1024 and 2048 tokens.
SAT: dict[tuple[str, str], tuple[float, ...]] = {
    ("8xA100-40", "none"): (45.21, 89.00, 179.22),
    ("8xV100-32", "int8"): (106.35, 216.50, 449.17),
    ("4xRTX3090", "int4"): (138.66, 292.69, 649.64),
    ("8xRTX2080Ti", "int4"): (117.39, 240.96, 528.66),
}
# float16 on 8xA100-40: encoding in ms of 512, 1024 and 2048 tokens by Megatron and by FasterTransformer, and
# FasterTransformer's decoding in s.
FLOAT16 = ((145, 250, 453), (120, 220, None), (18.77, 39.81, 89.88))


def planned(gpus: str, quant: str) -> Plan:
    """As published: one scale a row, embedding and head in float16."""
    family, config = PRESETS["glm-130b"]
    return plan(Deployment(family.architecture(config), Storage(quant, 0), devices(gpus, read_cards())))


def cell(published: float | None, predicted: float, places: int = 0) -> str:
    """Both, and how many times longer the published one is."""
    if published is None:
        return f"OOM · {predicted:,.{places}f}"
    return f"{published:,.{places}f} · {predicted:,.{places}f} · {published / predicted:.2f}"


def faster_transformer() -> Iterator[str]:
    yield from header(
        "INT4", [f"encode {n}, ms" for n in TOKENS] + [f"decode {n}, s" for n in TOKENS] + ["tokens that fit"]
    )
    for gpus, (encode, decode) in FASTER_TRANSFORMER.items():
        p = planned(gpus, "int4")
        cells = [cell(ms, p.predicted.encode_s[str(n)] * 1e3) for n, ms in zip(TOKENS, encode, strict=True)]
        cells += [cell(s, p.predicted.decode_s[str(n)], 1) for n, s in zip(TOKENS, decode, strict=True)]
        yield row(gpus, [*cells, f"{p.max_tokens:,}"])


def float16() -> Iterator[str]:
    p = planned("8xA100-40", "none").predicted
    yield from header("float16, 8xA100-40", [str(n) for n in TOKENS[1:]])
    megatron, encode, decode = FLOAT16
    for name, times in (("Megatron, encode, ms", megatron), ("FasterTransformer, encode, ms", encode)):
        yield row(name, [cell(ms, p.encode_s[str(n)] * 1e3) for n, ms in zip(TOKENS[1:], times, strict=True)])
    yield row(
        "FasterTransformer, decode, s",
        [cell(s, p.decode_s[str(n)], 1) for n, s in zip(TOKENS[1:], decode, strict=True)],
    )


def sat() -> Iterator[str]:
    yield from header("SwissArmyTransformer, decode, s", [str(n) for n in TOKENS[1:]])
    for (gpus, quant), times in SAT.items():
        p = planned(gpus, quant).predicted
        cells = [cell(s, p.decode_s[str(n)], 1) for n, s in zip(TOKENS[1:], times, strict=True)]
        yield row(f"{gpus}, {'float16' if quant == 'none' else quant.upper()}", cells)


def header(first: str, columns: list[str]) -> Iterator[str]:
    yield row(first, columns)
    yield "|".join(["", *["---"] * (len(columns) + 1), ""])


def row(first: str, cells: list[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"


def tables() -> str:
    return "\n\n".join("\n".join(table) for table in (faster_transformer(), float16(), sat()))


if __name__ == "__main__":
    print(tables())
