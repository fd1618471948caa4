"""A rank at work: it loads its part of the model, then leads or follows.

It writes frames to its link, and rank 0 reads frames from it. On rank 0 one thread reads and lays out requests, and the
main thread runs iterations. The other ranks run the batches of rank 0.
"""

import gc
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Failed
from engine.loading import is_cuda, load_runner, prepare
from engine.processes.ending import is_foreseen, leave, reason_of
from engine.processes.link import Line, Link, NoLink
from engine.processes.messages import (
    HEADER,
    TO_RANK,
    AdaptersChanged,
    Cancel,
    Detokenize,
    Happened,
    LoadAdapter,
    NotReady,
    Raised,
    Read,
    Ready,
    Refused,
    Reply,
    Spell,
    Stepped,
    Submit,
    TextQuestion,
    Tokenize,
    UnloadAdapter,
    Value,
)  # fmt: skip
from engine.rank_info import RankInfo
from engine.ranks import Channel, follow, join
from engine.requests import Fill, Request, RequestError, num_chars, regex_param
from model.parallel import ALONE

# Regular expressions being compiled at a time, each in a process of its own, and requests that may wait for one.
COMPILERS = 2
MAX_COMPILING = 16
# Longer texts are tokenized in a thread: megabytes take a second, and other requests must not wait.
LONG = 1 << 15


class Worker:
    """Rank 0: an engine behind a link."""

    def __init__(self, link: Link, engine: Engine, channel: Channel | None) -> None:
        self.link = link
        self.engine = engine
        self.channel = channel
        self.inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._compilers = ThreadPoolExecutor(COMPILERS)
        self._tokenizers = ThreadPoolExecutor(1)
        self._aside: dict[str, bool] = {}  # requests prepared in other threads → whether a pattern is compiled
        self._lock = threading.Lock()  # guards _aside, and what its threads put into the inbox

    def run(self) -> None:
        """Serves until the supervisor is gone."""
        threading.Thread(target=self._read, daemon=True).start()
        while self._take_messages():
            if self.engine.idle:
                continue
            self.link.step(True)
            events = self.engine.step()
            self.link.step(False)
            if events:
                self.link.send(Happened(events))
            if self.engine.clock.last_stats is not None:
                self.link.send(Stepped(self.engine.clock.last_stats))
                if self.engine.idle:
                    self._send_idle()
        if self.channel is not None:
            self.channel.stop()

    def _send_idle(self) -> None:
        """No further step will say so."""
        self.link.send(Stepped(self.engine.clock.idle_stats()))

    def _take_messages(self) -> bool:
        """Handles the messages that have come; waits for one while there is no work."""
        while True:
            try:
                kind, value = self.inbox.get(block=self.engine.idle)
            except queue.Empty:
                return True
            match kind:
                case "stop":
                    return False
                case "job":
                    job, request = value
                    self.engine.add(job, request)
                case "change":
                    self._change_adapters(*value)
                case "cancel" if self.engine.cancel(value) and self.engine.idle:
                    self._send_idle()

    def _change_adapters(self, change: LoadAdapter | UnloadAdapter, number: int | None) -> None:
        """Loads or unloads an adapter between two steps; its files are read meanwhile, beside them, and it comes here
        again with its number when they are."""
        card = None
        try:
            if isinstance(change, UnloadAdapter):
                self.engine.adapters.unload(change.name)
            elif number is not None:
                card = self.engine.adapters.finish_loading(number, change.name)
            else:
                done = partial(self._has_read, change)
                self.engine.adapters.begin_loading(change.name, change.path, done)
                return
        except RequestError as error:
            self._refuse(change.id, error)
            return
        self.link.send(AdaptersChanged(self.engine.adapters.cards))
        self.link.send(Reply(change.id, card))

    def _has_read(self, change: LoadAdapter, number: int) -> None:
        self.inbox.put(("change", (change, number)))

    def _refuse(self, message_id: str, error: RequestError) -> None:
        self.link.send(Refused(message_id, error.message, error.param, error.code))

    def _read(self) -> None:
        """Reads frames until the supervisor is gone. Tokenizing here leaves the iterations undisturbed."""
        stream = self.link.connection.makefile("rb")
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            message = TO_RANK.decode(stream.read(HEADER.unpack(header)[0]))
            match message:
                case Submit():
                    self._submit(message.id, message.request)
                case Cancel():
                    with self._lock:
                        self._aside.pop(message.id, None)
                        self.inbox.put(("cancel", message.id))
                case LoadAdapter() | UnloadAdapter():
                    self.inbox.put(("change", (message, None)))
                case Tokenize() | Detokenize() | Read() | Spell():
                    if _num_chars(message) >= LONG:
                        self._tokenizers.submit(self._answer, message)
                    else:
                        self._answer(message)
        self.inbox.put(("stop", None))

    def _answer(self, question: TextQuestion) -> None:
        try:
            self.link.send(Reply(question.id, self._text_answer(question)))
        except RequestError as error:
            self._refuse(question.id, error)

    def _text_answer(self, question: TextQuestion) -> Value:
        match question:
            case Tokenize():
                return self._tokenized(question)
            case Detokenize():
                return self._detokenized(question)
            case Read():
                return self.engine.read(question.fill, question.scored)
            case Spell():
                return self.engine.pieces(question.token_ids)

    def _tokenized(self, question: Tokenize) -> list[int]:
        job_context = self.engine.job_context
        if question.special:
            return job_context.spelling.tokenize(question.text)
        if question.masks:
            return job_context.spelling.tokenize_masks(question.text)
        return job_context.tokenizer.encode(question.text)

    def _detokenized(self, question: Detokenize) -> str:
        job_context, ids = self.engine.job_context, question.token_ids
        job_context.check_ids(ids, "tokens")
        if question.sentence:
            return job_context.tokenizer.sentence(ids)
        if question.special:
            return job_context.spelling.detokenize(ids, question.finished)
        return job_context.spelling.detokenize_masks(ids)

    def _submit(self, request_id: str, request: Request) -> None:
        """Prepares a request, elsewhere if that takes long."""
        compiles = self.engine.compiles(request)
        if not compiles and num_chars(request) < LONG:
            self._prepare(request_id, request)
        elif compiles and sum(self._aside.values()) >= MAX_COMPILING:
            message = f"{MAX_COMPILING} requests wait for new regular expressions already"
            param = regex_param(request.regex if isinstance(request, Fill) else ())
            self._fail(Failed(request_id, "overloaded", message, param, "regex_queue_full"))
        else:
            with self._lock:
                self._aside[request_id] = compiles
            (self._compilers if compiles else self._tokenizers).submit(self._prepare_aside, request_id, request)

    def _prepare_aside(self, request_id: str, request: Request) -> None:
        if request_id in self._aside:
            self._prepare(request_id, request, aside=True)

    def _fail(self, failed: Failed) -> None:
        self.link.send(Happened([failed]))

    def _prepare(self, request_id: str, request: Request, aside: bool = False) -> None:
        try:
            job = self.engine.prepare(request, request_id)
            with self._lock:
                # A request that was cancelled meanwhile must not begin.
                if not aside or request_id in self._aside:
                    self.inbox.put(("job", (job, request)))
                else:
                    self.engine.discard(request_id)
        except RequestError as error:
            self._fail(Failed(request_id, error.outcome, error.message, error.param, error.code))
        except Exception as error:
            self._fail(Failed(request_id, "error", type(error).__name__))
            raise
        finally:
            with self._lock:
                self._aside.pop(request_id, None)


