"""The jobs of a masked language model (BERT). It writes into the text itself, and there is no part B.

Fills: `parallel` reads the tokens at all masks from one pass; `reencode` fills one mask after the other, each with the
earlier fills in sight. Scores: the masked words of a text (the masked-LM loss at these positions); a whole text with
each token masked in turn (its pseudo-log-likelihood, arXiv 1910.14659), on request with the later tokens of the same
word masked too (arXiv 2305.10588); or whether a sentence follows another (arXiv 1810.04805, task 2).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.answers import Ranking, ScoreResult
from engine.events import Done, ResultDone
from engine.jobs.blank_fill import BlankFill
from engine.jobs.filling import FillJob
from engine.jobs.job import Counts, JobContext, Step
from engine.jobs.sample import Sample, Task
from engine.jobs.scoring import Candidate, Order, Run, ScoreJob
from engine.requests import RequestError, Score
from engine.schedule.batch import Result, Row
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence


class MaskedSample(Sample):
    """One sample of one input. Each pass over its text fills all masks that it reads, or the surest one."""

    def start(self, view: SchedulerView, rank: float, step: Step) -> None:
        self.rank = rank
        step.started.append(self._pass(view))

    def take_pass(self, view: SchedulerView, asked: list[int], logprobs: Row, step: Step) -> list[BlankFill]:
        """Takes the log-probabilities [vocab_size] or [asked, vocab_size] of a pass; returns the filled blanks.

        Raises RequestError if the pattern of a blank leaves no token.
        """
        rows = dict(zip(asked, logprobs.reshape(len(asked), -1), strict=True))
        for index in asked:
            self.samplers[index].read(self.places[index].context)
        if self.confident and self.strategy == "reencode":
            sure = {index: self._sureness(row, index) for index, row in rows.items()}
            index = max(sure, key=lambda i: (sure[i], -i))  # among equals the leftmost
            rows = {index: rows[index]}
        moved = [self._filled(index, row) for index, row in rows.items()]
        if self.queue:
            self._splice()
            step.started.append(self._pass(view))
        return moved

    def _splice(self) -> None:
        """Puts the tokens of the fills so far in place of their masks: of the text, pieces of words could be others."""
        filled = [(blank, place) for blank, place in zip(self.blanks, self.places, strict=True) if blank.finish_reason]
        if not all(blank.tokens for blank, _ in filled):  # a stop token, which leaves nothing
            super()._splice()
            return
        left = [index for index, blank in enumerate(self.blanks) if blank.finish_reason is None]
        ids = list(self.places[left[0]].context)
        for blank, place in filled:
            ids[place.position] = blank.tokens[0].token_id
        for index in left:
            self.places[index] = replace(self.places[index], context=tuple(ids))

    def _pass(self, view: SchedulerView) -> Sequence:
        """The text with the masks that are left, asked for the next of them or for all."""
        asked = self.queue[:1] if self.strategy == "reencode" and not self.confident else list(self.queue)
        places = [self.places[index] for index in asked]
        positions = tuple(place.position for place in places)
        task = Pass(self, asked)
        output = self._output(asked[0])
        sequence = Sequence(view.context(()), output, self.rank, whole=True, logit_rows=positions, owner=task)
        for position, token in enumerate(places[0].context):
            sequence.push(token, position, 0)
        return sequence

    def _filled(self, index: int, logprobs: Row) -> BlankFill:
        blank = self.blanks[index]
        self.queue.remove(index)
        sampler, num_top, choices = self.samplers[index], self.fill.logprobs or 0, self._choices_of(index)
        if choices is None:
            constraint = self.constraints[index]
            allowed = None if constraint is None else constraint.allowed()
            blank.accept(sampler.draw(logprobs, (), (), num_top, allowed), self.job_context)
            blank.finish_reason = "stop" if constraint is None else "regex"  # a mask is one token
        else:
            worth = [float(logprobs[token]) for token in choices.first]
            chosen = sampler.pick(dict(enumerate(worth)))
            token = sampler.told(logprobs, choices.ids[chosen][0], num_top)
            blank.choice_ids = choices.ids
            blank.choose(choices.texts[chosen], [token], None, worth, self.job_context)
        return blank


@dataclass(slots=True, eq=False)
class Pass(Task):
    """A sequence that reads the text once, for some of its blanks."""

    sample: MaskedSample
    asked: list[int]

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> list[BlankFill]:
        assert not isinstance(result, list)
        step.finish(sequence)
        return self.sample.take_pass(view, self.asked, result, step)


class MaskedFillJob(FillJob):
    """The samples of a `Fill`."""

    sample = MaskedSample


class MaskedScoreJob(ScoreJob):
    """The candidates of a `Score`: all their tokens masked together, or those of a whole text one by one."""

    has_end = False

    def __init__(self, request_id: str, score: Score, job_context: JobContext) -> None:
        if score.include_end:
            raise RequestError("this model has no end token to include", "include_end", "unsupported")
        if score.orders != "left_to_right":
            raise RequestError("this model predicts all spans at once; it has no orders", "orders", "unsupported")
        super().__init__(request_id, score, job_context)

    def _runs(self, candidate: Candidate, order: Order) -> Iterator[Run]:
        mask = self.job_context.tokenizer.special["mask"]
        places = {blank.position: number for number, blank in enumerate(self.laid.blanks)}
        whole: list[int] = []
        slots: dict[int, tuple[int, int]] = {}  # row → span and token
        for position, token in enumerate(self.laid.token_ids):
            number = places.get(position)
            if number is None:
                whole.append(token)
                continue
            slots |= {len(whole) + index: (number, index) for index in range(len(candidate.ids[number]))}
            whole += candidate.ids[number]
        self.job_context.check_length(len(whole), "text")
        # Alone, a text's tokens are masked in turn; the spans of a text with blanks all at once.
        for asked in [[row] for row in slots] if self._in_turn else [list(slots)]:
            chosen = {*asked, *(behind for row in asked for behind in self._behind(row, whole))}
            rows = [(mask if row in chosen else token, row, 0) for row, token in enumerate(whole)]
            targets = [token if row in asked else -1 for row, token in enumerate(whole)]
            told = [slots[row] for row in asked]
            yield Run((), rows, targets, whole=True, candidate=candidate, order=order, slots=told)

    @property
    def _in_turn(self) -> bool:
        return self.score.spans is None and self.score.context is None

    def _behind(self, row: int, whole: list[int]) -> Iterator[int]:
        """The later rows of a row's word, if they are masked together with it."""
        if self.score.pll == "word_l2r":
            rows = range(row + 1, len(whole))
            goes_on = self.job_context.tokenizer.goes_on
            yield from itertools.takewhile(lambda n: goes_on(whole[n - 1], whole[n]), rows)

    def check_pll(self) -> None:
        if self.score.pll != "original" and not self._in_turn:
            raise RequestError(
                "pll applies to a whole text; the tokens of spans and targets are masked together", "pll", "unsupported"
            )


