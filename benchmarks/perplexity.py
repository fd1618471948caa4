"""What quantization changes in the demo: held-out perplexity, bytes a weight and decode time of every scheme, of
weights and of keys and values.

    python -m benchmarks.perplexity --corpora FOLDER [MODEL_FOLDER] [--schemes int4] [--windows 200]
    python -m benchmarks.perplexity --corpora FOLDER --text-only calibration.txt

Quantizes into a temporary folder, plainly and calibrated on training documents of the corpus, which are never held out.
All schemes are measured on the same windows, through the engine's runner: part A is encoded in one step, part B reads
its keys and values from the cache in the next. ± is the standard error of the paired difference, windows being
independent. Decode times are of whole steps of a network with these sizes. Prints a table in Markdown and, as the last
line, JSON.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from engine.bench import DecodeBench, decode
from engine.runner import Runner
from engine.schedule.batch import Batch, Rows, Scored
from model.attention import Span, part_b_start
from model.checkpoint import DEMO, load
from model.convert import Conversion, Recipe
from model.network import Network
from model.storage import Storage
from training.blocklm import Sample
from training.corpus import MIX, held_out_documents, training_documents
from training.evaluate import KINDS, LANGUAGES, masked_windows

TEXT_BYTES = 200_000
EXCERPT_BYTES = 2_000  # of one document at once
ROWS = (1, 16)  # sequences in a step whose time is measured
BLOCK = 16  # tokens of a cache block
BATCH = 32  # windows in a step


@dataclass(frozen=True, slots=True)
class Case:
    """What is quantized, and how."""

    storage: Storage
    calibrated: bool = False
    kv_cache_type: str = "auto"


SCHEMES = {
    "int8": Case(Storage.asked("int8", None, None)),
    "int8, calibrated": Case(Storage.asked("int8", None, None), True),
    "int8, head in floats": Case(Storage("int8")),
    "llm-int8": Case(Storage.asked("llm-int8", None, None)),
    "nf4": Case(Storage.asked("nf4", None, None)),
    "int4, groups of 32, head in floats": Case(Storage("int4")),
    **{
        f"int4, {f'groups of {size}' if size else 'whole rows'}{', calibrated' * calibrated}": Case(
            Storage.asked("int4", size, None), calibrated
        )
        for size in (32, 64, 128, 0)
        for calibrated in (False, True)
    },
    "cache in int8": Case(Storage(), kv_cache_type="int8"),
    "cache in int8, weights in int8": Case(Storage.asked("int8", None, None), kv_cache_type="int8"),
    "cache in int8, weights in int4, groups of 32, calibrated": Case(Storage.asked("int4", 32, None), True, "int8"),
}

Logs = dict[tuple[str, str], list[Tensor]]  # by mask and language, each window's log-probabilities


@dataclass(frozen=True, slots=True)
class Change:
    """A relative change of perplexity and its standard error."""

    value: float
    error: float

    @classmethod
    def between(cls, before: Sequence[Tensor], after: Sequence[Tensor]) -> "Change":
        """Of the perplexity over all targets, from the log-probabilities of the same windows."""
        lost = torch.stack([(b.double() - a.double()).sum() for b, a in zip(before, after, strict=True)])
        counts = torch.tensor([len(b) for b in before], dtype=torch.float64)
        mean = lost.sum() / counts.sum()
        error = (lost - mean * counts).square().sum().sqrt() / counts.sum()
        return cls(math.expm1(mean), float(error) * math.exp(mean))

    def __str__(self) -> str:
        return f"{100 * self.value:+.2f} ± {100 * self.error:.2f}"


def calibration_text(folder: Path, num_bytes: int = TEXT_BYTES, seed: int = 0) -> str:
    """Excerpts of training documents, blank lines between them, every file by its share of a training pass."""
    rng = random.Random(seed)
    texts = [(d, weight) for name, weight in present(folder).items() for d in training_documents(folder, name)]
    # An excerpt of a short document is all of it: so drawn, every byte is as likely as its file's share has it.
    shares = [weight * max(len(text.encode()) / EXCERPT_BYTES, 1.0) for text, weight in texts]
    chosen: list[str] = []
    while sum(len(text.encode()) + 2 for text in chosen) < num_bytes:
        ((text, _),) = rng.choices(texts, shares)
        chosen.append(excerpt(text, rng))
    return "\n\n".join(chosen) + "\n"


def excerpt(text: str, rng: random.Random) -> str:
    """Whole lines from a random one on, EXCERPT_BYTES if there are as many behind it; a short text as it is."""
    if len(text.encode()) <= EXCERPT_BYTES:
        return text
    lines = text.split("\n")
    first = rng.randrange(len(lines))
    taken: list[str] = []
    for line in lines[first:]:
        taken.append(line)
        if sum(len(t.encode()) + 1 for t in taken) >= EXCERPT_BYTES:
            break
    return "\n".join(taken)


def present(folder: Path) -> Mapping[str, int]:
    """The files of the mix that the folder has."""
    return {name: weight for name, weight in MIX.items() if (folder / f"{name}.txt").exists()}


def measured(
    folder: Path, texts: Mapping[str, Sequence[str]], windows: int, length: int, kv_cache_type: str = "auto"
) -> Logs:
    """The log-probabilities of a checkpoint on windows that depend on the text and the tokenizer alone."""
    checkpoint = load(folder)
    logs: Logs = {}
    for kind in (kind for kind in KINDS if kind in checkpoint.tokenizer.masks):
        for language, rows in texts.items():
            source = masked_windows(rows, checkpoint.tokenizer, kind, length)
            samples = [next(source) for _ in range(windows)]
            logs[kind, language] = cached_log_probs(checkpoint.model, samples, kv_cache_type)
    return logs


def cached_log_probs(model: Network, samples: Sequence[Sample], kv_cache_type: str) -> list[Tensor]:
    """The log-probabilities of each sample's targets, all in part B."""
    most = max(part_b_start(s.context_len, BLOCK) + len(s.token_ids) - s.context_len for s in samples)
    blocks_each = -(-most // BLOCK)
    runner = Runner(model, BATCH * blocks_each, BLOCK, kv_cache_type=kv_cache_type)
    blocks = [tuple(range(n * blocks_each, (n + 1) * blocks_each)) for n in range(BATCH)]
    logs: list[Tensor] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        runner.run(Batch(tuple(_rows(s, b, part_b=False) for s, b in zip(batch, blocks, strict=False))), 0)
        results, _ = runner.run(Batch(tuple(_rows(s, b, part_b=True) for s, b in zip(batch, blocks, strict=False))), 0)
        for own in results:
            logs.append(torch.tensor([scored.logprob for scored in own if isinstance(scored, Scored)]))
    return logs


def _rows(sample: Sample, blocks: tuple[int, ...], part_b: bool) -> Rows:
    """One part of a sample as the engine runs it."""
    context = sample.context_len
    part = slice(context, None) if part_b else slice(0, context)
    ids, positions, block_positions, targets = (
        tuple(column[part].tolist())
        for column in (sample.token_ids, sample.positions, sample.block_positions, sample.targets)
    )
    span = Span(len(ids), part_b_start(context, BLOCK) if part_b else 0, context, blocks)
    return Rows(ids, positions, block_positions, span, "scores" if part_b else None, targets=targets)


def step_ms(folder: Path, case: Case) -> dict[str, float]:
    """Milliseconds a row of steps with different numbers of rows."""
    bench = DecodeBench(load(folder).model.architecture, case.storage, ROWS, 0, kv_cache_type=case.kv_cache_type)
    return {rows: step["step_ms"] / int(rows) for rows, step in decode(bench)["decode"].items()}


def quantized(source: Path, folder: Path, names: Sequence[str], text: str) -> Iterator[tuple[str, Path, float]]:
    """Checkpoints by the names of their schemes, each with its bytes a weight."""
    path = folder / "calibration.txt"
    path.write_text(text, encoding="utf-8")
    for number, name in enumerate(names):
        case = SCHEMES[name]
        if case.storage == Storage():
            yield name, source, 2.0
            continue
        target = folder / str(number)
        facts = Conversion(source, target, Recipe(case.storage, path if case.calibrated else None)).run()
        yield name, target, facts["bytes_per_quantized_weight"]


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """In Markdown, changes in per cent."""
    kinds = list(result["perplexity"])
    masks = " | ".join(f"`{kind}` {', '.join(result['perplexity'][kind])}" for kind in kinds)
    times = " | ".join(f"ms a row, {rows} row{'s' * (rows > 1)}" for rows in ROWS)
    yield f"| scheme | bytes a weight | all | {masks} | {times} |"
    yield "|" + "---|" * (3 + len(kinds) + len(ROWS))
    perplexities = " | ".join(
        ", ".join(f"{value:.2f}" for value in row.values()) for row in result["perplexity"].values()
    )
    yield f"| float | 2 | {result['perplexity_all']:.2f} | {perplexities} | {milliseconds(result['ms_per_row'])} |"
    for name, row in result["schemes"].items():
        changes = " | ".join(", ".join(f"{100 * c[0]:+.2f}" for c in own.values()) for own in row["change"].values())
        shown = f"{name} | {row['bytes_per_weight']:.4g} | {Change(*row['change_all'])} | {changes}"
        yield f"| {shown} | {milliseconds(row['ms_per_row'])} |"


def milliseconds(times: Mapping[str, float]) -> str:
    return " | ".join(f"{time:.2f}" for time in times.values())


def by_mask(figures: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """Mask and language → the figure."""
    nested: dict[str, dict[str, Any]] = {}
    for (kind, language), figure in figures.items():
        nested.setdefault(kind, {})[language] = figure
    return nested


def perplexity(logs: Sequence[Tensor]) -> float:
    return math.exp(-float(torch.cat(list(logs)).double().mean()))


def flat(logs: Logs) -> list[Tensor]:
    return [own for rows in logs.values() for own in rows]


def report(source: Path, corpora: Path, names: Sequence[str], windows: int, length: int) -> dict[str, Any]:
    """Every figure, ready for JSON: changes are pairs of a value and its standard error."""
    texts = {
        language: [
            d for name in present(corpora) if name.startswith(language) for d in held_out_documents(corpora, name)
        ]
        for language in LANGUAGES
    }
    texts = {language: rows for language, rows in texts.items() if rows}
    before = measured(source, texts, windows, length)
    schemes: dict[str, dict[str, Any]] = {}
    times: dict[Case, dict[str, float]] = {}  # how it was rounded changes none
    with TemporaryDirectory() as folder:
        for name, target, num_bytes in quantized(source, Path(folder), names, calibration_text(corpora)):
            case = SCHEMES[name]
            after = measured(target, texts, windows, length, case.kv_cache_type)
            changes = {place: Change.between(before[place], after[place]) for place in before}
            whole = Change.between(flat(before), flat(after))
            timed = replace(case, calibrated=False)
            if timed not in times:
                times[timed] = step_ms(source, timed)
            schemes[name] = {
                "bytes_per_weight": num_bytes,
                "change_all": (whole.value, whole.error),
                "change": by_mask({place: (c.value, c.error) for place, c in changes.items()}),
                "ms_per_row": times[timed],
            }
    return {
        "benchmark": "perplexity",
        "model": source.name,
        "targets": sum(len(own) for own in flat(before)),
        "perplexity_all": perplexity(flat(before)),
        "perplexity": by_mask({place: perplexity(own) for place, own in before.items()}),
        "ms_per_row": step_ms(source, Case(Storage())),
        "schemes": schemes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=DEMO, help="float checkpoint folder; the bundled demo")
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the corpus (training.sources)")
    parser.add_argument("--text-only", type=Path, metavar="FILE", help="write the calibration text there and end")
    parser.add_argument("--schemes", default="", help="only those whose name begins so")
    parser.add_argument("--windows", type=int, default=200, help="a kind of mask and language")
    parser.add_argument("--window", type=int, default=80, help="tokens")
    args = parser.parse_args()
    if not present(args.corpora):
        parser.error(f"{args.corpora}: holds no file of the mix ({', '.join(MIX)})")
    if args.text_only is not None:
        args.text_only.write_text(calibration_text(args.corpora), encoding="utf-8")
        return
    names = [name for name in SCHEMES if name.startswith(args.schemes)]
    result = report(args.model, args.corpora, names, args.windows, args.window)
    print("\n".join(table(result)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