def _num_chars(question: TextQuestion) -> int:
    """The length of the text that a question makes tokens of."""
    if isinstance(question, Read):
        return num_chars(question.fill)
    return len(question.text) if isinstance(question, Tokenize) else 0


class Rank:
    """One of the processes that serve a model. It loads its part, then leads or follows."""

    def __init__(self, link: Line, config: EngineConfig, rank_info: RankInfo) -> None:
        self.link = link
        self.config = config
        self.rank_info = rank_info

    def run(self) -> int:
        """Runs the rank. Returns the exit code: 0, or 1 after a failure, which it reports to the supervisor."""
        try:
            serve = self._prepare()
        except Exception as error:
            if not is_foreseen(error):
                traceback.print_exc()
            self.link.send(NotReady(reason_of(error)))
            return 1
        try:
            serve()
        except Exception as error:
            traceback.print_exc()
            # Its text may contain addresses and paths, which clients must not see.
            self.link.send(Raised(type(error).__name__))
            return 1
        return 0

    def _prepare(self) -> Callable[[], None]:
        """Loads, and reports that the rank is ready. Returns the function that serves until the supervisor is gone."""
        prepare(self.config, self.rank_info.local_size)
        channel = join(self.rank_info, is_cuda(self.config)) if self.rank_info.size > 1 else None
        self.link.loading(0.0)
        ranks = ALONE if channel is None else channel.ranks
        loaded = load_runner(self.config, None, ranks, self.rank_info.local_rank, self.link.loading)
        if self.rank_info.rank > 0 and channel is not None:
            self._settle()
            self.link.send(Ready())
            threading.Thread(target=self.link.wait_for_end, daemon=True).start()
            return partial(follow, loaded.runner, channel, self.link.step)
        assert isinstance(self.link, Link), "rank 0 has a supervisor"
        engine = Engine(self.config, loaded=loaded, channel=channel)
        self._settle()
        self.link.send(Ready(engine.card, engine.adapters.cards))
        return Worker(self.link, engine, channel).run

    def _settle(self) -> None:
        # The loaded objects stay. A garbage collection over all of them would delay a step by 0.1 s or more.
        gc.collect()
        gc.freeze()


def follow_launched(config: EngineConfig, rank_info: RankInfo) -> NoReturn:
    """Runs a rank other than the first, started by a launcher such as torchrun."""
    leave(Rank(NoLink(), config, rank_info).run())
