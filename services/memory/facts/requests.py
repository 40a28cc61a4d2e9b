"""From the contract's requests about facts to what the domain takes, with the checks that no field rule can say.

Owns those checks and who may say what of a fact: a user's word is the user's own; a service that acts for a user says which
message it learned it from. Raises InvalidArgument (INVALID_REQUEST) with a violation for each field that is wrong.
"""

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

from parley.memory.v1 import memory_pb2
from services.memory.facts.changes import DEFAULT_IMPORTANCE, DEFAULT_SUBJECT, Add, FactEdit, one_line
from services.memory.instructions import holds_secret, is_order, overrides_instructions
from services.memory.records import Source, Stamp
from services.runtime.errors import FieldViolation, invalid_request

_TIMES: Final = ("valid_from_time", "expire_time")
_EDITABLE: Final = ("text", "subject", "attribute", "importance", *_TIMES)
# Where the domain calls it by another name.
_KEYS: Final = {"valid_from_time": "valid_from"}

_WithExpiry = memory_pb2.AddMemoryRequest | memory_pb2.UpdateMemoryRequest


def read_add(request: memory_pb2.AddMemoryRequest, *, service: str | None, now: datetime) -> Add:
    """The fact that a request adds; `service` is who acts for the user, None for the user themselves."""
    by_user = service is None
    wrong = [*_wrong_text(request.text), *_wrong_expiry(request, now), *_wrong_provenance(request, by_user=by_user)]
    _check([*wrong, *(() if by_user else _wrong_to_bring(request))])
    source = request.source
    return Add(
        text=one_line(request.text),
        subject=one_line(request.subject) or DEFAULT_SUBJECT,
        attribute=one_line(request.attribute),
        importance=request.importance or DEFAULT_IMPORTANCE,
        stamped_by="user" if by_user else cast(Stamp, request.stamped_by or "assistant"),
        origin="stated" if by_user else "remembered",
        valid_from=_time(request, "valid_from_time"),
        expire_time=_time(request, "expire_time"),
        sources=() if by_user else (Source(_id(source.conversation_id), _id(source.message_id)),),
    )


def read_edit(request: memory_pb2.UpdateMemoryRequest, *, now: datetime) -> FactEdit:
    """The fields that a request changes, and what they are to be."""
    names = _named(request)
    wrong = [*_wrong_names(names), *(_wrong_text(request.text) if "text" in names else ())]
    _check([*wrong, *(_wrong_expiry(request, now) if "expire_time" in names else ())])
    return cast(FactEdit, {_KEYS.get(name, name): _value(request, name) for name in names})


def _value(request: memory_pb2.UpdateMemoryRequest, name: str) -> Any:
    if name in _TIMES:
        return _time(request, name)
    if name == "importance":
        return request.importance or DEFAULT_IMPORTANCE
    value = one_line(getattr(request, name))
    return value or DEFAULT_SUBJECT if name == "subject" else value


def _named(request: memory_pb2.UpdateMemoryRequest) -> Sequence[str]:
    if request.HasField("update_mask"):
        return list(dict.fromkeys(request.update_mask.paths))
    is_set = {"valid_from_time": request.HasField("valid_from_time"), "expire_time": request.HasField("expire_time")}
    return [name for name in _EDITABLE if is_set.get(name, bool(getattr(request, name)))]


def _wrong_names(names: Sequence[str]) -> Iterator[FieldViolation]:
    for path in sorted(set(names) - set(_EDITABLE)):
        yield FieldViolation("update_mask", f"`{path}` cannot be changed: only {', '.join(_EDITABLE)} can")


def _wrong_text(text: str) -> Iterator[FieldViolation]:
    if not any(character.isalnum() for character in text):
        yield FieldViolation("text", "holds no word: say one sentence")


def _wrong_expiry(request: _WithExpiry, now: datetime) -> Iterator[FieldViolation]:
    time = _time(request, "expire_time")
    if time is not None and time <= now:
        yield FieldViolation("expire_time", "is past: name a time to come")


def _wrong_provenance(request: memory_pb2.AddMemoryRequest, *, by_user: bool) -> Iterator[FieldViolation]:
    if by_user and request.HasField("source"):
        yield FieldViolation("source", "only a service names the message that a fact was learned from: leave it out")
    if by_user and request.stamped_by not in {"", "user"}:
        yield FieldViolation("stamped_by", "what a user adds is the user's own: leave it out")
    if not by_user and not request.HasField("source"):
        yield FieldViolation("source", "is required of a service: name the message that the fact was learned from")


def _wrong_to_bring(request: memory_pb2.AddMemoryRequest) -> Iterator[FieldViolation]:
    """What nobody but the user themselves may have remembered: a model asks for it, and pages talk models into asking."""
    is_users = request.stamped_by == "user"
    if overrides_instructions(request.text) or (not is_users and is_order(request.text)):
        yield FieldViolation("text", "tells a model what to do: say something of the user")
    if not is_users and holds_secret(request.text, request.attribute):
        yield FieldViolation("text", "tells a password, a key or a number that is not to be kept: leave it out")


def _time(request: Any, field: str) -> datetime | None:
    if not request.HasField(field):
        return None
    time: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    return time


def _id(text: str) -> str:
    return str(uuid.UUID(text))


def _check(violations: Sequence[FieldViolation]) -> None:
    if violations:
        raise invalid_request(violations)
