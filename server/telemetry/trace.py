"""The trace of a request, by W3C Trace Context (https://www.w3.org/TR/trace-context/)."""

import re
import secrets
from dataclasses import dataclass

# Version, trace, parent, flags; versions to come may add more fields.
TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """Ids in hex. `parent_id` is None if the client sent no trace."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    is_sampled: bool = True


def read_trace(header: str) -> Trace:
    """The trace of a `traceparent` header; a new one if the header is missing or malformed, as the standard says."""
    match = TRACEPARENT.fullmatch(header.strip())
    span_id = secrets.token_hex(8)
    if match is None or (match[1] == "00" and match[5]):
        return Trace(secrets.token_hex(16), span_id)
    return Trace(match[2], span_id, match[3], bool(int(match[4], 16) & 1))
