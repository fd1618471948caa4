"""The body of a request: read within a limit, then parsed as strict JSON."""

import asyncio
import json
import re
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.wire.errors import ApiError

MAX_DEPTH = 32
MAX_INT_DIGITS = 19
FORM = "application/x-www-form-urlencoded"
# RFC 9110, 5.6.6.
PARAMETER = re.compile(r"""([\w!#$%&'*+.^`|~-]++)=([\w!#$%&'*+.^`|~-]++|"(?:[^"\\]|\\.)*+")""", re.ASCII)
PARAMETERS = re.compile(rf"(?:[ \t]*+;[ \t]*+(?:{PARAMETER.pattern})?)*+[ \t]*+", re.ASCII)
# A string matches even when it never ends: otherwise each quote of a hostile body would scan all the rest.
TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class BodyLimit:
    """Middleware that stops a body after a number of bytes, whatever its Content-Length."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.max_bytes:
            await self._error().answer(scope)(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise self._error()
            return message

        await self.app(scope, counted, send)

    def _error(self) -> ApiError:
        return ApiError(413, f"the body is over the limit of {self.max_bytes} bytes", "body_too_large")


async def read_object(request: Request, timeout_s: float, bare: bool = False) -> dict[str, Any]:
    """The JSON object in a request's body, read within `timeout_s` seconds.

    `bare`: the content type may be missing, or be the one that `curl -d` writes, if no page sent the request. Raises
    ApiError for a wrong content type, a slow or broken body, and as `parse_object` does.
    """
    _check_headers(request.headers, bare)
    try:
        async with asyncio.timeout(timeout_s):
            raw = await request.body()
    except TimeoutError:
        # Closing frees the connection of a client that sends one byte a minute.
        headers = {"connection": "close"}
        message = f"the body did not arrive within {timeout_s:g} s"
        raise ApiError(408, message, "body_timeout", headers=headers) from None
    except ClientDisconnect:
        raise ApiError(499, "the client left", "cancelled") from None
    return parse_object(raw)


def parse_object(raw: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, an object, finite 64-bit numbers, no duplicate key, no deep nesting. Raises ApiError for
    others."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"the body is not UTF-8 at byte {error.start}")
    _check_depth(text)
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        _refuse(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}")
    if not isinstance(value, dict):
        _refuse("the body must be a JSON object")
    return value


def _check_headers(headers: Headers, bare: bool) -> None:
    # Nothing is assumed where there is none: a page of any site may send such a body, and none that is called JSON.
    # A browser tells with each POST by a page where the page is from.
    content_type = headers.get("content-type", "")
    is_bare = bare and content_type in ("", FORM) and "origin" not in headers and "sec-fetch-site" not in headers
    if not is_bare and not _is_json(content_type):
        message = "the content type must be application/json in UTF-8; send the header Content-Type: application/json"
        raise ApiError(415, message, "unsupported_media_type")
    # A compressed body could unfold to any size: only plain ones are read.
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not accepted", "unsupported_media_type")


def _is_json(content_type: str) -> bool:
    """Whether a content type is JSON in UTF-8. Parameters besides the charset mean nothing, and are let pass."""
    media, semicolon, parameters = content_type.partition(";")
    if media.strip().lower() != "application/json" or not PARAMETERS.fullmatch(semicolon + parameters):
        return False
    charsets = [value for name, value in PARAMETER.findall(parameters) if name.lower() == "charset"]
    return len(charsets) < 2 and all(charset.strip('"').lower() in ("utf-8", "utf8") for charset in charsets)


def _check_depth(text: str) -> None:
    # Most bodies hold fewer brackets than the limit and need no scan.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in TOKENS.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(f"the body is nested deeper than {MAX_DEPTH}")
        elif token in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _refuse("the body has an object with the same key twice")
    for key in value:
        if not key.isascii() and any("\ud800" <= char <= "\udfff" for char in key):
            _refuse("the body has a key with half of a surrogate pair")
    return value


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_INT_DIGITS or not -(2**63) <= int(digits) < 2**63:
        _refuse("the body has an integer of more than 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        _refuse("the body has a number beyond the range of a double")
    return value


def _constant(name: str) -> NoReturn:
    _refuse(f"the body has {name}, which is not JSON")


def _refuse(message: str) -> NoReturn:
    raise ApiError(400, message, "invalid_json")
