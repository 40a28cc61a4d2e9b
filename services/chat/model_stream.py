"""The provider's event stream as text: raw bytes in, pieces of a reply and its end out.

Most events carry neither text nor the end, and are not parsed. Invariant: what is malformed is an error, never a short
answer; the text before it is not lost.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from services.chat.records import Usage
from services.runtime.errors import ServiceError
from services.runtime.openai import from_error_code, unavailable
from services.runtime.rules import CONTROL_CHARACTERS

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_TEXT_KINDS: Final = frozenset(("response.output_text.delta", "response.refusal.delta"))
_END_KINDS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", "error"))
_READ_NAMES: Final = frozenset(kind.encode() for kind in _TEXT_KINDS | _END_KINDS)
_INCOMPLETE: Final = {"max_output_tokens": "MAX_OUTPUT_TOKENS", "content_filter": "CONTENT_FILTER"}


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """The end of a reply: what it cost, and why it is incomplete, if it is."""

    usage: Usage | None
    incomplete_reason: str | None


@dataclass(frozen=True, slots=True)
class Read:
    """What one read of the socket brought: text, and then the end, good or bad, if it is among it."""

    text: str
    end: ReplyEnd | None = None
    error: ServiceError | None = None


class ModelStream:
    """Reads the stream of one reply, whatever the boundaries of the socket's reads. Bounded."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rest = b""

    def read(self, chunk: bytes) -> Read:
        """What these bytes complete."""
        texts: list[str] = []
        try:
            for frame in self._split(chunk):
                event = _parsed(frame, self._model)
                kind = None if event is None else event.get("type")
                if event is None or kind is None:
                    continue
                if kind in _TEXT_KINDS:
                    texts.append(_checked(event.get("delta"), self._model))
                elif kind in _END_KINDS:
                    return Read("".join(texts), end=_end(kind, event, self._model))
        except ServiceError as error:
            # The text before it came whole, and is told first.
            return Read("".join(texts), error=error)
        except (AttributeError, TypeError, ValueError):
            # Valid JSON of another shape than the API's.
            return Read("".join(texts), error=unavailable(self._model))
        return Read("".join(texts))

    def _split(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now. Raises Unavailable for one that never ends."""
        data = self._rest + chunk if self._rest else chunk
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        frames = data.split(b"\n\n")
        self._rest = frames.pop()
        if len(self._rest) > MAX_FRAME_BYTES:
            raise unavailable(self._model)
        return frames


def _parsed(frame: bytes, model: str) -> dict[str, Any] | None:
    """The event of a frame; None for one that carries neither text nor the end, which is most of them.

    Where the server names its events, the name alone decides whether the rest is parsed at all.
    """
    name, data = b"", []
    for line in frame.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    body = b"\n".join(data).strip()
    if not body or body == b"[DONE]" or (name and name not in _READ_NAMES):
        return None
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise unavailable(model) from error
    if not isinstance(event, dict):
        raise unavailable(model)
    return event


def _checked(delta: object, model: str) -> str:
    if not isinstance(delta, str):
        raise unavailable(model)
    # Postgres stores no NUL, and memory takes none of the others: no caller sends them either.
    return delta if delta.isprintable() else CONTROL_CHARACTERS.sub("", delta)


def _end(kind: str, event: dict[str, Any], model: str) -> ReplyEnd:
    response = event.get("response") or {}
    if kind in ("response.failed", "error"):
        told = response.get("error") or event.get("error") or event
        raise from_error_code(told.get("code"), told.get("param"), model)
    incomplete = None
    if kind == "response.incomplete":
        stated = (response.get("incomplete_details") or {}).get("reason")
        incomplete = _INCOMPLETE.get(str(stated), "MAX_OUTPUT_TOKENS")
    return ReplyEnd(_usage(response.get("usage")), incomplete)


def _usage(stated: dict[str, Any] | None) -> Usage | None:
    if not stated:
        return None
    return Usage(
        input_tokens=int(stated.get("input_tokens") or 0),
        cached_tokens=int((stated.get("input_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(stated.get("output_tokens") or 0),
        reasoning_tokens=int((stated.get("output_tokens_details") or {}).get("reasoning_tokens") or 0),
    )
