"""How a request came: by which route, and what that says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asking:
    """`model` is the name in the path, `in_list` says that an answer is put into a list, `streams` that it is a stream
    whatever the body says."""

    route: str
    model: str | None = None
    in_list: bool = False
    streams: bool = False
