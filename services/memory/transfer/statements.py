"""The SQL of export and import: constants, nothing executed. Every statement names the user first."""

from typing import Final

import sqlalchemy as sa

from services.memory.facts.statements import COLUMNS

_MINE: Final = "user_id = cast(:user_id as uuid)"

MESSAGES: Final = sa.text(
    "select cast(conversation_id as text), cast(message_id as text), sequence, role, body, revision, create_time,"  # noqa: S608
    " token_count from (select *, sum(octet_length(body)) over (order by conversation_id, sequence) - octet_length(body)"
    f" as before from (select * from turns where {_MINE}"
    " and (conversation_id, sequence) > (cast(:conversation_id as uuid), :sequence)"
    " order by conversation_id, sequence limit :most) page) sized where before < :most_bytes"
    " order by conversation_id, sequence"
)
"""The messages after a place, in their order: at most so many, and none behind so many bytes."""

FACTS: Final = sa.text(
    f"select {COLUMNS} from facts f where f.{_MINE} and (f.superseded_by is not null) = :is_version"  # noqa: S608
    " and (f.expire_time is null or f.expire_time > now()) and f.id > cast(:after_id as uuid) order by f.id limit :most"
)
"""Facts, or versions of facts, after an id."""

COUNT_MESSAGES: Final = sa.text(f"select count(*) from turns where {_MINE}")  # noqa: S608 - of constants
COUNT_FACTS: Final = sa.text(f"select count(*) from facts where {_MINE} and superseded_by is null")  # noqa: S608

NOT_TO_EXTRACT: Final = sa.text(
    "update conversations set extracted_sequence = greatest(extracted_sequence, told.last)"  # noqa: S608 - of constants
    " from unnest(cast(:conversation_ids as uuid[]), cast(:firsts as integer[]), cast(:lasts as integer[]))"
    " as told (id, first, last)"
    f" where {_MINE} and conversation_id = told.id and extracted_sequence >= told.first - 1"
)
"""What was imported was learned from where it was said; unless messages before it wait."""

KNOWN_FACTS: Final = sa.text(
    "select cast(id as text), cast(superseded_by as text), body_hash, invalidate_time is null as is_current from facts"  # noqa: S608
    f" where {_MINE} and (id = any(cast(:ids as uuid[]))"
    " or (invalidate_time is null and body_hash = any(cast(:hashes as bytea[]))))"
)
KNOWN_MESSAGES: Final = sa.text(
    "select cast(turns.conversation_id as text), cast(turns.message_id as text) from turns"  # noqa: S608 - of constants
    " join unnest(cast(:conversation_ids as uuid[]), cast(:message_ids as uuid[])) as told (conversation_id, message_id)"
    f" using (conversation_id, message_id) where turns.{_MINE}"
)
