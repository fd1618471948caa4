"""`glm-infill batch`: answers a file of fills and scores into another file. It can resume after a kill.

A line is a body of `/v1/infill` or `/v1/score`, with an optional `custom_id`, or has the fields of OpenAI's batches:
`custom_id`, `url` and `body`. Answers have the form of OpenAI's batches, in the order in which they are ready.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import httpx
import typer

from engine.config import EngineConfig
from engine.processes.process import EngineProcess
from quant.usage import UsageError
from server.app import create_app
from server.commands.flags import Given, takes_flags
from server.commands.options import ENGINE, AsJson, Url, engine_options, located
from server.console import errors, fail, named, output, progress_bar
from server.protocols import protocols
from server.settings import Settings

BODIES = {path: body for protocol in protocols() for path, body in protocol.batch.items()}
SCORED = {"spans", "target", "targets", "context", "sentence_a", "sentence_b"}  # fields that only scores have
TRIES = 6
UNBOUND = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # the window bounds them
Write = Callable[[dict[str, Any]], object]
PATIENCE_S = 60.0  # the longest that a server which is full is waited for between two tries


@takes_flags(*ENGINE)
def batch(
    source: Annotated[Path, typer.Argument(help="The file of requests, one JSON object per line.")],
    target: Annotated[
        Path, typer.Argument(help="The file of answers. A request with an answer in it is not sent again.")
    ],
    window: Annotated[int, typer.Option(min=1, max=1024, help="The maximum number of requests in flight.")] = 64,
    *,
    given: Given,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Fills and scores many texts, with a model loaded here or on a server. The same command resumes after a kill.

    The exit code is 1 if any line failed; such lines have an error in the answers.
    """
    try:
        with named(source):
            lines = list(read(source.read_text("utf-8")))
        with named(target):
            done = resume(target)
    except UnicodeDecodeError as error:
        fail(f"{source}: not UTF-8 at byte {error.start}", code=2)
    except UsageError as error:
        fail(f"{source}: {error}", code=2)
    left = [line for line in lines if line.custom_id not in done]
    options = engine_options(given)
    config = EngineConfig.of(located(options) if url is None else options)
    failed = sum(not ok for ok in done.values())
    with target.open("ab", buffering=0) as out, progress_bar() as progress:
        bar = progress.add_task("answering", total=len(lines), completed=len(lines) - len(left))
        try:
            failed += asyncio.run(
                _answer_all(left, partial(_write, out), window, url, config, lambda: progress.advance(bar))
            )
        except NoAnswer as error:
            fail(f"{url}: {error}; the same command resumes from here")
    counts = {"lines": len(lines), "answered_before": len(lines) - len(left), "answered": len(left), "failed": failed}
    if as_json:
        print(json.dumps(counts))
    else:
        output.print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()))
    if failed:
        raise typer.Exit(1)


class NoAnswer(Exception):
    """There is no server, or it is not ours. Unanswered requests wait for the next run."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the file, or the reason why it is none."""

    custom_id: str
    url: str = ""
    body: dict[str, Any] | None = None
    error: str | None = None


def read(text: str) -> Iterator[Line]:
    """The lines of a file. A line that is no request has an error.

    Raises UsageError for an id that occurs twice, since its answers could not be told apart.
    """
    seen: dict[str, int] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        line = _line(raw, f"line-{number}")
        if line.error is not None:
            line = replace(line, error=f"line {number}: {line.error}")
        first = seen.setdefault(line.custom_id, number)
        if first != number:
            raise UsageError(f"line {number}: custom_id {line.custom_id!r} is the same as in line {first}")
        yield line


def _line(raw: str, name: str) -> Line:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return Line(name, error="the line is not JSON")
    if not isinstance(value, dict):
        return Line(name, error="the line is not an object")
    name = value.pop("custom_id", name)
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        return Line(f"{name!r:.64}", error="custom_id is not a string of 1 to 512 characters")
    url, body = (value.get("url"), value.get("body")) if "body" in value or "url" in value else (None, value)
    if not isinstance(body, dict):
        return Line(name, error="body is not an object")
    url = url or ("/v1/score" if SCORED & body.keys() else "/v1/infill")
    if url not in BODIES:
        return Line(name, error=f"url is none of {', '.join(BODIES)}")
    if body.get("stream"):
        return Line(name, error="stream is not for batches")
    if "priority" in BODIES[url].model_fields:
        body.setdefault("priority", "batch")
    return Line(name, url, body)


