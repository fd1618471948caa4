"""The head of a request: heads that no honest client sends are refused before anything acts on them."""

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from server.wire.errors import ApiError

MAX_BYTES = 32 * 1024
MAX_HEADERS = 100
# Whose value decides something; of two, a proxy could have seen the other one.
SINGLE = (b"content-type", b"authorization", b"x-api-key", b"origin", b"sec-fetch-site", b"x-request-timeout-s")
CLOSE = {"connection": "close"}


class Head:
    """Middleware that refuses floods of headers and ambiguous heads.

    Ambiguous is a head that two servers could read in two ways: the end of the body, and duplicate headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = _complaint(scope["headers"]) if scope["type"] == "http" else None
        if error is None:
            await self.app(scope, receive, send)
        else:
            await error.answer(scope)(scope, receive, send)


def _complaint(headers: list[tuple[bytes, bytes]]) -> ApiError | None:
    # The parser bounds a head that comes piece by piece; one that comes at once can be larger.
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_BYTES:
        message = f"the headers are over the limit of {MAX_HEADERS} or of {MAX_BYTES} bytes"
        return ApiError(431, message, "headers_too_large", headers=CLOSE)
    names = Counter(name for name, _ in headers)
    if b"content-length" in names and b"transfer-encoding" in names:
        message = "Content-Length and Transfer-Encoding exclude each other"
        return ApiError(400, message, "bad_http", headers=CLOSE)
    for name in SINGLE:
        if names[name] > 1:
            shown = name.decode().title()
            return ApiError(400, f"{shown} occurs {names[name]} times", "bad_http", headers=CLOSE)
    return None
