"""Structured logs: constant dotted event names, values as fields. Text in a terminal, JSON elsewhere.

Never log message text, phone numbers, passwords or tokens: log ids.
"""

import logging
import sys
from typing import Literal

import structlog

from services.runtime.calls import current_request_id

LogFormat = Literal["auto", "text", "json"]


def configure(service: str, *, level: str, log_format: LogFormat) -> None:
    """Sends our logs and those of the libraries to standard output, one line each, with service and request id."""
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_call(service),
    ]
    last: list[structlog.typing.Processor]
    if text:
        last = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        # Without the frames' local variables: they hold tokens and message text.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    # Libraries speak up from WARNING only: they log their own requests, with headers.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _add_call(service: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        if request_id := current_request_id():
            event.setdefault("request_id", request_id)
        return event

    return add