def resume(target: Path) -> dict[str, bool]:
    """The ids with complete answers in a file, and whether these are good. It removes a torn last line.

    A target that is not a regular file, such as a pipe, has none. Raises UsageError for a file with other content.
    """
    if not target.is_file():
        return {}
    raw = target.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(target, len(whole))
    done: dict[str, bool] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            value = json.loads(line)
            done[value["custom_id"]] = value["error"] is None and value["response"]["status_code"] == 200
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"line {number} of {target} is no answer of a batch") from None
    return done


async def _answer_all(
    lines: list[Line], write: Write, window: int, url: str | None, config: EngineConfig, advance: Callable[[], object]
) -> int:
    """Answers all lines, so many at a time; returns the number of failed ones. An exception of one ends all."""
    if not lines:
        return 0
    failed = 0
    left = iter(lines)

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal failed
        for line in left:
            answer = await _answered(client, line)
            failed += answer["error"] is not None or answer["response"]["status_code"] != 200
            write(answer)
            advance()

    async with _client(url, config) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(window, len(lines))):
                    group.create_task(one(client))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
    return failed


def _write(out: FileIO, answer: dict[str, Any]) -> None:
    """A line, or where there is no room for it as much as there is, which the next run cuts off."""
    line = memoryview(json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    with named(Path(out.name)):
        while line:
            line = line[out.write(line) :]


async def _answered(client: httpx.AsyncClient, line: Line) -> dict[str, Any]:
    """The answer's line for a request. Raises NoAnswer if nobody answers, after all retries."""
    answer: dict[str, Any] = {"id": f"batch_req_{uuid4().hex}", "custom_id": line.custom_id, "response": None}
    if line.body is None:
        return answer | {"error": {"code": "invalid_line", "message": line.error}}
    try:
        request = client.build_request("POST", line.url, json=line.body)
    except ValueError as error:  # what JSON cannot have
        return answer | {"error": {"code": "invalid_line", "message": str(error)}}
    wait = 0.5
    for attempt in range(TRIES):
        after = wait
        try:
            response = await client.send(request)
            if response.status_code not in (429, 503) or attempt == TRIES - 1:
                shown = {"status_code": response.status_code, "request_id": response.headers.get("x-request-id")}
                return answer | {"response": shown | {"body": response.json()}, "error": None}
            after = _seconds(response.headers.get("retry-after", "")) or wait
        except httpx.HTTPError as error:
            failure = str(error) or type(error).__name__
        except (ValueError, RecursionError):
            failure = f"status {response.status_code} and no JSON"
            if response.status_code < 500:  # no server of ours, nor one that is being started
                break
        if attempt < TRIES - 1:
            await asyncio.sleep(min(max(after, wait), PATIENCE_S))
            wait *= 2
    raise NoAnswer(f"no answer: {failure}")


def _seconds(header: str) -> float | None:
    """Those of a header that has them; it may have a date."""
    return float(header) if header.isdecimal() else None


@asynccontextmanager
async def _client(url: str | None, config: EngineConfig) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server, or of an application in this process with an engine of its own."""
    if url is not None:
        key = os.environ.get("GLM_INFILL_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            client = httpx.AsyncClient(base_url=url, headers=headers, timeout=900.0, limits=UNBOUND)
        except (httpx.InvalidURL, ValueError) as error:
            fail(f"{url}: {error}", code=2)
        async with client:
            yield client
        return
    engine = EngineProcess(config)
    app = create_app(Settings.model_validate({"api_keys": None, "log_level": "error"}), engine)
    async with app.router.lifespan_context(app):
        with errors.status("loading the model"):
            while engine.state()[0] != "ready":
                if engine.state()[0] == "failed":
                    fail(engine.state()[1])
                await asyncio.sleep(0.02)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client:
            yield client
