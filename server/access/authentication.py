"""Authentication: only known clients get in. Every path that is not open by name is closed, future routes included."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.keyring import Keyring
from server.wire.errors import ApiError

READING = {"GET", "HEAD"}
# Routes, with all below them, that change the server.
ADMIN = ("/v1/adapters",)


class Authentication:
    """Middleware that identifies the client or refuses the request. `open_paths` need no key."""

    def __init__(self, app: ASGIApp, keyring: Keyring, open_paths: frozenset[str]) -> None:
        self.app = app
        self.keyring = keyring
        self.open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error.answer(scope)(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            raise RuntimeError(f"no {scope['type']} here")
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        # The path that the router will go by, never a URL put together from the client's Host header.
        path: str = scope["path"]
        if path in self.open and scope["method"] in READING:
            return
        client = scope["state"]["client"] = self.keyring.client(Headers(scope=scope))
        if not client.is_admin and any(path == route or path.startswith(f"{route}/") for route in ADMIN):
            hint = "; only a server with --api-keys has admins" if self.keyring.is_open else ""
            raise ApiError(403, f"this needs an admin's key{hint}", "admin_only")
