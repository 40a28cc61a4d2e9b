"""Structured logs: constant dotted event names, values as fields. Text in a terminal, JSON elsewhere.

Never log message text, phone numbers, passwords or tokens: log ids.
"""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import orjson
import psycopg
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
        last = [structlog.processors.ExceptionRenderer(_traceback), structlog.processors.JSONRenderer(serializer=_json)]
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
    # Lost connections are reported once, by services/runtime/jobs.py, and not as one traceback for each statement.
    # grpc's core logs a header that it cannot decode, value and all; what handlers raise never gets to it.
    # mcp (and its `client`) quotes what servers of users sent, and uvicorn requests that it cannot parse.
    for name in ("procrastinate", "psycopg.pool", "grpc._cython.cygrpc", "mcp", "client", "uvicorn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


# Without the frames' local variables: they hold tokens and message text.
_transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


# Errors of Postgres about a value, which their text quotes.
_QUOTING = frozenset(
    name for name, kind in vars(psycopg.errors).items() if isinstance(kind, type) and issubclass(kind, psycopg.DataError)
)


def _traceback(exc_info: structlog.typing.ExcInfo) -> list[dict[str, Any]]:
    """The traceback as data, without what an exception's text may quote of rows and inputs."""
    return _discreet(_transform(exc_info))


def _discreet(stacks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for stack in stacks:
        # The first line says what went wrong; further ones of driver and validation errors quote values.
        said = stack["exc_value"].partition("\n")[0]
        stack["exc_value"] = "left out: it quotes a value" if stack["exc_type"] in _QUOTING else said
        for inner in stack["exceptions"]:
            _discreet(inner)
    return stacks


def _json(fields: structlog.typing.EventDict, *, default: Callable[[Any], Any]) -> str:
    """A tenth of what the standard library takes, and by that for what is no Unicode or too large a number."""
    try:
        return orjson.dumps(fields, default=default, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return json.dumps(fields, default=default)


def _add_call(service: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        if request_id := current_request_id():
            event.setdefault("request_id", request_id)
        return event

    return add
