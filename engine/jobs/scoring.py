"""The job of a `Score`: sequences with known tokens.

A candidate in one span order is a path of rows over the shared context. What several paths begin with is computed once:
a sequence runs to where they part, and is forked there. The log-probability of a candidate is the mean over the
requested orders: GLM's objective is an expectation over orders (arXiv 2103.10360, equation 1).
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.answers import Ranking, ScoredOrder, ScoredSpan, ScoredWord, ScoreResult
from engine.events import Done, Event, ResultDone
from engine.jobs.job import Counts, JobContext, Step, alternatives
from engine.jobs.prompts import unpacked
from engine.jobs.row_tree import Branch, Path, num_rows, roots
from engine.requests import Mask, RequestError, Score, Segments, Tokens, member
from engine.schedule.batch import Result, Scored
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence
from model.layout import Blank, Layout, end_of, span_ids
from model.words import Words

MAX_ORDERS = 120  # 5 blanks in all orders
MOST_FORKS = 128  # of one job that run at a time; more would keep the rows of others waiting

Order = tuple[int, ...]
Spans = list[list[Scored | None]]  # each blank's tokens, and the end token where the family has one; None: to come


@dataclass(slots=True)
class Candidate:
    """A candidate: one string per blank, their tokens, the results of each order, the number of missing results, and
    words."""

    index: int
    texts: tuple[str, ...]
    ids: list[list[int]]
    scored: dict[Order, Spans] = field(default_factory=dict)
    left: int = 0
    words: list[Words] | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Run(Path):
    """A candidate in one order, or a part of it, and the place of each target: its span, and its number there."""

    candidate: Candidate
    order: Order
    slots: list[tuple[int, int]] = field(default_factory=list)


class ScoreJob:
    """All candidates of a `Score` in all orders. Raises RequestError for a request that the model cannot score."""

    has_end = True  # spans have an end token, except in masked language models

    def __init__(self, request_id: str, score: Score, job_context: JobContext) -> None:
        self.id = request_id
        self.score = score
        self.job_context = job_context
        self.num_top = score.logprobs or 0
        self.counts = Counts()
        self.check_pll()
        self.told_ends = self.has_end and (score.end_logprobs or score.include_end)
        self.segments, self.laid, texts, param = self._read()
        self.orders = _orders(score, len(self.laid.blanks))
        self.candidates: list[Candidate] = []
        for number, own in enumerate(texts):
            with member("candidate", number, len(texts)):
                self.candidates.append(Candidate(number, self._shown(own), self._tokens(own, param)))
        for candidate in self.candidates if score.words else ():
            candidate.words = self._words(candidate)
        runs = [run for c in self.candidates for order in self.orders for run in self._runs(c, order)]
        for run in runs:
            run.candidate.left += 1
        self._roots = roots(runs)
        self._unread = num_rows(self._roots)
        self._parted: list[tuple[Sequence, list[Branch[Run]]]] = []  # the last one is forked first
        self._forks: set[Sequence] = set()
        self._left = len(self.candidates)
        self._results: dict[int, ScoreResult] = {}
        self._normalized = [0.0] * self._left
        self.counts.prompt_tokens = job_context.num_read(self.laid)
        self.counts.score_tokens = sum(len(ids) + self.told_ends for c in self.candidates for ids in c.ids)

    def check_pll(self) -> None:
        """Raises RequestError for a `pll` that this model or request cannot have."""
        if self.score.pll != "original":
            raise RequestError("pll needs a masked language model; this model is none", "pll", "unsupported")

    def start(self, view: SchedulerView, rank: float) -> list[Sequence]:
        sequences = []
        for branch in self._roots:
            path = branch.paths[0]
            sequences.append(Sequence(view.context(path.context), "scores", rank, whole=path.whole))
            self._ask(sequences[-1], branch)
        sequences[0].prompt_tokens = self.counts.prompt_tokens
        sequences[0].to_come = self._unread
        return sequences

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result) -> Step:
        branch = sequence.owner
        assert isinstance(branch, Branch)
        assert isinstance(result, list)
        branch.take(result)
        self._forks.discard(sequence)
        step = Step()
        for run in branch.ended:
            step.events += self._end(run)
        if children := branch.children():
            self._parted.append((sequence, children))
        else:
            step.finish(sequence)
        step.started += self._fork(view)
        if not self._left:
            step.events += self._finish()
        return step

    def _runs(self, candidate: Candidate, order: Order) -> Iterator[Run]:
        """The runs of an order: one, or of a causal model one a span, which reads the spans before it in the order as
        text and those behind it as empty."""
        if not self.job_context.card.causal:
            yield self._run(candidate, order, [(n, self.laid.blanks[n]) for n in order])
            return
        for step, number in enumerate(order):
            known = set(order[:step])
            counted = itertools.count()
            segments: list[str | Tokens | Mask] = []
            for segment in self.segments:
                own = next(counted) if isinstance(segment, Mask) else -1
                segments.append(candidate.texts[own] if own in known else segment)
            left = [n for n in range(len(order)) if n not in known]
            blank = self.job_context.lay_out(tuple(segments), "text", scored=True).blanks[left.index(number)]
            yield self._run(candidate, order, [(number, blank)])

    def _run(self, candidate: Candidate, order: Order, spans: list[tuple[int, Blank]]) -> Run:
        """Spans written one after the other."""
        run = Run(context=spans[0][1].context, candidate=candidate, order=order)
        for number, blank in spans:
            ids = candidate.ids[number]
            run.rows += [(token, *blank.place(row)) for row, token in enumerate([blank.start, *ids])]
            run.targets += [*ids, end_of(blank, self.job_context.tokenizer) if self.told_ends else -1]
            run.slots += [(number, index) for index in range(len(ids) + self.told_ends)]
        if not self.told_ends:  # nothing reads the last row
            del run.rows[-1], run.targets[-1]
        return run

    def _ask(self, sequence: Sequence, branch: Branch[Run]) -> None:
        branch.extend(sequence)
        sequence.owner = branch
        self._unread -= branch.end - branch.start

    def _fork(self, view: SchedulerView) -> list[Sequence]:
        """Goes into branches, as many as may run at a time; the last one behind a sequence goes on with it."""
        forks = []
        while self._parted and len(self._forks) < MOST_FORKS:
            parted, branches = self._parted[-1]
            branch = branches.pop()
            if not branches:
                self._parted.pop()
            sequence = view.fork(parted) if branches else parted
            if branches:
                forks.append(sequence)
            self._ask(sequence, branch)
            self._forks.add(sequence)
        return forks

    def _end(self, run: Run) -> list[Event]:
        """Takes the results of a run that has ended; the events of a candidate that has no other one left."""
        candidate = run.candidate
        empty: Spans = [[None] * (len(ids) + self.told_ends) for ids in candidate.ids]
        spans = candidate.scored.setdefault(run.order, empty)
        for (number, index), item in zip(run.slots, run.found, strict=True):
            spans[number][index] = item
        if run.order == self.orders[0]:  # a token counts once, whatever the number of orders
            self.job_context.work.score_tokens += len(run.slots)
        candidate.left -= 1
        if candidate.left:
            return []
        self._left -= 1
        self.job_context.work.score_candidates += 1
        result = self._result(candidate)
        self._normalized[candidate.index] = result.normalized
        if self.score.stream:
            return [ResultDone(self.id, result)]
        self._results[candidate.index] = result
        return []

    def stop(self) -> None:
        """Does nothing: every result is counted at once."""

    def _read(self) -> tuple[Segments, Layout, list[tuple[str | Tokens, ...]], str]:
        """The context and how it is laid out, each candidate's strings, and the field they came from."""
        s = self.score
        if s.context is not None and s.targets is not None:
            context, begun = unpacked(s.context, "context", self.job_context)
            if begun:
                raise RequestError("text behind a start token belongs to target", "context")
            masks = [m for m in context if isinstance(m, Mask)]
            if len(masks) > 1:
                raise RequestError(f"context has {len(masks)} masks, at most one is allowed", "context")
            context = context if masks else (*context, self.job_context.open_mask)
            return (
                context,
                self.job_context.lay_out(context, "context", scored=True),
                [(t,) for t in s.targets],
                "targets",
            )
        assert s.text is not None
        if s.spans is None:
            if any(isinstance(m, Mask) for m in s.text):
                raise RequestError("text has blanks; spans must give the texts in them", "spans")
            whole = "".join(t for t in s.text if isinstance(t, str))
            context = (self.job_context.open_mask,)
            return context, self.job_context.lay_out(context, "text", scored=True), [(whole,)], "text"
        laid = self.job_context.lay_out(s.text, "text", scored=True)
        for number, spans in enumerate(s.spans):
            if len(spans) != len(laid.blanks):
                message = f"text has {len(laid.blanks)} blanks, candidate {number} has {len(spans)} strings"
                raise RequestError(message, "spans")
        if not laid.blanks:
            raise RequestError("text has no blank for spans", "text")
        return s.text, laid, list(s.spans), "spans"

    def _shown(self, texts: tuple[str | Tokens, ...]) -> tuple[str, ...]:
        return tuple(self.job_context.spelling.detokenize(t.ids) if isinstance(t, Tokens) else t for t in texts)

    def _tokens(self, texts: tuple[str | Tokens, ...], param: str) -> list[list[int]]:
        rows = []
        for number, (text, blank) in enumerate(zip(texts, self.laid.blanks, strict=True)):
            with member("blank", number, len(texts)):
                rows.append(self._span_tokens(text, blank, param))
        return rows

    def _span_tokens(self, text: str | Tokens, blank: Blank, param: str) -> list[int]:
        if isinstance(text, Tokens):
            self.job_context.check_ids(text.ids, param)
            ids = list(text.ids)
        else:
            ids = span_ids(text, blank, self.job_context.tokenizer) if text else []
        if not ids and not self.score.include_end:
            raise RequestError("an empty string has no token to score; include_end scores its end token", param)
        self.job_context.check_span(len(ids), blank, param)
        return ids

    def _words(self, candidate: Candidate) -> list[Words]:
        spans = zip(candidate.texts, candidate.ids, self.laid.blanks, strict=True)
        return [Words.of(text, ids, self.job_context.tokenizer, blank.spaced) for text, ids, blank in spans]

    def _finish(self) -> Iterator[Event]:
        yield from (ResultDone(self.id, result) for _, result in sorted(self._results.items()))
        top = max(self._normalized)
        weights = [math.exp(n - top) for n in self._normalized]
        total = sum(weights)
        ranking = Ranking(self._normalized.index(top), [w / total for w in weights])
        yield Done(self.id, self.counts.usage(), ranking)

    def _result(self, candidate: Candidate) -> ScoreResult:
        """A candidate's result. Log-probabilities of tokens and spans are means over the orders too."""
        spans: list[ScoredSpan] = []
        for number, ids in enumerate(candidate.ids):
            runs = [[t for t in candidate.scored[order][number] if t is not None] for order in self.orders]
            tokens = [_mean(run[i].logprob for run in runs) for i in range(len(ids))]
            end = _mean(run[-1].logprob for run in runs) if self.told_ends else 0.0
            tops = [t.top for t in runs[0][: len(ids)]]
            spans.append(
                ScoredSpan(
                    index=number,
                    text=candidate.texts[number],
                    logprob=math.fsum(tokens) + end * self.score.include_end,
                    token_ids=ids,
                    tokens=[self.job_context.tokenizer.piece(i) for i in ids],
                    token_logprobs=tokens,
                    top_logprobs=None
                    if self.score.logprobs is None
                    else alternatives(tops, self.job_context.tokenizer),
                    end_logprob=end if self.told_ends else None,
                    words=None
                    if candidate.words is None
                    else _scored_words(candidate.texts[number], candidate.words[number], tokens),
                )
            )
        totals = [self._total(candidate, o) for o in self.orders]
        logprob = _mean(iter(totals))
        num_tokens = sum(len(ids) + self.score.include_end for ids in candidate.ids)
        length = {"none": 1, "token": num_tokens, "char": max(sum(map(len, candidate.texts)), 1)}[self.score.normalize]
        return ScoreResult(
            index=candidate.index,
            logprob=logprob,
            normalized=logprob / length,
            perplexity=math.exp(min(-logprob / num_tokens, 700.0)),
            num_tokens=num_tokens,
            spans=spans,
            orders=[ScoredOrder(list(o), t) for o, t in zip(self.orders, totals, strict=True)],
        )

    def _total(self, candidate: Candidate, order: Order) -> float:
        counted = [len(ids) + self.score.include_end for ids in candidate.ids]
        spans = zip(candidate.scored[order], counted, strict=True)
        return math.fsum(t.logprob for span, count in spans for t in span[:count] if t is not None)


