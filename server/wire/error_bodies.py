"""The shapes of errors: some protocols have their own shape on their paths."""

from collections.abc import Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from server.wire.errors import ErrorBody


class ErrorBodies:
    """Middleware that stores the shape of a path's errors in the scope. It is outside of all others, which may refuse.

    `shapes` are those of single paths, `below` those of all paths with a prefix. Requests for `pages` use no protocol.
    """

    def __init__(
        self,
        app: ASGIApp,
        shapes: Mapping[str, ErrorBody],
        below: Mapping[str, ErrorBody],
        pages: Collection[str],
    ) -> None:
        self.app = app
        self.shapes = shapes
        self.below = below
        self.pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shape = self._shape(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if shape is not None:
            scope["state"] = {**scope.get("state", {}), "error_body": shape}
        await self.app(scope, receive, send)

    def _shape(self, method: str, path: str) -> ErrorBody | None:
        if method in ("GET", "HEAD") and path in self.pages:
            return None
        # A path with a slash too many has no route, but its client is the same.
        shape = self.shapes.get(path) or self.shapes.get(path.rstrip("/"))
        return shape or next((shape for prefix, shape in self.below.items() if path.startswith(prefix)), None)
