"""A protocol: the server's interface for one kind of client. `server.protocols` has one folder or file for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import APIRouter
from pydantic import BaseModel

from server.wire.errors import ErrorBody


@dataclass(frozen=True, slots=True)
class Protocol:
    """The routes of a protocol, and the facts about them that the rest of the server needs.

    `bodies` are the models of the routes' bodies, for `/openapi.json`. `work` are the paths whose POST is work: it goes
    through the queue and counts for the client's rates (below `/v1/` every POST is work). `batch` maps the paths that a
    line of `glm-infill batch` may ask for to their bodies. `chats` are the paths of the clients' chats; they have no
    route, and their 404 says so. `error_body` makes the JSON of every error on all these paths and on those `below` a
    prefix such as `/api/`; None is `ApiError.body`.
    """

    name: str
    router: APIRouter
    bodies: tuple[type[BaseModel], ...]
    work: frozenset[str]
    batch: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    error_body: ErrorBody | None = None
    chats: frozenset[str] = frozenset()
    below: str | None = None

    @property
    def paths(self) -> frozenset[str]:
        """The paths of its routes, such as `/v1/adapters/{name}`."""
        return paths_of(self.router)


def paths_of(router: APIRouter) -> frozenset[str]:
    """The paths of a router's routes, as the API's description writes them."""
    return frozenset(path for route in router.routes if (path := getattr(route, "path_format", None)))
