"""Judges a checkpoint on held-out text: perplexity by kind of mask, and four-choice cloze accuracy.

    python -m training.evaluate MODEL_FOLDER --corpora FOLDER [--json]

Perplexity is per predicted token, the end token included, over windows of `--window` tokens masked as in
training. A cloze item blanks out a word of an English passage or two characters in a line of Chinese verse;
the choices besides the true one come from other held-out documents, and the one of highest probability wins.
`--corpora` takes what `training.corpus` keeps from training, `--held-out` a folder of the same file names whose
every document is evaluated on. Seeds are fixed: the same text and tokenizer give the same items.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from model.attention import DenseAttention, visible
from model.checkpoint import load
from model.families.glm import FAMILY
from model.layout import span_ids
from model.network import Network
from model.tokenizer import Tokenizer
from training.blocklm import Mixture, Rng, Sample, sample
from training.corpus import MIX, documents, held_out_documents
from training.pretrain import collate, sentences, special_ids, tokenized, windows

VERSE = ("zh_poetry_tang", "zh_songci")
LANGUAGES = ("en", "zh")
KINDS = {
    "[MASK]": Mixture(token=1, sentence=0, document=0),
    "[sMASK]": Mixture(token=0, sentence=1, document=0),
    "[gMASK]": Mixture(token=0, sentence=0, document=1, continuation=0),
}
NUM_CHOICES = 4
WORDS_BEFORE, WORDS_AFTER = 30, 30
CHARACTERS_AROUND = 40
# A word within a sentence: after a letter or comma and a space, so that it is not the sentence's first.
WORD = re.compile(r"(?<=[A-Za-z,] )[A-Za-z]{4,}(?![\w'’-])")
LINE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]{4,9}")  # a line of verse, without marks

Texts = Mapping[str, Sequence[str]]  # file name → its documents


@dataclass(frozen=True, slots=True)
class Item:
    """A text with one blank and its choices. `choices[0]` is the original."""

    before: str
    choices: tuple[str, ...]
    after: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stretch that could become a blank. A distractor has the same `place`."""

    document: int
    start: int
    end: int
    place: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Cloze accuracy by the span's tokens alone, and with the end token."""

    num_items: int
    span: float
    end: float


def words(texts: Sequence[str]) -> list[Candidate]:
    """Words of four letters or more that do not begin a sentence."""
    return [Candidate(n, *m.span()) for n, text in enumerate(texts) for m in WORD.finditer(text)]


def pairs(texts: Sequence[str]) -> list[Candidate]:
    """Every two neighbouring characters of a line of verse, the title line left out."""
    return [
        Candidate(n, m.start() + i, m.start() + i + 2, (len(m.group()), i))
        for n, text in enumerate(texts)
        for m in LINE.finditer(text, text.find("\n") + 1)
        for i in range(len(m.group()) - 1)
    ]


def passage(text: str, start: int, end: int) -> tuple[str, str]:
    """About 60 words around a word, before and after it."""
    before = [m.start() for m in re.finditer(r"\S+", text[:start])]
    after = [m.end() for m in re.finditer(r"\S+", text[end:])]
    first = before[-WORDS_BEFORE:][0] if before else start
    last = end + after[:WORDS_AFTER][-1] if after else end
    return text[first:start], text[end:last]


def verse(text: str, start: int, end: int) -> tuple[str, str]:
    """About 80 characters around, before and after."""
    return text[max(0, start - CHARACTERS_AROUND) : start], text[end : end + CHARACTERS_AROUND]


def items(
    texts: Texts,
    find: Callable[[Sequence[str]], list[Candidate]],
    context: Callable[[str, int, int], tuple[str, str]],
    count: int,
    rng: Rng,
) -> list[Item]:
    """Up to `count` items, each with distractors from other documents of its own file.

    All candidates of all files have the same probability. A file of one document gives none, and neither does a
    candidate with too few distractors for its place.
    """
    pools = {name: find(rows) for name, rows in texts.items()}
    found = [(name, c) for name, pool in pools.items() for c in pool if len(texts[name]) > 1]
    by_place: dict[tuple[str, tuple[int, ...]], list[Candidate]] = {}
    for name, candidate in found:
        by_place.setdefault((name, candidate.place), []).append(candidate)
    result: list[Item] = []
    for number in rng.permutation(len(found)):
        if len(result) == count:
            break
        name, chosen = found[number]
        choices = _choices(texts[name], chosen, by_place[name, chosen.place], rng)
        if choices is not None:
            before, after = context(texts[name][chosen.document], chosen.start, chosen.end)
            result.append(Item(before, choices, after))
    return result


