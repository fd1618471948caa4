"""The signpost: the answer to an unknown path or method, which names the nearest route."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server.wire.answer import Answer
from server.wire.errors import ApiError

NO_CHAT = (
    "this server fills blanks; there is no chat. A prompt with a suffix goes to /v1/completions, a text with blanks to "
    "/v1/infill; /docs describes all routes"
)
# Of a path no more is compared or told.
MAX_LEN = 80
# How alike a path is that was only mistyped.
ALIKE = 0.9
SLASHES = re.compile("/+")


@dataclass(frozen=True, slots=True)
class Signpost:
    """The routes by path, with their methods, and the paths of other servers' chats."""

    routes: Mapping[str, frozenset[str]]
    chats: frozenset[str]

    @classmethod
    def before(cls, routers: Iterable[APIRouter], chats: frozenset[str]) -> "Signpost":
        """The signpost of these routers. It never names paths without a description, such as pages."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        routes = [route for router in routers for route in router.routes]
        described = {getattr(route, "path", "") for route in routes if getattr(route, "include_in_schema", False)}
        for route in routes:
            if (path := getattr(route, "path", "")) in described:
                found[path] |= getattr(route, "methods", None) or set()
        return cls({path: frozenset(methods - {"HEAD"}) for path, methods in found.items()}, chats)

    async def answer(self, request: Request, error: HTTPException) -> Answer:
        """The application's handler of the router's 404 and 405."""
        return self.refusal(request.method, request.scope["path"], error).answer(request.scope)

    def refusal(self, method: str, path: str, error: HTTPException) -> ApiError:
        """The error for a request that the router has refused."""
        if (path.rstrip("/") or "/") in self.chats:
            return ApiError(404, NO_CHAT, "no_chat")
        asked = f"{method[:16]} {_shown(path)}"
        if error.status_code == 405:
            # Of several routes with one path the router tells the methods of the first.
            own = ", ".join(sorted(self.routes.get(path, ()))) or (error.headers or {}).get("Allow", "")
            message = f"{asked}: this route takes {own}; /docs describes it"
            return ApiError(405, message, "method_not_allowed", headers={"allow": own})
        closest = self.closest(path)
        hint = "" if closest is None else f"; the closest one is {'/'.join(sorted(self.routes[closest]))} {closest}"
        return ApiError(404, f"there is no route {asked}{hint}; /docs describes all routes", "not_found")

    def closest(self, path: str) -> str | None:
        """The route with the most similar path; None if none is similar.

        A route that ends with the path comes first, then one of several parts at the path's end, then one that has the
        path's ends, then a similar one, then a route at the path's end.
        """
        path = SLASHES.sub("/", path[:MAX_LEN]).rstrip("/") or "/"
        longer = [route for route in self.routes if path != "/" and route.endswith(path)]
        if longer:
            return min(longer, key=len)
        shorter = [route for route in self.routes if path.endswith(route)]
        if exact := [route for route in shorter if route.count("/") > 1]:
            return max(exact, key=len)
        first, last = path.split("/")[1], path.rpartition("/")[2]
        for route in (f"/{first}/{last}", f"/v1/{last}"):  # a path with more in its middle, such as a model's name
            if route in self.routes and path.count("/") > 2:
                return route
        alike = difflib.get_close_matches(path, self.routes, n=1, cutoff=ALIKE if shorter else 0.6)
        return next(iter(alike), max(shorter, key=len, default=None))


def _shown(path: str) -> str:
    """A path in a message: the client's, so any character may be in it."""
    short = path if len(path) <= MAX_LEN else path[:MAX_LEN] + "…"
    return short if short.isprintable() else ascii(short)
