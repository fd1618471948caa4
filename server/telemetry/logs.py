"""The log: one JSON object per line on stderr, without prompts, fills, and exception texts that may quote them."""

import logging
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from server.wire.floods import FloodFilter, Floods

STAMPS: list[Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def make_log(level: str) -> FilteringBoundLogger:
    """A logger that changes no global configuration."""
    logger = structlog.wrap_logger(
        Lines(sys.stderr),
        processors=[*STAMPS, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )
    return cast(FilteringBoundLogger, logger)


class Lines:
    """Writes lines, and drops those that cannot be written: a full disk or a closed pipe ends no request."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        """Writes one line."""
        with suppress(OSError, ValueError):
            self._file.write(message + "\n")
            self._file.flush()

    debug = info = warning = error = critical = msg


def frames(error: BaseException) -> list[str]:
    """The type and the stack frames of an exception, without its text."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return [type(error).__qualname__, *places]


def loop_errors(log: FilteringBoundLogger) -> Callable[[AbstractEventLoop, dict[str, Any]], None]:
    """An exception handler for an event loop. It logs one line per error, at most one per second and kind."""
    floods = Floods()

    def tell(_: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # The message may go on with the arguments of a call, or with lines about objects.
        message = context["message"].partition("\n")[0].partition("(")[0]
        left_out = floods.left_out((message, type(error)))
        if left_out is not None:
            log.error("event loop", detail=message, frames=[] if error is None else frames(error), left_out=left_out)

    return tell


def library_logging(level: str) -> dict[str, Any]:
    """A `dictConfig` that gives libraries' log lines our form, at most one per second and kind."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processor": structlog.processors.JSONRenderer(),
                "foreign_pre_chain": [*STAMPS, _framed],
            }
        },
        "filters": {"floods": {"()": FloodFilter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["floods"]}},
        "loggers": {"uvicorn": {"level": level.upper()}},
        "root": {
            "handlers": ["stderr"],
            "level": "ERROR" if level == "error" else "WARNING",
        },
    }


def _framed(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    info = event.pop("exc_info", None)
    return event if not info else {**event, "frames": frames(info[1])}