def _choices(rows: Sequence[str], chosen: Candidate, pool: Sequence[Candidate], rng: Rng) -> tuple[str, ...] | None:
    """The true text and distractors from other documents, all different; None where the pool is too poor."""
    choices = [rows[chosen.document][chosen.start : chosen.end]]
    for number in rng.integers(0, len(pool), 50):
        other = pool[number]
        text = rows[other.document][other.start : other.end]
        if other.document != chosen.document and text.lower() not in [c.lower() for c in choices]:
            choices.append(text)
            if len(choices) == NUM_CHOICES:
                return tuple(choices)
    return None


def sequence(item: Item, choice: str, tokenizer: Tokenizer) -> Sample:
    """A choice in its blank, in the server's layout. The targets are its tokens and the end token."""
    laid = FAMILY.layout.lay_out([item.before, ("[MASK]",), item.after], tokenizer)
    blank = laid.blanks[0]
    span = span_ids(choice, blank, tokenizer)
    length = len(laid)
    return Sample(
        np.array([*laid.token_ids, tokenizer.sop, *span]),
        np.array([*range(length), *[blank.position] * (len(span) + 1)]),
        np.array([*[0] * length, *range(1, len(span) + 2)]),
        np.array([*[-1] * length, *span, tokenizer.eop]),
        length,
    )


