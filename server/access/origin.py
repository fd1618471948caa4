"""The origin of a request: the host that it was sent to, and the page that sent it.

Without keys, this check alone protects a server that only its visitors' machines can reach from pages of other sites.
Such a page can point a name of its own to the server's address, but its requests then have that name as Host. It can
send requests to the server's own name, but these state the page's origin.
"""

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.wire.errors import ApiError

# No name server is asked for these.
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{0,5})?")
SAFE = {"GET", "HEAD", "OPTIONS"}


class Origin:
    """Middleware that refuses requests for a host that is not the server's, and work for pages of another origin.

    `checks_host` and `checks_page` switch the two checks. `hosts` are further names of the server, whose pages may send
    work.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], checks_host: bool, checks_page: bool) -> None:
        self.app = app
        self.hosts = hosts
        self.checks_host = checks_host
        self.checks_page = checks_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._complaint(scope) if scope["type"] == "http" else None
        if error is None:
            await self.app(scope, receive, send)
        else:
            await error.answer(scope)(scope, receive, send)

    def _complaint(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self.checks_host and not self._is_own(name_of(host), scope.get("server")):
            message = (
                "the Host must be localhost, 127.0.0.1, [::1], the server's address, or a name given by --allowed-host"
            )
            return ApiError(403, message, "host_not_allowed")
        if self.checks_page and scope["method"] not in SAFE and not self._is_own_page(headers, host):
            message = "a page of another origin sent this; --allowed-host NAME allows the pages of a host"
            return ApiError(403, message, "origin_not_allowed")
        return None

    def _is_own(self, name: str, server: tuple[str, int | None] | None) -> bool:
        if name in LOCAL or name in self.hosts:
            return True
        # The address that the request came to, as probes of a cluster say it. A page's name is never an address.
        return server is not None and name == server[0] and _is_address(name)

    def _is_own_page(self, headers: Headers, host: str) -> bool:
        """Whether the request comes from no page, or from a page of this server or of an allowed host.

        Browsers send Sec-Fetch-Site, which does not depend on a proxy's Host. Old browsers, and all browsers without
        TLS, send Origin only.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        where = None if origin is None else origin.partition("://")[2].lower()
        if where is not None and name_of(where) in self.hosts:
            return True
        if site in ("same-origin", "none"):
            return True
        return site != "cross-site" and (where == host if where is not None else site is None)


def name_of(host: str) -> str:
    """The name or address in a Host header, without port and brackets; "" if there is none."""
    match = HOST.fullmatch(host)
    return (match[1] or match[2]) if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
