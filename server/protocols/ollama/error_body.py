"""An error in Ollama's shape."""

from server.wire.errors import ApiError


def error_body(error: ApiError) -> dict[str, str]:
    """The JSON of an error, which is its text alone."""
    return {"error": error.message}
