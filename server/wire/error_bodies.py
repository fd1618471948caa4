"""The shapes of errors: some protocols have their own, on their paths."""

from collections.abc import Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from server.wire.errors import ErrorBody


class ErrorBodies:
    """Middleware that leaves in the scope how errors of a path look. It is the outermost: any layer may refuse.
    `shapes` are those of single paths, `below` those of all that begin with a prefix. Who reads one of the `pages` asks
    no protocol."""

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
        if path in self.shapes:
            return self.shapes[path]
        return next((shape for prefix, shape in self.below.items() if path.startswith(prefix)), None)
