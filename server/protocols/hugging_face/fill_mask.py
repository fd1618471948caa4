"""Fill-mask: the most probable candidates for each mask of a text, with their probabilities.

For masked language models what transformers' pipeline gives. A mask is `[MASK]`, or as the model's own tokenizer spells
it (`<mask>`). Of several masks each has its own list, as there, and a candidate's
`sequence` has the best candidates in the other masks and no special tokens: a text that can be read. A GLM's candidate
is a whole span, its `token` the first of it, its score the probability of the span with its end.
"""

import math
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any
from uuid import uuid4

from fastapi import Request

from engine.answers import FilledBlank, FillResult
from engine.client import EngineClient
from engine.requests import Mask, RequestError, Segments, Tokens
from server.exchange.bodies import names
from server.exchange.exchange import complete, submit
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service
from server.protocols.hugging_face.asking import Asking
from server.protocols.hugging_face.schemas import FillMaskParameters, FillMaskRequest
from server.wire.answer import Answer

# What the engine calls the fields of a request.
NAMES = {"text": "inputs", "choices": "targets", "n": "top_k", "num_beams": "top_k"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may stand in a mask: its first token, the text of a span, and its log-probability."""

    token: int
    text: str
    logprob: float


async def fill_mask(request: Request, service: Service, raw: dict[str, Any], asking: Asking) -> Answer:
    """The answer to a body of fill-mask: a list for each mask, of one mask alone the list itself; for a list of texts
    a list of these."""
    body = FillMaskRequest.model_validate(raw)
    engine, limits = service.engine, service.settings.limits
    unknown = raw.keys() - names(FillMaskRequest)
    unknown |= (raw.get("parameters") or {}).keys() - names(FillMaskParameters)
    service.ignored.note(asking.route, unknown)
    adapter = named_adapter(engine, asking.model)
    work = replace(body.fill(limits, engine.card, await _choices(body, engine)), adapter=adapter)
    results, _ = await complete(service, request, submit(service, request, work, f"mask-{uuid4().hex}", NAMES))
    fills = [result for result in results if isinstance(result, FillResult)]
    answers, texts = [], body.texts(engine.card)
    for number, same in groupby(fills, key=lambda result: result.input_index):
        found = _candidates(list(same), body)
        write = _written_by_pieces if engine.card.masked else _written_by_spans
        rows = await write(texts[number], found, engine)
        answers.append(rows[0] if len(rows) == 1 else rows)
    return Answer(answers if isinstance(body.inputs, list) else answers[0])


async def _choices(body: FillMaskRequest, engine: EngineClient) -> tuple[str | Tokens, ...]:
    """The targets: of a model that writes one token, the first one of each, as in transformers."""
    if not engine.card.masked:
        return tuple(dict.fromkeys(body.targets))
    ids = [await engine.tokenize(target, special=True) for target in body.targets]
    first = dict.fromkeys(own[0] for own in ids if own)
    if ids and not first:
        raise RequestError("targets has no token of this model's vocabulary", "targets")
    return tuple(Tokens((token,)) for token in first)


def _candidates(results: list[FillResult], body: FillMaskRequest) -> list[list[Candidate]]:
    """For each mask of a text its candidates, the best first."""
    masks = zip(*(result.blanks for result in results), strict=True)
    found = [[candidate for blank in blanks for candidate in _of(blank, body)] for blanks in masks]
    return [sorted(own, key=lambda candidate: -candidate.logprob)[: body.parameters.top_k] for own in found]


def _of(blank: FilledBlank, body: FillMaskRequest) -> list[Candidate]:
    if blank.choice_logprobs is not None and blank.choice_ids is not None:
        choices = zip(blank.choice_ids, dict.fromkeys(body.targets), blank.choice_logprobs, strict=False)
        return [Candidate(ids[0], text, logprob) for ids, text, logprob in choices]
    if blank.top_logprobs is not None:
        return [Candidate(top.token_id, top.token, top.logprob) for top in blank.top_logprobs[0]]
    return [Candidate(blank.token_ids[0], blank.text, blank.logprob + (blank.end_logprob or 0.0))]


async def _written_by_pieces(text: Segments, found: list[list[Candidate]], engine: EngineClient) -> list[list[Any]]:
    """The answers of a model whose text is its tokens, as its tokenizer writes them."""
    ids = await engine.tokenize("".join(s.name if isinstance(s, Mask) else str(s) for s in text))
    (mask,) = await engine.tokenize("[MASK]")
    places = [place for place, token in enumerate(ids) if token == mask]
    for place, own in zip(places, found, strict=True):
        ids[place] = own[0].token
    rows = []
    for place, own in zip(places, found, strict=True):
        row = []
        for candidate in own:
            whole = [*ids[:place], candidate.token, *ids[place + 1 :]]
            alone = [candidate.token]
            # A special token has no text, only a name.
            shown = await engine.detokenize(alone, sentence=True)
            if not shown:
                shown = engine.card.mask_token if alone == [mask] else await engine.detokenize(alone, special=True)
            row.append(_element(candidate, shown, await engine.detokenize(whole, sentence=True)))
        rows.append(row)
    return rows


async def _written_by_spans(text: Segments, found: list[list[Candidate]], _: EngineClient) -> list[list[Any]]:
    """The answers of a model that writes spans: the text with these in place of its masks."""
    return [
        [_element(candidate, candidate.text, _spliced(text, found, number, candidate)) for candidate in own]
        for number, own in enumerate(found)
    ]


def _spliced(text: Segments, found: list[list[Candidate]], number: int, candidate: Candidate) -> str:
    fills = iter([candidate.text if at == number else own[0].text for at, own in enumerate(found)])
    return "".join(next(fills) if isinstance(segment, Mask) else str(segment) for segment in text)


def _element(candidate: Candidate, shown: str, sequence: str) -> dict[str, Any]:
    score = math.exp(candidate.logprob)
    return {"score": score, "token": candidate.token, "token_str": shown, "sequence": sequence}