def _orders(score: Score, count: int) -> list[Order]:
    """The span orders asked for, each once. Raises RequestError."""
    asked = score.orders
    identity = tuple(range(count))
    if asked == "left_to_right":
        return [identity]
    if asked == "all":
        if math.factorial(count) > MAX_ORDERS:
            raise RequestError(f'orders "all" takes at most 5 blanks, the text has {count}; give a number', "orders")
        return list(itertools.permutations(identity))
    if isinstance(asked, int):
        if not 1 <= asked <= MAX_ORDERS:
            raise RequestError(f"orders must be between 1 and {MAX_ORDERS}", "orders")
        return _drawn_orders(asked, count, random.Random(score.seed))
    if isinstance(asked, str):
        raise RequestError('orders must be "left_to_right", "all", a number or a list of lists', "orders")
    if not 1 <= len(asked) <= MAX_ORDERS:
        raise RequestError(f"orders has {len(asked)} lists; the limit is {MAX_ORDERS}, and the least is 1", "orders")
    for order in asked:
        if sorted(order) != list(identity):
            raise RequestError(f"each order must hold the {count} blank indices 0 … {count - 1} once", "orders")
    return list(dict.fromkeys(asked))


def _scored_words(text: str, words: Words, logprobs: list[float]) -> list[ScoredWord]:
    parts: list[list[float]] = [[] for _ in words.spans]
    for owner, logprob in zip(words.owners, logprobs, strict=bool(words.spans)):
        parts[owner].append(logprob)
    places = zip(words.spans, parts, strict=True)
    return [ScoredWord(text[start:end], start, end, math.fsum(own)) for (start, end), own in places]


def _drawn_orders(number: int, count: int, rng: random.Random) -> list[Order]:
    """So many different orders, or all that there are."""
    drawn: dict[Order, None] = {}
    while len(drawn) < min(number, math.factorial(min(count, 6))):
        drawn[tuple(rng.sample(range(count), count))] = None
    return list(drawn)


def _mean(values: Iterator[float]) -> float:
    items = list(values)
    return math.fsum(items) / len(items)