class NextSentenceJob:
    """A `Score` of two sentences: the log-probability that the second follows the first.

    Raises RequestError for a model without such a head, and for fields that need tokens.
    """

    num_top = 0

    def __init__(self, request_id: str, score: Score, job_context: JobContext) -> None:
        if not job_context.card.next_sentence:
            raise RequestError(
                "sentence_a and sentence_b need a model with a next-sentence head; this one has none",
                "sentence_a",
                "unsupported",
            )
        for field, default in (("pll", "original"), ("words", False)):
            if getattr(score, field) != default:
                raise RequestError(
                    "a pair of sentences is scored as a whole, without scores of tokens", field, "unsupported"
                )
        self.id = request_id
        self.job_context = job_context
        tokenizer = job_context.tokenizer
        first = [tokenizer.special["cls"], *tokenizer.encode(score.sentence_a or ""), tokenizer.special["sep"]]
        second = [*tokenizer.encode(score.sentence_b or ""), tokenizer.special["sep"]]
        self.rows = [(token, 0) for token in first] + [(token, 1) for token in second]
        job_context.check_length(len(self.rows), "sentence_b")
        self.counts = Counts(prompt_tokens=len(self.rows))

    def start(self, view: SchedulerView, rank: float) -> list[Sequence]:
        sequence = Sequence(view.context(()), "pair", rank, whole=True, prompt_tokens=len(self.rows))
        for position, (token, sentence) in enumerate(self.rows):
            sequence.push(token, position, sentence)
        return [sequence]

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result) -> Step:
        assert not isinstance(result, list)
        self.job_context.work.score_candidates += 1
        follows = float(result[0])
        perplexity = math.exp(min(-follows, 700.0))
        scored = ScoreResult(0, follows, follows, perplexity, len(self.rows), [], [])
        done = Done(self.id, self.counts.usage(), Ranking(0, [1.0]))
        return Step(finished=[sequence], events=[ResultDone(self.id, scored), done])

    def stop(self) -> None:
        """Does nothing: the one score is counted at once."""
