"""An error in TGI's shape, and in that of fill-mask, which is one text."""

from server.wire.errors import ApiError

# In TGI's words, by which huggingface_hub chooses its exception; the rest is a request that was wrong.
KINDS = {
    401: "unauthorized", 403: "unauthorized", 429: "overloaded", 499: "cancelled", 500: "generation",
    503: "overloaded", 504: "incomplete_generation",
}  # fmt: skip


def error_body(error: ApiError) -> dict[str, str]:
    """The JSON of an error of text generation."""
    return {**mask_error_body(error), "error_type": KINDS.get(error.status, "validation")}


def mask_error_body(error: ApiError) -> dict[str, str]:
    """The JSON of an error of fill-mask."""
    return {"error": error.message}
