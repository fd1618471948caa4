"""The route of a path: the path itself, or the template that it fits."""

from collections.abc import Collection


def route_of(path: str, routes: Collection[str]) -> str | None:
    """The one of `routes` that a path belongs to, such as `/infill`, or `/models/{name}` whatever the name; None for
    none. A name may have slashes."""
    if path in routes:
        return path
    return next((r for r in routes if r.endswith("}") and path.startswith(r.partition("{")[0])), None)
