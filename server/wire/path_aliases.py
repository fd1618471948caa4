"""Path aliases: additional paths of routes, for clients with fixed paths."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class PathAliases:
    """Middleware that replaces an alias by its route's path. It is the outermost, so that all others see the route's
    path."""

    def __init__(self, app: ASGIApp, routes: Mapping[str, str]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is not None:
            scope = {**scope, "path": route, "raw_path": route.encode()}
        await self.app(scope, receive, send)
