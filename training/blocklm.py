"""GLM's pretraining objective: text to (part A, part B, targets).

After GLM's `blocklm_utils.py` and arXiv 2103.10360, sections 2.1 and 2.2. Three kinds of sample:
token-level `[MASK]` spans with lengths ~ Poisson(3) up to 15 % of the tokens, sentence-level `[sMASK]` spans up
to 15 %, and one document-level `[gMASK]` span, some of these a plain continuation. Spans are predicted in random
order; a span's tokens all carry the position of their mask and count block positions from 1 at the start token.

A text given here is a piece of one document: no documents are packed together, so that no span crosses the
border between two of them, and GLM's special case of a sample with several documents does not arise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Span = tuple[int, int]  # first token, past the last


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens that the objective places."""

    cls: int
    eos: int
    sop: int
    eop: int
    mask: int
    smask: int
    gmask: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares and sizes of the three kinds of sample. The defaults are those of GLM-10B's first stage.

    `continuation` is the share of document-level samples that continue a prompt and do not learn an end token.
    """

    token: float = 0.5
    sentence: float = 0.3
    document: float = 0.2
    mask_ratio: float = 0.15
    mean_span: float = 3.0
    max_span: int = 39
    min_document_ratio: float = 0.25
    continuation: float = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence. All arrays are [num_tokens]; a target of −1 has no loss."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    block_positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    context_len: int


def span_lengths(num_tokens: int, mixture: Mixture, rng: Rng) -> list[int]:
    """Poisson lengths within 1 … `max_span`, others redrawn, until their sum is `mask_ratio` of the tokens.

    No length is cut to meet the ratio, which would favour short spans. A text too short to hold the spans one token
    apart gets fewer, at least one over the whole text.
    """
    lengths: list[int] = []
    while sum(lengths) < mixture.mask_ratio * num_tokens:
        length = int(rng.poisson(mixture.mean_span))
        if 1 <= length <= mixture.max_span:
            lengths.append(length)
    while len(lengths) > 1 and sum(lengths) + len(lengths) - 1 > num_tokens:
        lengths.pop()
    return [min(length, num_tokens) for length in lengths]


def token_spans(num_tokens: int, mixture: Mixture, rng: Rng) -> list[Span]:
    """Poisson-length spans at least one token apart until `mask_ratio` of the tokens are masked, in text order."""
    lengths = span_lengths(num_tokens, mixture, rng)
    # Take out the spans and one token of each gap, choose places in what is left, put them back.
    free = num_tokens - sum(lengths) - (len(lengths) - 1)
    offsets = np.sort(rng.integers(0, free + 1, len(lengths)))
    rng.shuffle(lengths)
    spans: list[Span] = []
    used = 0
    for offset, length in zip(offsets, lengths, strict=True):
        start = int(offset) + used
        spans.append((start, start + length))
        used += length + 1
    return spans


def sentence_spans(sentences: list[Span], num_tokens: int, mixture: Mixture, rng: Rng) -> list[Span]:
    """Random whole sentences until `mask_ratio` of the tokens are masked. Neighbours stay two spans."""
    spans: list[Span] = []
    masked = 0
    for number in rng.permutation(len(sentences)):
        if masked >= mixture.mask_ratio * num_tokens:
            break
        start, end = sentences[number]
        spans.append((start, end))
        masked += end - start
    return sorted(spans)


def document_span(num_tokens: int, mixture: Mixture, rng: Rng) -> Span:
    """One span of uniform length between `min_document_ratio` of the text and all but two tokens."""
    low = max(1, int(mixture.min_document_ratio * num_tokens))
    length = int(rng.integers(low, max(low, num_tokens - 2) + 1))
    start = int(rng.integers(0, num_tokens - length + 1))
    return start, start + length


def corrupt(
    tokens: NDArray[np.int64], spans: list[Span], mask: int, special: SpecialIds, order: NDArray[np.int64]
) -> Sample:
    """Part A with each span collapsed into `mask`, then the spans as part B in `order`.

    Part A is [CLS] text [eos], without the end token where the text ends in `[gMASK]`.
    """
    context: list[NDArray[np.int64]] = [np.array([special.cls])]
    mask_positions: list[int] = []
    length, last = 1, 0
    for start, end in spans:
        context += [tokens[last:start], np.array([mask])]
        length += start - last
        mask_positions.append(length)
        length += 1
        last = end
    context.append(tokens[last:])
    if not (mask == special.gmask and spans and spans[-1][1] == len(tokens)):
        context.append(np.array([special.eos]))
    part_a = np.concatenate(context)
    ids, positions, blocks, targets = (
        [part_a],
        [np.arange(len(part_a))],
        [np.zeros_like(part_a)],
        [np.full_like(part_a, -1)],
    )
    for number in order:
        start, end = spans[number]
        span = tokens[start:end]
        ids.append(np.concatenate([[special.sop], span]))
        targets.append(np.concatenate([span, [special.eop]]))
        positions.append(np.full(len(span) + 1, mask_positions[number]))
        blocks.append(np.arange(1, len(span) + 2))
    return Sample(
        np.concatenate(ids),
        np.concatenate(positions),
        np.concatenate(blocks),
        np.concatenate(targets),
        len(part_a),
    )


def continuation(tokens: NDArray[np.int64], length: int, special: SpecialIds) -> Sample:
    """The last `length` tokens as the continuation of a prompt. The text goes on after them, so no end is learned.

    Part A is [CLS] source [gMASK] without the end token. Part B is the start token and all targets but the last.
    """
    end = len(tokens)
    whole = corrupt(tokens, [(end - length, end)], special.gmask, special, np.arange(1))
    return Sample(
        whole.token_ids[:-1],
        whole.positions[:-1],
        whole.block_positions[:-1],
        whole.targets[:-1],
        whole.context_len,
    )


def sample(tokens: NDArray[np.int64], sentences: list[Span], mixture: Mixture, special: SpecialIds, rng: Rng) -> Sample:
    """One corrupted sample of a text with known sentences. The mixture's shares give the probabilities of the kinds."""
    kind = rng.choice(3, p=[mixture.token, mixture.sentence, mixture.document])
    if kind == 1 and len(sentences) > 1:
        spans, mask = sentence_spans(sentences, len(tokens), mixture, rng), special.smask
    elif kind == 2:
        start, end = document_span(len(tokens), mixture, rng)
        if rng.random() < mixture.continuation:
            return continuation(tokens, end - start, special)
        spans, mask = [(start, end)], special.gmask
    else:
        spans, mask = token_spans(len(tokens), mixture, rng), special.mask
    return corrupt(tokens, spans, mask, special, rng.permutation(len(spans)))
