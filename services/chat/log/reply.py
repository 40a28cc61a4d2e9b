"""One reply that is being written.

Owns what it is made of, its events, and their sequences. Invariants: sequences count 1, 2, 3 …; the first event is
`started`, the last is the only terminal one; each event is made once, as bytes; writing costs no task, no timer and no
await. It refuses more than it may hold.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.chat import events
from services.chat.log.entries import LogLine
from services.chat.log.event_log import EventLog
from services.chat.log.reply_parts import ReplyParts
from services.chat.log.tape import Tape
from services.chat.pieces import CallFinished, CallStarted, Cited, CodeFinished, Position, ReasoningDelta
from services.chat.records import (
    Citation,
    Failure,
    Memory,
    Message,
    Timings,
    Told,
    ToolCall,
    Turn,
    Usage,
)

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_LOG: Final = "log"


class ReplyTooLargeError(Exception):
    """The reply's events take more room than one reply may."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a reply ended. Without a failure and without a saved reply: its conversation was deleted."""

    reply: Message | None
    failure: Failure | None
    is_cancelled: bool = False


class Reply:
    """A reply being written. `arrival` is when its call came, on the loop's clock; `turn` is what it answers."""

    def __init__(self, turn: Turn, log: EventLog, *, arrival: float) -> None:
        self.turn = turn
        self.tape = Tape()
        self.length = 0
        self.degraded: Sequence[str] = ()
        self.memory_ids: Sequence[str] = ()
        self.memory_stamps: frozenset[str] = frozenset()
        self.position: Position | None = None
        self.response_ids: set[str] = set()
        self.is_finishing = False
        self.is_cancelled = False
        self.is_resumed = False
        self.knows_told = True
        self._loop = asyncio.get_running_loop()
        self._arrival = arrival
        self._first_text_time: float | None = None
        self._texts: list[str] = []
        self._saved_length = 0
        self._saved_responses = 0
        self._lengths: list[int] = []
        self._others: list[bytes] = []
        self._other_bytes = 0
        self._parts = ReplyParts()
        self._round_start = 0
        self._needs_blank_line = False
        self._log = log
        self._line = LogLine(turn.generation.id, turn.generation.epoch, self.tape)
        self._line.on_unlogged = self._tell_unlogged
        self._ending: asyncio.Future[Ending | None] = self._loop.create_future()

    @property
    def line(self) -> LogLine:
        """Its place in the log."""
        return self._line

    @property
    def text(self) -> str:
        """What was written so far."""
        return "".join(self._texts)

    @property
    def last_sequence(self) -> int:
        """Of the latest event."""
        return len(self.tape.events)

    def unsaved_text(self) -> str | None:
        """What was written so far; None when all of it is saved."""
        return None if self.length == self._saved_length else self.text

    def note_saved(self, text: str) -> None:
        """Notes that so much of the reply is saved."""
        self._saved_length = len(text)

    def unsaved_response_ids(self) -> Collection[str] | None:
        """Responses that the provider keeps for this reply; None when all of them are saved."""
        return None if len(self.response_ids) == self._saved_responses else tuple(self.response_ids)

    def note_saved_responses(self, response_ids: Collection[str] | None) -> None:
        """Notes that so many of them are saved."""
        if response_ids is not None:
            self._saved_responses = len(response_ids)

    @property
    def has_output(self) -> bool:
        """Whether anything of the model's was told."""
        return self.length > 0 or not self._parts.is_empty

    @property
    def calls(self) -> Sequence[ToolCall]:
        """The calls of tools so far, those under way included."""
        return self._parts.calls

    @property
    def is_resumable(self) -> bool:
        """Whether the log has everything, so that another process could go on."""
        return self._log.is_available and not self._line.is_unlogged

    @property
    def has_ended(self) -> bool:
        """Whether the terminal event is made, or the reply is somebody else's."""
        return self._ending.done()

    def timings(self) -> Timings:
        """How long it took until now."""
        first = 0.0 if self._first_text_time is None else self._first_text_time - self._arrival
        return Timings(int(first * 1000), int((self._loop.time() - self._arrival) * 1000))

    def start(self, degraded: Sequence[str], memories: Sequence[Memory] = ()) -> None:
        """Makes `started`; what was told before a take-over only learns what more it must do without, and is given."""
        self.memory_ids = [*dict.fromkeys([*self.memory_ids, *(memory.id for memory in memories)])]
        self.memory_stamps = frozenset(memory.stamped_by for memory in memories)
        if self.last_sequence:
            self.degrade([part for part in degraded if part not in self.degraded])
            return
        is_resumable = self._log.is_available
        self._line.is_unlogged = not is_resumable
        self.degraded = [*degraded] if is_resumable else [*degraded, _LOG]
        self._publish(
            events.started_event(self.turn, self.degraded, is_resumable=is_resumable, memory_ids=self.memory_ids), 0
        )

    def begin_round(self) -> None:
        """Another round of the model begins: the citations of it count from here."""
        self._set_round_start(self.length)

    def _set_round_start(self, start: int) -> None:
        self._round_start = start
        self._needs_blank_line = self.length == start > 0 and not self._texts[-1].endswith("\n")

    def write(self, text: str) -> None:
        """More text; not empty."""
        if self._needs_blank_line:
            self._needs_blank_line = False
            text = "\n\n" + text
            self._round_start += 2
        if self._first_text_time is None:
            self._first_text_time = self._loop.time()
        self._texts.append(text)
        self.length += len(text)
        self._publish(events.text_event(len(self.tape.events) + 1, text), len(text))

    def add(self, piece: ReasoningDelta | Cited | CallStarted | CallFinished | CodeFinished) -> None:
        """Something that is not text. A call that was told already, before a take-over, is not told again."""
        sequence = self.last_sequence + 1
        match piece:
            case ReasoningDelta(text):
                self._parts.add_reasoning(text, at=self.length)
                self._publish(events.reasoning_event(sequence, text), 0)
            case Cited(citation):
                start = self._round_start + (2 if self._needs_blank_line else 0)
                cited = replace(citation, start=citation.start + start, end=citation.end + start)
                self._parts.citations.append(cited)
                self._publish(events.citation_event(sequence, cited), 0)
            case CallStarted(call):
                if self._parts.start_call(call, at=self.length):
                    self._publish(events.call_started_event(sequence, call), 0)
            case CallFinished(call):
                if self._parts.start_call(call, at=self.length):
                    self._publish(
                        events.call_started_event(sequence, replace(call, status="running", result="", error="")), 0
                    )
                if self._parts.finish_call(call):
                    self._publish(events.call_finished_event(self.last_sequence + 1, call), 0)
            case CodeFinished(run):
                self._parts.add(run, at=self.length)
                self._publish(events.code_event(sequence, run), 0)

    def note(self, position: Position) -> None:
        """Where the provider's run is; logged together with the events before it."""
        self.position = position
        if position.response_id not in self.response_ids:
            self.response_ids.add(position.response_id)
        self._line.position = f"{position.sequence} {self._round_start} {position.response_id}"

    def degrade(self, parts: Sequence[str]) -> None:
        """From here on the reply does without these."""
        if parts:
            self.degraded = [*self.degraded, *parts]
            self._publish(events.degraded_event(self.last_sequence + 1, parts, is_resumable=self.is_resumable), 0)

    def _tell_unlogged(self) -> None:
        if self.last_sequence and not self.is_finishing:
            self.degrade([_LOG])

    def _publish(self, event: bytes, length: int) -> None:
        self.tape.events.append(event)
        self._lengths.append(length)
        if not length:
            self._others.append(event)
            self._other_bytes += len(event)
            if self._other_bytes > MAX_EVENT_BYTES and not self.is_finishing:
                raise ReplyTooLargeError
        if not self._line.is_queued:
            self._log.queue(self._line)

    def restore(self, told: Sequence[bytes], *, position: str, is_logged: bool) -> None:
        """Takes over what another process told: the same events, text and parts, and the provider's position."""
        for event, (kind, value) in zip(told, events.parsed(told), strict=True):
            text = value.text if kind == "text_delta" else ""
            self.tape.events.append(event)
            self._lengths.append(len(text))
            if text:
                self._texts.append(text)
                self.length += len(text)
            else:
                self._others.append(event)
                self._restore_part(kind, value)
        self.tape.told = len(told)
        self._line.logged = len(told) if is_logged else 0
        if position:
            sequence, round_start, response_id = position.split(" ", 2)
            # The round that an earlier process began may go on; where it does not, the next one is begun anew.
            self._set_round_start(int(round_start))
            self.note(Position(response_id, int(sequence)))
            self._line.position = position

    def _restore_part(self, kind: str, value: events.Value) -> None:
        match kind:
            case "started":
                self.degraded = list(value.degraded)
                self.memory_ids = list(value.memory_ids)
                self._line.is_unlogged = not value.resumable
            case "degraded":
                self.degraded = [*self.degraded, *value.parts]
            case "reasoning_delta":
                self._parts.add_reasoning(value.text, at=self.length)
            case "citation":
                self._parts.citations.append(Citation(value.url, value.title, value.start, value.end))
            case "tool_call_started":
                self._parts.start_call(events.call_of(value), at=self.length)
            case "tool_call_finished":
                self._parts.finish_call(events.call_of(value))
            case "code_interpreter":
                self._parts.add(events.code_of(value), at=self.length)

    def close(self, usage: Usage | None) -> Told:
        """What there is to save: with the usage event, which is told only once all is saved. Nothing is written after it.

        Where it is not known what was told (`knows_told`), the terminal event has a number behind whatever that was.
        """
        self.is_finishing = True
        lengths, others = list(self._lengths), list(self._others)
        if not lengths:
            first = events.started_event(self.turn, self.degraded, is_resumable=self._log.is_available)
            lengths, others = [0], [first]
        if usage is not None:
            others.append(events.usage_event(len(lengths) + 1, usage))
            lengths.append(0)
        last_sequence = len(lengths) + 1 if self.knows_told else events.MOST_SEQUENCE
        return Told(self._parts.all(length=self.length), self._parts.citations, lengths, others, last_sequence)

    def end(self, ending: Ending, told: Told) -> None:
        """Tells what is left and the terminal event. Called once, with what `close` returned, after that was saved."""
        status = "cancelled" if ending.is_cancelled else "completed"
        last = events.terminal_event(told.last_sequence, status=status, reply=ending.reply, failure=ending.failure)
        untold = len(told.event_lengths) - self.last_sequence
        self.tape.events += [*(told.other_events[-untold:] if untold else ()), last]
        self._line.is_last = True
        self._ending.set_result(ending)
        self._log.queue(self._line)

    async def ended(self) -> Ending | None:
        """Waits for the end; None when that comes elsewhere. A caller that stops waiting changes nothing."""
        return await asyncio.shield(self._ending)

    def leave(self) -> None:
        """It is not this process's any more: nothing more is told or logged here, and its readers go where it is."""
        self._log.drop(self._line)
        self.tape.move()
        if not self._ending.done():
            self._ending.set_result(None)