def log_probs(model: Network, samples: Sequence[Sample], batch_size: int, title: str = "") -> list[Tensor]:
    """The log-probabilities [num_targets] of each sample's targets. Samples of similar length share a batch."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].token_ids))
    result: list[Tensor] = [torch.empty(0)] * len(samples)
    starts = range(0, len(order), batch_size)
    with torch.inference_mode():
        for start in track(starts, title, disable=not title, console=Console(stderr=True), transient=True):
            numbers = order[start : start + batch_size]
            ids, positions, blocks, targets, context_len = collate([samples[i] for i in numbers])
            hidden = model(ids, positions, blocks, DenseAttention(visible(ids.shape[1], context_len)))
            learned = targets >= 0
            logs = model.logits(hidden[learned]).log_softmax(-1)
            chosen = logs.gather(1, targets[learned][:, None])[:, 0]
            for i, own in zip(numbers, _rows(chosen, learned), strict=True):
                result[i] = own
    return result


def _rows(values: Tensor, chosen: Tensor) -> Iterator[Tensor]:
    """The values of each row of a mask [rows, columns] through which they were taken."""
    end = 0
    for count in chosen.sum(1).tolist():
        yield values[end : end + count]
        end += count


def accuracy(model: Network, tokenizer: Tokenizer, rows: Sequence[Item], batch_size: int) -> Accuracy:
    """Share of items whose true choice has the highest sum of log-probabilities."""
    samples = [sequence(item, choice, tokenizer) for item in rows for choice in item.choices]
    logs = log_probs(model, samples, batch_size, "cloze items")
    span = torch.stack([own[:-1].sum() for own in logs]).view(len(rows), NUM_CHOICES)
    end = torch.stack([own.sum() for own in logs]).view(len(rows), NUM_CHOICES)
    right = [float((scores.argmax(1) == 0).float().mean()) for scores in (span, end)]
    return Accuracy(len(rows), *right)


def masked_windows(texts: Sequence[str], tokenizer: Tokenizer, kind: str, length: int) -> Iterator[Sample]:
    """Endless samples of one kind of mask from documents drawn in proportion to their lengths."""
    rng = np.random.default_rng(0)
    rows = tokenized(texts, tokenizer)
    special = special_ids(tokenizer)
    for window in windows(rows, [1] * len(rows), (length, length), rng):
        borders = sentences(window.ends)
        if kind != "[sMASK]" or len(borders) > 1:
            yield sample(window.ids, borders, KINDS[kind], special, rng)


def perplexity(model: Network, samples: Sequence[Sample], batch_size: int) -> float:
    """exp of the mean negative log-probability per target token."""
    return math.exp(-float(torch.cat(log_probs(model, samples, batch_size, "windows")).mean()))


def cloze_items(texts: Texts, count: int, seed: int = 0) -> dict[str, list[Item]]:
    """English and Chinese items from held-out documents by file."""
    english = {name: rows for name, rows in texts.items() if name.startswith("en_")}
    chinese = {name: rows for name, rows in texts.items() if name in VERSE}
    return {
        "en": items(english, words, passage, count, np.random.default_rng([seed, 0])),
        "zh": items(chinese, pairs, verse, count, np.random.default_rng([seed, 1])),
    }


def report(
    folder: Path, texts: Texts, num_items: int = 400, num_windows: int = 200, window: int = 80, batch: int = 32
) -> dict[str, object]:
    """All figures of a checkpoint, ready for JSON. A language without text is omitted."""
    checkpoint = load(folder)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    perplexities: dict[str, dict[str, float]] = {}
    for language in LANGUAGES:
        rows = [text for name, own in texts.items() if name.startswith(f"{language}_") for text in own]
        for kind in KINDS if rows and window > 2 else ():
            if kind not in tokenizer.masks:
                continue
            source = masked_windows(rows, tokenizer, kind, window)
            samples = [next(source) for _ in range(num_windows)]
            perplexities.setdefault(kind, {})[language] = perplexity(model, samples, batch)
    cloze: dict[str, dict[str, float]] = {}
    for language, own in cloze_items(texts, num_items).items():
        if own:
            score = accuracy(model, tokenizer, own, batch)
            cloze[language] = {"items": score.num_items, "span": score.span, "end": score.end}
    return {"model": str(folder), "window": window, "perplexity": perplexities, "cloze": cloze}


def tables(figures: Mapping[str, object], scoring: Sequence[str]) -> Iterator[Table]:
    """The figures for people."""
    perplexities, cloze = figures["perplexity"], figures["cloze"]
    assert isinstance(perplexities, dict)
    assert isinstance(cloze, dict)
    table = Table("mask", *LANGUAGES, title=f"Held-out perplexity per token, windows of {figures['window']}")
    for kind, values in perplexities.items():
        table.add_row(kind.replace("[", r"\["), *(f"{values[n]:.1f}" if n in values else "–" for n in LANGUAGES))
    yield table
    table = Table("language", "items", *(f"scored by {s}" for s in scoring), title="Cloze, chance 25 %")
    for language, values in cloze.items():
        count = int(values["items"])
        shown = (
            f"{100 * values[s]:.1f} % ± {100 * math.sqrt(values[s] * (1 - values[s]) / count):.1f}" for s in scoring
        )
        table.add_row({"en": "English", "zh": "Chinese verse"}[language], str(count), *shown)
    yield table


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--corpora", type=Path, help="folder of the corpus; its held-out share is used")
    group.add_argument("--held-out", type=Path, help="folder of files of which every document is held out")
    parser.add_argument("--items", type=int, default=400, help="cloze items a language")
    parser.add_argument("--windows", type=int, default=200, help="samples a kind of mask and language")
    parser.add_argument("--window", type=int, default=80, help="tokens a sample")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scoring", choices=("span", "end", "both"), default="both", help="what to show")
    parser.add_argument("--json", action="store_true", help="also print all figures as a last line of JSON")
    args = parser.parse_args()
    folder: Path = args.corpora or args.held_out
    choose = documents_of if args.corpora is None else held_out_documents
    texts = {name: list(choose(folder, name)) for name in MIX if (folder / f"{name}.txt").exists()}
    if not any(texts.values()):
        parser.error(f"{folder}: no held-out documents in any of {', '.join(f'{n}.txt' for n in MIX)}")
    figures = report(args.model, texts, args.items, args.windows, args.window, args.batch)
    console = Console()
    for table in tables(figures, ("span", "end") if args.scoring == "both" else (args.scoring,)):
        console.print(table)
    if args.json:
        print(json.dumps(figures))


def documents_of(folder: Path, name: str) -> Iterator[str]:
    """Every document of a file."""
    return documents(folder / f"{name}.txt")


if __name__ == "__main__":
    main()
