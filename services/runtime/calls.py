"""The call being served: who makes it, under which request id, until when. One context variable holds it.

The user is always taken from here, never from a request's body. Outgoing channels read it to forward identity, request id
and deadline.
"""

import asyncio
import contextvars
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import ServiceError, Unauthenticated


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as verified.

    `user_id` is None for nobody and for a service that acts for itself; `service` is None unless a service of the suite
    calls. `expire_time` (Unix seconds) is when the user's token ends, 0 without one.
    """

    user_id: str | None = None
    session_id: str | None = None
    roles: frozenset[str] = frozenset()
    service: str | None = None
    token: str | None = field(default=None, repr=False)
    expire_time: float = 0.0


NOBODY = Caller()


class Cutter:
    """Ends a streaming call from outside, also while it waits for a caller who takes nothing. For the task that makes it."""

    __slots__ = ("_task", "error")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.error: ServiceError | None = None

    def cut(self, error: ServiceError) -> None:
        """Ends the call with this error. Idempotent: the first error stays."""
        if self.error is None and self._task is not None:
            self.error = error
            self._task.cancel()

    def take(self) -> ServiceError | None:
        """For the interceptor: the error that the call was cut with, which then is no cancellation any more."""
        if self.error is not None and self._task is not None:
            self._task.uncancel()
        return self.error


@dataclass(frozen=True, slots=True)
class Call:
    """One call: `deadline` is on the event loop's clock, None where the caller gave none; `cutter` is a stream's."""

    request_id: str
    caller: Caller = NOBODY
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    deadline: float | None = None
    acting_for: str | None = None
    cutter: Cutter | None = None


_NO_CALL = Call(request_id="")
_current: contextvars.ContextVar[Call] = contextvars.ContextVar("parley_call", default=_NO_CALL)


def enter(call: Call) -> None:
    """Makes this the current call of the running task and of the tasks that it starts."""
    _current.set(call)


def current_call() -> Call:
    """The call being served; an empty one outside of any."""
    return _current.get()


def current_caller() -> Caller:
    """Who makes the call being served."""
    return _current.get().caller


def current_user_id() -> str:
    """The user who calls, or on whose behalf a service calls. Unauthenticated when there is none."""
    user_id = _current.get().caller.user_id
    if user_id is None:
        raise Unauthenticated("This call acts for a user: send a user's token.", reasons.ERROR_REASON_IDENTITY_MISSING)
    return user_id


def current_request_id() -> str:
    """The request id of the call being served."""
    return _current.get().request_id


def current_metadata() -> Mapping[str, str]:
    """Text metadata of the call being served, keys in lower case."""
    return _current.get().metadata


def current_cutter() -> Cutter | None:
    """What ends the call being served from outside; None outside of streams."""
    return _current.get().cutter


def seconds_left() -> float | None:
    """Time until the deadline of the call being served; None where there is none."""
    deadline = _current.get().deadline
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


def detached() -> contextvars.Context:
    """A context for a task that outlives the call: the same request id and caller, without the call's deadline."""
    context = contextvars.copy_context()
    context.run(_current.set, replace(_current.get(), deadline=None, cutter=None))
    return context


@contextmanager
def acting_for(user_id: str, *, request_id: str = "") -> Iterator[None]:
    """Outgoing calls inside act for this user by an exchanged token: for jobs, which have no user's token."""
    token = _current.set(Call(request_id=request_id or current_request_id(), acting_for=user_id))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def as_itself() -> Iterator[None]:
    """Outgoing calls inside are made by this service and for nobody, though a call for a user may be being served."""
    token = _current.set(replace(_current.get(), caller=NOBODY, acting_for=None))
    try:
        yield
    finally:
        _current.reset(token)
