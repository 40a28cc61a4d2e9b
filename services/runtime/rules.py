"""Field rules of the contract, checked before a handler sees a request.

The rules stand in the protos (parley/options/v1/options.proto). They are compiled once a message type into plain checks;
a request that breaks any gets one error that names every field.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from parley.options.v1 import options_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import Caller
from services.runtime.errors import FieldViolation, PermissionDenied, invalid_request

Value = Any
Check = Callable[[Value], str | None]

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Deliberately plain: one @, a dot in the domain, no spaces. Whether an address exists only a message to it can tell.
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ME = "me"
# More would not fit the trailers that a client takes.
_MOST_VIOLATIONS = 10
_LONGEST_KEY = 40
_TIMESTAMP, _DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"
# What the types themselves allow (google/protobuf/timestamp.proto, duration.proto), in seconds.
_FIRST_SECOND, _LAST_SECOND, _LONGEST_DURATION = -62_135_596_800, 253_402_300_799, 315_576_000_000
_LAST_NANO = 999_999_999


def check_request(request: Message, caller: Caller) -> None:
    """Raises InvalidArgument with a violation for every field that breaks its rules, 10 at most.

    Raises PermissionDenied for a path that names another user.
    """
    if violations := list(islice(_violations(request, ""), _MOST_VIOLATIONS)):
        raise invalid_request(violations)
    for name in _caller_fields(request.DESCRIPTOR):
        if not _is_own(getattr(request, name), caller):
            raise PermissionDenied(
                "The path names another user: use your own id or `me`.", reasons.ERROR_REASON_ACCESS_DENIED
            )


def _is_own(value: str, caller: Caller) -> bool:
    return value in {"", _ME, caller.user_id} or "admin" in caller.roles


def _violations(message: Message, path: str) -> Iterator[FieldViolation]:
    for field, check in _compiled(message.DESCRIPTOR):
        where = path + field.name
        for suffix, description in check(message):
            yield FieldViolation(where + suffix, description)
    for field in _nested(message.DESCRIPTOR):
        for suffix, child in _children(message, field):
            yield from _violations(child, f"{path}{field.name}{suffix}.")


def _children(message: Message, field: FieldDescriptor) -> Iterator[tuple[str, Message]]:
    if _is_map(field):
        for key, child in getattr(message, field.name).items():
            yield _key_path(key), child
    elif field.is_repeated:
        for index, child in enumerate(getattr(message, field.name)):
            yield f"[{index}]", child
    elif message.HasField(field.name):
        yield "", getattr(message, field.name)


def _key_path(key: object) -> str:
    shown = repr(key)
    return f"[{shown if len(shown) <= _LONGEST_KEY else shown[:_LONGEST_KEY] + '…'}]"


@cache
def _nested(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Fields that hold messages with rules of their own somewhere below."""
    return tuple(field for field in descriptor.fields if _value_type(field) and _has_rules(_value_type(field), frozenset()))


def _value_type(field: FieldDescriptor) -> Descriptor | None:
    if field.message_type is None:
        return None
    if _is_map(field):
        return field.message_type.fields_by_name["value"].message_type
    return field.message_type


def _has_rules(descriptor: Descriptor | None, seen: frozenset[str]) -> bool:
    if descriptor is None or descriptor.full_name in seen or descriptor.file.package == "google.protobuf":
        return False
    below = seen | {descriptor.full_name}
    return bool(_compiled(descriptor)) or any(_has_rules(_value_type(field), below) for field in descriptor.fields)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@cache
def _caller_fields(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field_rules(field).caller_id)


def field_rules(field: FieldDescriptor) -> options_pb2.FieldRules:
    """The rules of a field; empty where the contract has none."""
    return field.GetOptions().Extensions[options_pb2.rules]


FieldCheck = Callable[[Message], Iterator[tuple[str, str]]]


@cache
def _compiled(descriptor: Descriptor) -> tuple[tuple[FieldDescriptor, FieldCheck], ...]:
    found = ((field, _field_check(field, field_rules(field))) for field in descriptor.fields)
    return tuple((field, check) for field, check in found if check is not None)


def _field_check(field: FieldDescriptor, rules: options_pb2.FieldRules) -> FieldCheck | None:
    one = _value_checks(field, rules)
    if _is_map(field):
        return _map_check(field.name, one, rules)
    if field.is_repeated:
        return _list_check(field.name, one, rules) if one or rules.ByteSize() else None
    if not one and not rules.required:
        return None
    return _single_check(field, one, rules)


