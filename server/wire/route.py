"""The route of a path: the path itself, or the template that matches it."""

from collections.abc import Collection


def route_of(path: str, routes: Collection[str]) -> str | None:
    """The one of `routes` that matches a path, such as `/infill`, or `/models/{name}` for any name; None for none.

    A name may contain slashes.
    """
    if path in routes:
        return path
    return next((r for r in routes if r.endswith("}") and path.startswith(r.partition("{")[0])), None)
