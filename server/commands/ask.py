"""One answer for a command, from a server or from a model loaded here."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from engine.answers import FillResult, ScoreResult
from engine.config import EngineConfig
from engine.events import Done, Failed, ResultDone
from engine.processes.process import EngineProcess
from engine.requests import Request, RequestError
from server.commands.options import located
from server.console import errors, fail
from server.wire.answer import encode, plain
from server.wire.complaint import Complaint


def with_adapter(
    body: dict[str, Any], config: EngineConfig, adapter: str | None, url: str | None
) -> tuple[dict[str, Any], EngineConfig]:
    """A request that names an adapter: one of a server by its name, or the one in a folder."""
    if adapter is None:
        return body, config
    name = adapter if url is not None else "adapter"
    return {**body, "adapter": name}, config.model_copy(update={"adapters": {name: Path(adapter)}})


def ask(
    route: str,
    body: dict[str, Any],
    build: Callable[[dict[str, Any]], Request],
    url: str | None,
    config: EngineConfig,
) -> dict[str, Any]:
    """The answer of `/v1/{route}`, from a server or from a model loaded here."""
    if url is not None:
        return _post(f"{url.rstrip('/')}/v1/{route}", body)
    try:
        request = build(body)
    except ValidationError as error:
        fail(Complaint.first(error).message, code=2)
    except RequestError as error:
        fail(error.message, code=2)
    config = located(config)
    with errors.status("loading the model"):
        return asyncio.run(_answer(config, request))


async def _answer(config: EngineConfig, request: Request) -> dict[str, Any]:
    engine = EngineProcess(config)
    await engine.start()
    try:
        while engine.state()[0] != "ready":
            if engine.state()[0] == "failed":
                fail(engine.state()[1])
            await asyncio.sleep(0.02)
        results: list[FillResult | ScoreResult] = []
        async with aclosing(engine.submit(request, "local")) as events:
            async for event in events:
                if isinstance(event, ResultDone):
                    results.append(event.result)
                elif isinstance(event, Failed):
                    fail(event.message)
                elif isinstance(event, Done):
                    results.sort(key=lambda result: result.index)
                    ranking = {} if event.ranking is None else plain(event.ranking)
                    answer = {"model": engine.card.name, "results": results, **ranking, "usage": event.usage}
                    return dict(json.loads(encode(answer)))
        raise RuntimeError("the engine's events ended without a terminal one")
    finally:
        await engine.stop()


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    # In the environment, where no list of processes shows it.
    key = os.environ.get("GLM_INFILL_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=600) as client:
        try:
            request = client.build_request("POST", url, json=body, headers=headers)
        except (httpx.InvalidURL, ValueError) as error:  # a URL, a key or a number that no request can have
            fail(f"{url}: {error}")
        try:
            response = client.send(request)
            answer = response.json()
        except (httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            fail(f"{url}: {error or type(error).__name__}")
    match answer:
        case {"results": [*_], "usage": {}} if response.status_code == 200:
            return dict(answer)
        case {"error": {"message": str(message)}}:
            fail(message)
    fail(f"{url} answered {response.status_code}, so it is not a glm-infill server")
