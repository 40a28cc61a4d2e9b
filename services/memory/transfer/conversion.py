"""Records of the contract, and the values that they stand for.

Owns the conversion, both ways, and the rules of an import that no field rule can say: each message, place and fact once in a
request; nothing from the future; an earlier version names when it ended.
"""

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2
from services.memory.facts.changes import DEFAULT_IMPORTANCE, DEFAULT_SUBJECT
from services.memory.messages import timestamp, told_message, turn_of_message
from services.memory.records import Fact, Source, Stamp
from services.memory.transfer.records import SaidMessage, ToldFact, ToldMessage
from services.runtime.errors import FieldViolation, invalid_request

# Clocks differ.
_LEEWAY: Final = timedelta(minutes=5)
# More would not fit what a client takes of an error.
_MOST_VIOLATIONS: Final = 10

Told = tuple[Sequence[ToldMessage], Sequence[ToldFact]]


def record_of_message(said: SaidMessage) -> memory_pb2.MemoryRecord:
    """A message, as it is exported."""
    record = memory_pb2.MessageRecord(conversation_id=said.conversation_id, message=told_message(said.turn))
    return memory_pb2.MemoryRecord(message=record)


def record_of_fact(fact: Fact) -> memory_pb2.MemoryRecord:
    """A fact, as it is exported."""
    record = memory_pb2.FactRecord(
        id=fact.id,
        text=fact.text,
        subject=fact.subject,
        attribute=fact.attribute,
        importance=fact.importance,
        stamped_by=fact.stamped_by,
        valid_from_time=timestamp(fact.valid_from),
        valid_to_time=timestamp(fact.valid_to),
        record_time=timestamp(fact.record_time),
        invalidate_time=timestamp(fact.invalidate_time),
        superseded_by=fact.superseded_by or "",
        expire_time=timestamp(fact.expire_time),
        sources=[
            memory_pb2.MemorySource(conversation_id=one.conversation_id, message_id=one.message_id) for one in fact.sources
        ],
    )
    return memory_pb2.MemoryRecord(fact=record)


def told(records: Sequence[memory_pb2.MemoryRecord]) -> Told:
    """What an import tells; the end of an export is looked over. Raises InvalidArgument, naming the fields at fault."""
    now = datetime.now(UTC)
    messages, facts, violations = list[ToldMessage](), list[ToldFact](), list[FieldViolation]()
    for index, record in enumerate(records):
        field, kind = f"records[{index}]", record.WhichOneof("record")
        if kind == "message":
            messages.append(ToldMessage(f"{field}.message", _said(record.message)))
        elif kind == "fact":
            fact = ToldFact(f"{field}.fact", _fact(record.fact, now))
            violations += _fact_problems(fact, now)
            facts.append(fact)
        elif kind is None:
            violations.append(FieldViolation(field, "holds nothing: name a message or a fact"))
    violations += [*_message_problems(messages, now), *_repeated_facts(facts)]
    if violations:
        raise invalid_request(violations[:_MOST_VIOLATIONS])
    return messages, facts


def _message_problems(messages: Sequence[ToldMessage], now: datetime) -> Iterator[FieldViolation]:
    ids, places = set[str](), set[tuple[str, int]]()
    for one in messages:
        turn, place = one.said.turn, (one.said.conversation_id, one.said.turn.sequence)
        if turn.message_id in ids:
            yield FieldViolation(f"{one.field}.message.message_id", "is that of another message in this request")
        if place in places:
            yield FieldViolation(f"{one.field}.message.sequence", "is that of another message in this request")
        if turn.create_time > now + _LEEWAY:
            yield FieldViolation(f"{one.field}.message.create_time", "lies in the future")
        ids.add(turn.message_id)
        places.add(place)


def _repeated_facts(facts: Sequence[ToldFact]) -> Iterator[FieldViolation]:
    ids = set[str]()
    for one in facts:
        if one.fact.id in ids:
            yield FieldViolation(f"{one.field}.id", "is that of another fact in this request")
        ids.add(one.fact.id)


def _fact_problems(told: ToldFact, now: datetime) -> Iterator[FieldViolation]:
    fact, field = told.fact, told.field
    if not fact.text.strip():
        yield FieldViolation(f"{field}.text", "is blank")
    if fact.superseded_by is not None and fact.invalidate_time is None:
        yield FieldViolation(f"{field}.invalidate_time", "is required of a version that another superseded")
    if fact.superseded_by == fact.id:
        yield FieldViolation(f"{field}.superseded_by", "names the fact itself")
    if fact.valid_from is not None and fact.valid_to is not None and fact.valid_from > fact.valid_to:
        yield FieldViolation(f"{field}.valid_to_time", "lies before valid_from_time")
    if fact.record_time > now + _LEEWAY:
        yield FieldViolation(f"{field}.record_time", "lies in the future")
    if fact.invalidate_time is not None and fact.invalidate_time > now + _LEEWAY:
        yield FieldViolation(f"{field}.invalidate_time", "lies in the future")


def _said(record: memory_pb2.MessageRecord) -> SaidMessage:
    return SaidMessage(str(uuid.UUID(record.conversation_id)), turn_of_message(record.message))


def _fact(record: memory_pb2.FactRecord, now: datetime) -> Fact:
    sources = [Source(str(uuid.UUID(one.conversation_id)), str(uuid.UUID(one.message_id))) for one in record.sources]
    return Fact(
        id=str(uuid.UUID(record.id)),
        text=record.text,
        subject=record.subject or DEFAULT_SUBJECT,
        attribute=record.attribute,
        importance=record.importance or DEFAULT_IMPORTANCE,
        stamped_by=cast(Stamp, record.stamped_by or "user"),
        origin="imported",
        valid_from=_time(record, "valid_from_time"),
        valid_to=_time(record, "valid_to_time"),
        record_time=_time(record, "record_time") or now,
        invalidate_time=_time(record, "invalidate_time"),
        superseded_by=str(uuid.UUID(record.superseded_by)) if record.superseded_by else None,
        expire_time=_time(record, "expire_time"),
        # One message is one source, however often it is named.
        sources=list({source.message_id: source for source in sources}.values()),
    )


def _time(record: memory_pb2.FactRecord, name: str) -> datetime | None:
    if not record.HasField(name):  # type: ignore[arg-type] # the stub knows the fields by their literal names
        return None
    time: Timestamp = getattr(record, name)
    return time.ToDatetime(tzinfo=UTC)
