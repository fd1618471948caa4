"""The shapes of errors: some protocols have their own, on their routes."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from server.wire.errors import ErrorBody


class ErrorBodies:
    """Middleware that leaves in the scope how errors of a path look. It is the outermost: any layer may refuse."""

    def __init__(self, app: ASGIApp, shapes: Mapping[str, ErrorBody]) -> None:
        self.app = app
        self.shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shape = self.shapes.get(scope["path"]) if scope["type"] == "http" else None
        if shape is not None:
            scope["state"] = {**scope.get("state", {}), "error_body": shape}
        await self.app(scope, receive, send)
