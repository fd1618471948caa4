"""HEAD requests: every GET route answers them like GET, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadersOnly:
    """Middleware that turns a HEAD request into GET for the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, bodiless)
