"""A streamed reply of the Responses API, read: bytes in, pieces and their RoundEnd out.

Owns the state of one round's stream: what was told, where the provider's run stands, how it ended. Invariants: what is
malformed is an error, never a short answer, and the text before it is told; pieces come in the provider's order; the state
after an event depends on the events alone, so that a stream that is read again from its beginning arrives at the same place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.chat.model.frames import Frames
from services.chat.model.telling import TELLERS, Telling
from services.chat.model.whole_response import as_events, without_nul
from services.chat.pieces import Piece, Position, RoundEnd
from services.runtime.errors import ServiceError
from services.runtime.openai import unavailable

_TEXT: Final = "response.output_text.delta"
_CREATED: Final = "response.created"
Event = Mapping[str, Any]


@dataclass(slots=True)
class _Place:
    """How far a run that the provider keeps was read, and how far it had been read before by another process."""

    response_id: str = ""
    sequence: int = -1
    told_until: int = -1
    noted: int = -1


def said_in(items: Sequence[Event], model: str) -> Sequence[Piece]:
    """The pieces that told the items of a round which has ended; those of items that cannot be read are left out."""
    told = ResponseStream(model).settle({"status": "completed", "output": items})
    return [piece for piece in told if not isinstance(piece, RoundEnd)]


class ResponseStream:
    """Reads one round, whatever the boundaries of the socket's reads, over several connections if need be. Bounded.

    `is_kept` says that the provider keeps the run: then Positions come too. With `resumed` another process has told what the
    events up to there say: the stream is to be read from its beginning, and what they say is not told again.
    """

    def __init__(self, model: str, *, is_kept: bool = False, resumed: Position | None = None) -> None:
        self.error: ServiceError | None = None
        """What ended the stream badly; what was told before it is good."""
        self.has_told = False
        """Whether anything but a Position was given."""
        self._model = model
        self._frames = Frames({_TEXT, _CREATED, *TELLERS}, model, frequent=_TEXT)
        self._place = _Place() if is_kept else None
        if resumed is not None:
            self._place = _Place(resumed.response_id, told_until=resumed.sequence)
        self._telling = Telling(model)
        self._texts: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether its RoundEnd was given."""
        return self._telling.has_ended

    @property
    def has_text(self) -> bool:
        """Whether text was given."""
        return self._telling.has_text

    @property
    def is_behind(self) -> bool:
        """Whether another process told more than was read here: the state is not known yet."""
        return self._place is not None and self._place.sequence < self._place.told_until

    @property
    def position(self) -> Position | None:
        """Where the run can be resumed; None where the provider keeps none."""
        if self._place is None or not self._place.response_id:
            return None
        return Position(self._place.response_id, self._place.sequence)

    def read(self, chunk: bytes) -> Sequence[Piece | RoundEnd]:
        """The pieces that these bytes complete. After one that has ended badly `error` is set."""
        try:
            for frame in self._frames.split(chunk):
                event = self._frames.event(frame)
                if event is not None:
                    self._take(event, frame)
                    if self.has_ended:
                        break
        except ServiceError as error:
            self.error = error
        except (AttributeError, KeyError, TypeError, ValueError):
            # Valid JSON of another shape than the API's.
            self.error = unavailable(self._model)
        return self._given()

    def settle(self, response: Event) -> Sequence[Piece | RoundEnd]:
        """The rest of the round out of the whole response, where the stream had nothing left. Sets `error` as `read`."""
        whole = ResponseStream(self._model)
        try:
            for event in as_events(without_nul(response)):
                whole._take(event, b"")
        except ServiceError as error:
            self.error = error
        except (AttributeError, KeyError, TypeError, ValueError):
            self.error = unavailable(self._model)
        self._telling.has_ended = whole.has_ended
        return list(self._telling.untold(whole._given()))

    def abandon(self) -> Sequence[Piece]:
        """What must still be told where the round begins anew."""
        return self._telling.abandon()

    def restart(self) -> None:
        """The stream goes on in another connection, after `position`."""
        self._frames.forget()
        self.error = None

    def _take(self, event: Event, frame: bytes) -> None:
        kind = event.get("type")
        if kind == _TEXT:
            delta = event["delta"]
            if type(delta) is not str:
                raise TypeError("a delta is text")
            self._texts.append(delta)
        elif teller := TELLERS.get(kind or ""):
            self._speak()
            teller(self._telling, without_nul(event) if b"\\u0000" in frame else event)
        elif kind == _CREATED and self._place is not None:
            self._place.response_id = str(event["response"]["id"])
        if self._place is not None:
            self._note(event, self._place)

    def _note(self, event: Event, place: _Place) -> None:
        sequence = event.get("sequence_number")
        if type(sequence) is int and sequence > place.sequence:
            place.sequence = sequence
        if place.told_until >= 0:
            # Another process has told it: only the state is wanted.
            self._speak()
            if place.sequence <= place.told_until:
                self._telling.pieces = [piece for piece in self._telling.pieces if isinstance(piece, RoundEnd)]

    def _speak(self) -> None:
        if self._texts:
            text = "".join(self._texts)
            self._texts.clear()
            self._telling.text(text)

    def _given(self) -> Sequence[Piece | RoundEnd]:
        self._speak()
        pieces, self._telling.pieces = self._telling.pieces, []
        self.has_told = self.has_told or bool(pieces)
        place = self._place
        if place is not None and place.response_id and place.sequence > max(place.noted, place.told_until):
            place.noted = place.sequence
            pieces.insert(len(pieces) - self.has_ended, Position(place.response_id, place.sequence))
        return pieces
