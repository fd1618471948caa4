"""A point in time in Ollama's format."""

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """RFC 3339 of a point in time, given in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
