"""Path aliases: further paths of routes, for clients whose path is not theirs to choose."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class PathAliases:
    """Middleware that reads a path as that of a route. It is the outermost: whoever decides by the path sees the
    route's."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, str]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is not None:
            scope = {**scope, "path": route, "raw_path": route.encode()}
        await self.app(scope, receive, send)
