"""Server-sent events out of raw bytes, whatever the boundaries of the socket's reads.

Owns the splitting, and the decision which events are parsed at all: most carry nothing for us, and where the server names
its events the name alone decides. Invariant: an event is given once, whole; one that never ends is an error, not memory.
"""

from collections.abc import Iterable
from typing import Any, Final

import orjson

from services.runtime.errors import ServiceError
from services.runtime.openai import unavailable

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
DONE: Final[dict[str, Any]] = {"type": "[DONE]"}
"""What the marker `[DONE]` is given as."""


class Frames:
    """Splits one stream. `wanted` are the names of the events that are parsed; those without a name always are."""

    def __init__(self, wanted: Iterable[str], model: str, *, frequent: str = "") -> None:
        self._wanted = frozenset(name.encode() for name in wanted)
        self._model = model
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._frequent = f"event: {frequent}\ndata: ".encode()

    def split(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now. Raises Unavailable for one that never ends."""
        if b"\n" not in chunk:
            self._keep(chunk)
            return []
        if self._rest:
            self._rest.append(chunk)
            chunk = b"".join(self._rest)
            self._rest.clear()
            self._rest_bytes = 0
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n")
        frames = chunk.split(b"\n\n")
        self._keep(frames.pop())
        return frames

    def event(self, frame: bytes) -> dict[str, Any] | None:
        """The event of a frame; None for one that nobody asked for. Raises Unavailable for what is malformed."""
        if frame.startswith(self._frequent):
            return self._parsed(frame[len(self._frequent) :])
        name, data = b"", []
        for line in frame.split(b"\n"):
            if line.startswith(b"data:"):
                data.append(line[5:])
            elif line.startswith(b"event:"):
                name = line[6:].strip()
        body = b"\n".join(data).strip()
        if not body or (name and name not in self._wanted):
            return None
        return DONE if body == b"[DONE]" else self._parsed(body)

    def forget(self) -> None:
        """Drops the event that was cut: the stream goes on in another connection."""
        self._rest.clear()
        self._rest_bytes = 0

    def _keep(self, rest: bytes) -> None:
        if not rest:
            return
        self._rest.append(rest)
        self._rest_bytes += len(rest)
        if self._rest_bytes > MAX_FRAME_BYTES:
            raise self._malformed()

    def _parsed(self, body: bytes) -> dict[str, Any]:
        try:
            event = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise self._malformed() from error
        if not isinstance(event, dict):
            raise self._malformed()
        return event

    def _malformed(self) -> ServiceError:
        return unavailable(self._model)
