"""What the user prefers, asked of auth.

Owns the short memory of it. Invariants: a change is seen within 15 seconds, since what was read is believed no longer; one
call at a time is made for a user, whoever asks meanwhile; a turn never waits longer than a second and never fails for it.
While auth does not answer the last known preferences go on holding, and the caller is told that they may be old.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import structlog

from parley.auth.v1 import user_pb2, user_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.breaker import Breaker
from services.runtime.calls import acting_for, current_caller, detached
from services.runtime.errors import DeadlineExceeded, ServiceError, Unavailable, peer_errors, reason_name
from services.runtime.openai import ReasoningEffort

log = structlog.get_logger(__name__)

BELIEVED_SECONDS: Final = 15.0
_CALL_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0
_MOST_KNOWN: Final = 10_000
DEFAULT_CONVERSATION_TIMEOUT_SECONDS: Final = 1_800


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a user prefers, as far as replies are concerned; the defaults where there is nothing."""

    language: str = ""
    tts_voice: str = ""
    conversation_timeout_seconds: int = DEFAULT_CONVERSATION_TIMEOUT_SECONDS
    model: str = ""
    reasoning_effort: ReasoningEffort | None = None
    memory_enabled: bool = True
    instructions: str = ""


@dataclass(frozen=True, slots=True)
class KnownPreferences:
    """Preferences, and whether they are what auth says now; else the last that it said, or the defaults without memory."""

    preferences: Preferences
    is_current: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    known: KnownPreferences
    stale: KnownPreferences
    believe_until: float


# Who may have said no to memory is not remembered on a guess.
_UNKNOWN: Final = KnownPreferences(Preferences(memory_enabled=False), is_current=False)


class PreferenceClient:
    """The preferences of users, at most 10,000 of them remembered. Close it at the end."""

    def __init__(self, channel: grpc.aio.Channel, *, believed_seconds: float = BELIEVED_SECONDS) -> None:
        self._believed_seconds = believed_seconds
        self._users = user_pb2_grpc.UserServiceStub(channel)
        self._breaker = Breaker("preferences", retry_seconds=_RETRY_SECONDS)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._asking: dict[str, asyncio.Task[KnownPreferences]] = {}

    async def of(self, user_id: str) -> KnownPreferences:
        """What the user prefers, who must be the one that the current call is made by or for. Raises nothing."""
        entry = self._entries.get(user_id)
        if entry is not None and time.monotonic() < entry.believe_until:
            self._entries.move_to_end(user_id)
            return entry.known
        task = self._asking.get(user_id)
        if task is None:
            # The call's own deadline must not end what others wait for too.
            task = asyncio.create_task(self._asked(user_id), context=detached())
            self._asking[user_id] = task
            task.add_done_callback(lambda _: self._asking.pop(user_id, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends the calls that are under way."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _asked(self, user_id: str) -> KnownPreferences:
        if self._breaker.allows():
            begin = time.monotonic()
            try:
                read = await _in_time(self._read(user_id))
            except ServiceError as error:
                self._note(error)
            else:
                self._breaker.succeeded()
                self._remember(user_id, read, begin + self._believed_seconds)
                return self._entries[user_id].known
        entry = self._entries.get(user_id)
        return _UNKNOWN if entry is None else entry.stale

    def _note(self, error: ServiceError) -> None:
        if isinstance(error, Unavailable | DeadlineExceeded):
            self._breaker.failed(error)
        else:
            # Auth answers, and refuses this caller: a token that has just expired, say.
            self._breaker.succeeded()
        log.warning("chat.preferences_degraded", reason=reason_name(error.reason))

    def _remember(self, user_id: str, read: Preferences, believe_until: float) -> None:
        known, stale = KnownPreferences(read, is_current=True), KnownPreferences(read, is_current=False)
        self._entries[user_id] = _Entry(known, stale, believe_until)
        self._entries.move_to_end(user_id)
        if len(self._entries) > _MOST_KNOWN:
            self._entries.popitem(last=False)

    async def _read(self, user_id: str) -> Preferences:
        caller = current_caller()
        if caller.user_id == user_id and caller.session_id is not None:
            return await self._call()
        # No user's own token is at hand, as in a job: this service acts for the user.
        with acting_for(user_id):
            return await self._call()

    async def _call(self) -> Preferences:
        asked = user_pb2.GetPreferencesRequest(user_id="me")
        with peer_errors():
            return _preferences(await self._users.GetPreferences(asked, timeout=_CALL_SECONDS))


async def _in_time(reading: Coroutine[Any, Any, Preferences]) -> Preferences:
    """Around the call's own deadline, since the token for it may have to be fetched first."""
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            return await reading
    except TimeoutError as error:
        raise DeadlineExceeded("The preferences took too long.", reasons.ERROR_REASON_DEADLINE_PASSED) from error


def _preferences(read: user_pb2.Preferences) -> Preferences:
    timeout_seconds = read.conversation_timeout_seconds
    return Preferences(
        language=read.language,
        tts_voice=read.tts_voice,
        conversation_timeout_seconds=timeout_seconds or DEFAULT_CONVERSATION_TIMEOUT_SECONDS,
        model=read.model,
        reasoning_effort=cast(ReasoningEffort, read.reasoning_effort) if read.reasoning_effort else None,
        memory_enabled=read.memory_enabled if read.HasField("memory_enabled") else True,
        instructions=read.instructions,
    )
