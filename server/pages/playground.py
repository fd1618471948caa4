"""The playground: a page of static files at `/`, held in memory, which talks to this server only."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
FOLDER = files("server").joinpath("static/playground")
NAMES = sorted(item.name for item in FOLDER.iterdir() if item.name.rpartition(".")[2] in KINDS)
# Where each file is served; the page itself at the root.
PATHS = {("/" if name == "index.html" else f"/playground/{name}"): name for name in NAMES}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for anew each time, and answered by 304 until the server is another
}

router = APIRouter(include_in_schema=False)


def _serving(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = FOLDER.joinpath(name).read_bytes()
    kind = f"{KINDS[name.rpartition('.')[2]]}; charset=utf-8"
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers={**headers, "content-type": kind})

    return serve


for path, file in PATHS.items():
    router.add_api_route(path, _serving(file), name=file)