def _single_check(field: FieldDescriptor, checks: Sequence[Check], rules: options_pb2.FieldRules) -> FieldCheck:
    name, has_presence = field.name, field.has_presence
    # A number without presence is always there: 0 breaks `at_least: 1`.
    always_set = not has_presence and field.type != FieldDescriptor.TYPE_STRING and not rules.required

    def check(message: Message) -> Iterator[tuple[str, str]]:
        value = getattr(message, name)
        is_set = message.HasField(name) if has_presence else always_set or bool(value)
        if not is_set:
            if rules.required:
                yield "", "is required"
            return
        for one in checks:
            if problem := one(value):
                yield "", problem

    return check


def _list_check(name: str, checks: Sequence[Check], rules: options_pb2.FieldRules) -> FieldCheck:
    def check(message: Message) -> Iterator[tuple[str, str]]:
        values = getattr(message, name)
        if rules.required and not values:
            yield "", "is required"
        if rules.max_items and len(values) > rules.max_items:
            yield "", f"has {len(values)} items, at most {rules.max_items} are allowed"
            return
        for index, value in enumerate(values):
            for one in checks:
                if problem := one(value):
                    yield f"[{index}]", problem

    return check


def _map_check(name: str, checks: Sequence[Check], rules: options_pb2.FieldRules) -> FieldCheck:
    def check(message: Message) -> Iterator[tuple[str, str]]:
        pairs = getattr(message, name)
        if rules.required and not pairs:
            yield "", "is required"
        if rules.max_items and len(pairs) > rules.max_items:
            yield "", f"has {len(pairs)} entries, at most {rules.max_items} are allowed"
            return
        for key, value in pairs.items():
            if isinstance(key, str) and (problem := _key_problem(key, rules.max_key_length)):
                yield "", f"a key {problem}"
            for one in checks:
                if problem := one(value):
                    yield _key_path(key), problem

    return check


def _key_problem(key: str, most: int) -> str | None:
    if most and not 0 < len(key) <= most:
        return f"has {len(key)} characters, 1 to {most} are allowed"
    return _no_control(key)


def _value_checks(field: FieldDescriptor, rules: options_pb2.FieldRules) -> list[Check]:
    """Checks of one value of the field: of the value itself, of a list's item, of a map's value."""
    value = field
    if field.message_type is not None and _is_map(field):
        value = field.message_type.fields_by_name["value"]
    if value.type == FieldDescriptor.TYPE_STRING:
        return list(_text_checks(rules))
    if value.message_type is not None:
        return list(_time_checks(value.message_type.full_name))
    return list(_number_checks(rules))


def _time_checks(name: str) -> Iterator[Check]:
    """Times that no clock knows would break the handler's conversion."""
    if name == _TIMESTAMP:
        yield _is_timestamp
    if name == _DURATION:
        yield _is_duration


def _is_timestamp(time: Value) -> str | None:
    is_one = _FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos <= _LAST_NANO
    return None if is_one else "must be a time between the years 1 and 9999"


def _is_duration(length: Value) -> str | None:
    has_one_sign = abs(length.nanos) <= _LAST_NANO and length.seconds * length.nanos >= 0
    is_one = abs(length.seconds) <= _LONGEST_DURATION and has_one_sign
    return None if is_one else "must be a duration of at most 10,000 years, its parts with one sign"


def _number_checks(rules: options_pb2.FieldRules) -> Iterator[Check]:
    if rules.HasField("at_least"):
        least = rules.at_least
        # Negated, so that NaN is refused.
        yield lambda value: None if value >= least else f"must be at least {least:g}"
    if rules.HasField("at_most"):
        most = rules.at_most
        yield lambda value: None if value <= most else f"must be at most {most:g}"


def _text_checks(rules: options_pb2.FieldRules) -> Iterator[Check]:
    yield _no_control
    if least := rules.min_length:
        yield lambda text: None if len(text) >= least else f"has {len(text)} characters, at least {least} are needed"
    if most := rules.max_length:
        yield lambda text: None if len(text) <= most else f"has {len(text)} characters, at most {most} are allowed"
    if rules.pattern:
        yield _pattern_check(re.compile(rules.pattern), rules.pattern_meaning)
    if allowed := list(getattr(rules, "in")):
        yield lambda text: None if text in allowed else f"must be one of {', '.join(allowed)}"
    if rules.uuid:
        yield _is_uuid
    if rules.email:
        yield lambda text: None if _EMAIL.fullmatch(text) else "must be an email address, like ana@example.com"


def _pattern_check(pattern: re.Pattern[str], meaning: str) -> Check:
    return lambda text: None if pattern.fullmatch(text) else f"may hold only {meaning}"


def _no_control(text: str) -> str | None:
    return "holds a control character (NUL, say): remove it" if CONTROL_CHARACTERS.search(text) else None


def _is_uuid(text: str) -> str | None:
    # Not uuid.UUID(), which takes braces, prefixes and foreign digits that the database refuses.
    return None if _UUID.fullmatch(text) else "must be a UUID, like 0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"
