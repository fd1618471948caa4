"""The errors of the API: one shape, and one table from exceptions to status, type and code."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from engine.client import EngineOverloaded, EngineUnavailable
from engine.events import Failed
from engine.requests import RequestError
from server.wire.answer import Answer
from server.wire.complaint import Complaint

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "overloaded_error",
    504: "server_error",
}
EXCEPTIONS: dict[type[Exception], tuple[int, str]] = {
    RequestError: (400, "invalid_value"),
    EngineOverloaded: (503, "queue_full"),
    EngineUnavailable: (503, "not_ready"),
}
OUTCOMES = {
    "invalid": (400, "invalid_value"),
    "cancelled": (499, "cancelled"),
    "deadline": (504, "deadline"),
    "overloaded": (503, "overloaded"),
    "error": (500, "internal_error"),
}
FRAMEWORK = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_value",
}
NOT_FOUND = {"model_not_found", "adapter_not_found", "path_not_found"}
CONFLICTS = {"adapter_exists", "adapter_in_use", "adapters_full"}
# Where nothing better is known.
RETRY_S = 1.0


@dataclass
class ApiError(Exception):
    """A refusal as the client sees it. `retry_s` is the time, in seconds, until a retry makes sense (a 503 always has
    it)."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    retry_s: float | None = None

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the error in our own shape."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    def answer(self, scope: Scope) -> Answer:
        """The response, in the shape of the route's protocol (`server.wire.error_bodies`).

        It stores the code in the scope, for the counts of refusals.
        """
        state = scope.setdefault("state", {})
        state["code"] = self.code
        headers = dict(self.headers)
        retry_s = self.retry_s or (RETRY_S if self.status == 503 else None)
        if retry_s is not None:
            # Some clients read whole seconds, others milliseconds.
            headers["retry-after"] = str(math.ceil(retry_s))
            headers["retry-after-ms"] = str(math.ceil(retry_s * 1000))
        if self.status == 500:
            # What failed once on this input fails again: keep clients from retrying in a loop.
            headers["x-should-retry"] = "false"
        body: Mapping[str, Any] = state["error_body"](self) if "error_body" in state else self.body
        return Answer(body, self.status, headers)


ErrorBody = Callable[[ApiError], Mapping[str, Any]]


def translate(error: Exception, request_id: str) -> ApiError:
    """The ApiError of any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        code = FRAMEWORK.get(error.status_code, "error")
        return ApiError(error.status_code, error.detail, code, headers=dict(error.headers or {}))
    if isinstance(error, RequestError):
        status = 404 if error.code in NOT_FOUND else 409 if error.code in CONFLICTS else 400
        return ApiError(status, error.message, error.code, error.param)
    if isinstance(error, ValidationError):
        return invalid(error)
    for kind, (status, code) in EXCEPTIONS.items():
        if isinstance(error, kind):
            return ApiError(status, str(error), code)
    return internal(request_id)


def internal(request_id: str) -> ApiError:
    """The ApiError of a fault of ours. Its text says only where to look it up."""
    return ApiError(500, f"internal error; quote request id {request_id}", "internal_error")


def failure(event: Failed, request_id: str) -> ApiError:
    """The ApiError of a request that the engine failed."""
    status, code = OUTCOMES[event.outcome]
    if status == 500:
        return internal(request_id)
    if event.code in NOT_FOUND:
        status = 404
    return ApiError(status, event.message, event.code or code, event.param)


def invalid(error: ValidationError) -> ApiError:
    """The ApiError of a wire model's first complaint, in one line that names the field."""
    found = Complaint.first(error)
    return ApiError(400, found.message, found.kind, found.path)


async def answer_error(request: Request, error: Exception) -> Answer:
    """The application's exception handler."""
    return translate(error, request.state.request_id).answer(request.scope)


HANDLED = (ApiError, HTTPException, ValidationError, *EXCEPTIONS)
