"""The log: one JSON object a line on stderr, without prompts, fills, or exception texts that may quote them."""

import logging
import sys
from typing import Any, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

STAMPS: list[Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def make_log(level: str) -> FilteringBoundLogger:
    """A logger of its own: nothing global is configured."""
    logger = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr),
        processors=[*STAMPS, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )
    return cast(FilteringBoundLogger, logger)


def frames(error: BaseException) -> list[str]:
    """Where an exception came from: its type and its frames, without its text."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return [type(error).__qualname__, *places]


def uvicorn_logging(level: str) -> dict[str, Any]:
    """A `dictConfig` by which uvicorn's own lines have the form of ours."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processor": structlog.processors.JSONRenderer(),
                "foreign_pre_chain": STAMPS,
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {"uvicorn": {"handlers": ["stderr"], "level": level.upper(), "propagate": False}},
    }
