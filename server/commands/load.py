"""A load on a server: the requests, their times and their outcomes, over HTTP, for `bench serve` and soaks.

In a closed loop each client sends its next request after an answer. In an open loop requests arrive at random
(Poisson), whatever the answers; latency counts from the scheduled arrival, which avoids coordinated omission.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from quant.usage import UsageError

# Common words that a tokenizer of any of the languages' models has; texts are drawn, not written.
_COMMON = (
    "the of and to in he that was it his with as for had but not at on by which all be from they this were we her or "
    "said one so there is him when who will no them my me would man out up into then time if what more other some day "
    "house great little river night king water hand old way sea light people name heart city land word door tree"
)
WORDS = tuple(_COMMON.split())
REPEATED = 8  # contexts that repeated requests are drawn from


@dataclass(frozen=True, slots=True)
class Workload:
    """The mix of requests.

    It has the shares of the kinds, the mean words per text (drawn from half to twice this), the tokens per blank, the
    candidates per score, and the share of requests that repeat a text.
    """

    mix: dict[str, float] = field(default_factory=lambda: {"fill": 1.0})
    words: int = 40
    tokens: int = 16
    candidates: int = 4
    repeated: float = 0.0

    def bodies(self, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """An endless sequence of kinds and bodies, the same for the same seed."""
        draw = random.Random(seed)
        known = [self._text(random.Random(number)) for number in range(REPEATED)]
        kinds, weights = list(self.mix), list(self.mix.values())
        while True:
            (kind,) = draw.choices(kinds, weights)
            text = draw.choice(known) if draw.random() < self.repeated else self._text(draw)
            if kind == "fill":
                yield kind, {"text": text, "max_tokens": self.tokens, "min_tokens": self.tokens, "stream": True}
            else:
                spans = [[" ".join(draw.choices(WORDS, k=2))] for _ in range(self.candidates)]
                yield kind, {"text": text, "spans": spans, "priority": "interactive"}

    def _text(self, draw: random.Random) -> str:
        words = draw.choices(WORDS, k=draw.randint(max(self.words // 2, 2), self.words * 2))
        words.insert(draw.randint(1, len(words) - 1), "[MASK]")
        return " ".join(words)


@dataclass(slots=True)
class Outcome:
    """One request: its scheduled, first-token and end times (seconds of one clock), and its result."""

    kind: str
    due: float
    first: float | None = None
    done: float = 0.0
    tokens: int = 0
    status: int = 0  # 0: no answer
    error: str | None = None
    retry_s: float = 0.0  # how long a refusal says to wait

    @property
    def latency(self) -> float:
        """Seconds from the scheduled time to the end."""
        return self.done - self.due

    @property
    def ok(self) -> bool:
        """Whether the request was answered."""
        return self.status == 200 and self.error is None

    @property
    def refused(self) -> bool:
        """Whether the server refused it as overloaded."""
        return self.status in (429, 503)

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first; None without such tokens."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.done - self.first) / (self.tokens - 1)


ROUTES = {"fill": "v1/infill", "score": "v1/score"}


async def ask(client: ClientSession, kind: str, body: dict[str, Any], due: float | None = None) -> Outcome:
    """Sends one request and waits for its end."""
    outcome = Outcome(kind, time.perf_counter() if due is None else due)
    try:
        async with client.post(ROUTES[kind], json=body) as answer:
            outcome.status = answer.status
            outcome.retry_s = float(answer.headers.get("retry-after-ms", 0)) / 1000
            if answer.status == 200 and body.get("stream"):
                await _read_events(answer, outcome)
            elif answer.status == 200:
                outcome.tokens = (await answer.json())["usage"]["completion_tokens"]
            else:
                await answer.read()
    except (
        ClientError,
        TimeoutError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:  # no answer, or one of another kind
        outcome.error = type(error).__name__
    outcome.done = time.perf_counter()
    if outcome.first is None:
        outcome.first = outcome.done
    return outcome


async def _read_events(answer: ClientResponse, outcome: Outcome) -> None:
    event = b""
    async for line in answer.content:
        if line.startswith(b"event: "):
            event = line[7:].rstrip()
        elif not line.startswith(b"data: "):
            continue
        elif event == b"blank.delta":
            if outcome.first is None:
                outcome.first = time.perf_counter()
        elif event == b"done":
            outcome.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
        elif event == b"error":
            outcome.error = json.loads(line[6:])["error"]["code"] or "error"


def client_of(url: str, api_key: str | None, timeout_s: float = 120.0) -> ClientSession:
    """An HTTP client with so many connections; paths are relative to `url`. Raises UsageError for a bad URL.

    It is aiohttp's, since that takes a third of the processor time of httpx, whose pool also searches all its
    connections for each request.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return ClientSession(
            url.rstrip("/") + "/",
            headers=headers,
            timeout=ClientTimeout(total=timeout_s),
            connector=TCPConnector(limit=0),
            read_bufsize=2**20,  # the longest line of an event is half of it
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


async def closed_loop(
    client: ClientSession, workload: Workload, clients: int, seconds: float, seed: int
) -> list[Outcome]:
    """So many clients send requests for `duration` seconds. Requests in flight at the end count, and are waited for.

    A refused client waits as long as the server asks.
    """
    bodies = workload.bodies(seed)
    ends = time.perf_counter() + seconds
    outcomes: list[Outcome] = []

    async def one() -> None:
        while time.perf_counter() < ends:
            outcome = await ask(client, *next(bodies))
            outcomes.append(outcome)
            if not outcome.ok:
                await asyncio.sleep(max(outcome.retry_s, 0.05))

    await asyncio.gather(*(one() for _ in range(clients)))
    return outcomes


async def open_loop(client: ClientSession, workload: Workload, rate: float, seconds: float, seed: int) -> list[Outcome]:
    """Sends `rate` requests per second on average, and waits for all of them."""
    bodies = workload.bodies(seed)
    tasks = []
    async for due in arrivals(rate, seconds, random.Random(seed)):
        tasks.append(asyncio.create_task(ask(client, *next(bodies), due)))
    return list(await asyncio.gather(*tasks))


async def arrivals(
    rate: float, seconds: float, draw: random.Random, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[float]:
    """Yields each scheduled time (seconds of `perf_counter`), then or as soon as possible after it."""
    began = time.perf_counter()
    due = began
    while (due := due + draw.expovariate(rate)) < began + seconds:
        await sleep(max(due - time.perf_counter(), 0))
        yield due


@dataclass(frozen=True, slots=True)
class Goal:
    """The latencies of a good answer, in seconds: first token, each token, whole answer."""

    first: float | None = None
    per_token: float | None = None
    latency: float | None = None

    def met(self, outcome: Outcome) -> bool:
        """Whether the request was answered within the goal."""
        if not outcome.ok or outcome.first is None:
            return False
        values = (outcome.first - outcome.due, outcome.per_token, outcome.latency)
        limits = (self.first, self.per_token, self.latency)
        return all(
            limit is None or value is None or value <= limit for value, limit in zip(values, limits, strict=True)
        )


def summary(outcomes: list[Outcome], goal: Goal, duration: float) -> dict[str, Any]:
    """Counts, rates per second, and percentiles in milliseconds, of a load of `duration` seconds or until its last
    answer."""
    seconds = max(max(o.done for o in outcomes) - min(o.due for o in outcomes), duration) if outcomes else duration
    good = [o for o in outcomes if o.ok]
    fills = [o for o in good if o.kind == "fill"]

    def rate(count: float) -> float:
        return round(count / seconds, 2)

    return {
        "requests": len(outcomes),
        "ok": len(good),
        "refused": sum(o.refused for o in outcomes),
        "failed": sum(not o.ok and not o.refused for o in outcomes),
        "seconds": round(seconds, 2),
        "requests_per_s": rate(len(good)),
        "generated_tokens_per_s": rate(sum(o.tokens for o in fills)),
        "scored_tokens_per_s": rate(sum(o.tokens for o in good if o.kind == "score")),
        "goodput_per_s": rate(sum(goal.met(o) for o in outcomes)),
        "first_token_ms": percentiles([o.first - o.due for o in fills if o.first is not None]),
        "token_ms": percentiles([o.per_token for o in fills if o.per_token is not None]),
        "latency_ms": percentiles([o.latency for o in good]),
        "refusal_ms": percentiles([o.latency for o in outcomes if o.refused]),
    }


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """p50, p90 and p99 in milliseconds (nearest rank); None without values."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return {f"p{p}": round(ordered[-(-len(ordered) * p // 100) - 1] * 1000, 2) for p in (50, 90, 99)}
