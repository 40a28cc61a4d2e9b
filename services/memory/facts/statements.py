"""The SQL of facts: constants, and the values that they take. Nothing is executed here.

Invariant: every statement names the user before anything else; row-level security is the second wall. What has expired is
shown by none, swept or not. Arrays are unnested, so that one statement, prepared once, serves any number of rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from services.memory.facts.changes import Basis
from services.memory.records import Fact, Source, body_hash

_USER: Final = "user_id = cast(:user_id as uuid)"
_ALIVE: Final = "(f.expire_time is null or f.expire_time > clock_timestamp())"
_SOURCES: Final = (
    "coalesce((select json_agg(json_build_array(s.conversation_id, s.message_id) order by s.message_id)"
    " from fact_sources s where s.user_id = f.user_id and s.fact_id = f.id), '[]')"
)
COLUMNS: Final = (
    "cast(f.id as text) as id, f.body, f.subject, f.attribute, f.importance, f.stamped_by, f.origin, f.valid_from,"
    " f.valid_to, f.record_time, f.invalidate_time, cast(f.superseded_by as text) as superseded_by, f.expire_time,"
    f" {_SOURCES} as sources"
)
"""What `fact_of` takes, of facts f."""


def _sql(text: str) -> sa.TextClause:
    return sa.text(text)


CONCERNED: Final = _sql(
    f"select {COLUMNS} from facts f where f.{_USER} and (f.id = any(cast(:ids as uuid[]))"  # noqa: S608 - of constants
    " or (f.invalidate_time is null and f.body_hash = any(cast(:hashes as bytea[])))) order by f.id for update of f"
)
"""The facts that changes may concern, expired ones too."""

STATE: Final = _sql(
    "select clock_timestamp() as now, case when cast(:is_counted as boolean)"  # noqa: S608 - of constants
    f" then (select count(*) from facts where {_USER} and superseded_by is null) else 0 end as count"
)
"""The time, which grows from holder to holder of the person, and how many facts there are, versions not counted."""

MADE_BY: Final = _sql(
    "select cast(coalesce(f.superseded_by, f.id) as text) as id, f.request_digest from facts f"  # noqa: S608 - of constants
    f" where f.{_USER} and f.request_id = :request_id and {_ALIVE}"
)
"""The fact that a request made, under the id that says it now."""

HIDE: Final = _sql(
    f"update facts set invalidate_time = clock_timestamp() where {_USER} and id = any(cast(:ids as uuid[]))"  # noqa: S608
)

_WRITTEN: Final = (
    "body", "body_hash", "subject", "attribute", "importance", "stamped_by", "origin", "valid_from", "valid_to",
    "record_time", "invalidate_time", "superseded_by", "expire_time",
)  # fmt: skip
WRITE: Final = _sql(
    f"insert into facts (user_id, id, {', '.join(_WRITTEN)}) select cast(:user_id as uuid), *"  # noqa: S608 - of constants
    " from unnest(cast(:ids as uuid[]), cast(:bodies as text[]), cast(:hashes as bytea[]), cast(:subjects as text[]),"
    " cast(:attributes as text[]), cast(:importances as smallint[]), cast(:stamps as text[]), cast(:origins as text[]),"
    " cast(:froms as timestamptz[]), cast(:tos as timestamptz[]), cast(:record_times as timestamptz[]),"
    " cast(:invalidate_times as timestamptz[]), cast(:superseded_bys as uuid[]), cast(:expire_times as timestamptz[]))"
    f" on conflict (user_id, id) do update set {', '.join(f'{name} = excluded.{name}' for name in _WRITTEN)}"
)

NAME_REQUEST: Final = _sql(
    f"update facts set request_id = :request_id, request_digest = :request_digest where {_USER}"  # noqa: S608 - of constants
    " and id = cast(:id as uuid) and request_id is null"
)
"""Remembers which request made a fact. One that another request made keeps that."""

DROP_SOURCES: Final = _sql(
    f"delete from fact_sources where {_USER} and fact_id = any(cast(:fact_ids as uuid[]))"  # noqa: S608 - of constants
)
WRITE_SOURCES: Final = _sql(
    "insert into fact_sources (user_id, fact_id, conversation_id, message_id) select cast(:user_id as uuid), *"
    " from unnest(cast(:fact_ids as uuid[]), cast(:conversation_ids as uuid[]), cast(:message_ids as uuid[]))"
)

_PAIRS: Final = "unnest(cast(:olds as uuid[]), cast(:news as uuid[])) as told (old, new)"
MOVE_EMBEDDINGS: Final = _sql(
    f"update embeddings set item_id = told.new from {_PAIRS} where {_USER} and item_id = told.old"  # noqa: S608
)
INHERIT: Final = _sql(
    f"update facts set superseded_by = told.new from {_PAIRS} where {_USER} and superseded_by = told.old"  # noqa: S608
)
SHORTEN: Final = _sql(
    "update facts version set expire_time = least(version.expire_time, fact.expire_time) from facts fact"  # noqa: S608
    f" where version.{_USER} and version.superseded_by = any(cast(:ids as uuid[]))"
    " and fact.user_id = version.user_id and fact.id = version.superseded_by"
)
"""Versions are forgotten with their fact at the latest."""

OLD_VERSIONS: Final = _sql(
    "select cast(id as text) from (select id, row_number() over (partition by superseded_by"  # noqa: S608 - of constants
    f" order by invalidate_time desc, id desc) as place from facts where {_USER}"
    " and superseded_by = any(cast(:ids as uuid[]))) ranked where place > :most"
)
"""All but the latest versions of facts."""

EXPIRED: Final = _sql(f"select cast(id as text) from facts where {_USER} and expire_time <= clock_timestamp()")  # noqa: S608
NEXT_EXPIRY: Final = _sql(
    "select cast(extract(epoch from min(expire_time) - clock_timestamp()) as double precision)"  # noqa: S608 - of constants
    f" from facts where {_USER}"
)
WITH_EXPIRED: Final = _sql(
    "select distinct cast(user_id as text) from ("
    " select user_id from facts where expire_time <= clock_timestamp() order by expire_time limit :most) expired"
)
"""Users with facts that have expired: for the sweep, across users."""

ADVANCE: Final = _sql(
    "update conversations set extracted_sequence = greatest(extracted_sequence, :extracted_sequence)"  # noqa: S608
    f" where {_USER} and conversation_id = cast(:conversation_id as uuid) and deleted_at is null"
    " and case when cast(:after_sequence as integer) is null then extracted_sequence < :extracted_sequence"
    " else extracted_sequence = cast(:after_sequence as integer) end"
)
"""Holds the conversation, and notes how far facts were extracted from it; no row where another was faster."""

UNCHANGED: Final = _sql(
    "select count(*) from unnest(cast(:message_ids as uuid[]), cast(:revisions as integer[])) as told (id, revision)"  # noqa: S608
    f" join turns on turns.{_USER} and turns.message_id = told.id and turns.revision = told.revision"
    " and turns.conversation_id = cast(:conversation_id as uuid)"
)

IS_SOURCE_GONE: Final = _sql(
    f"select exists (select from turns where {_USER} and message_id = cast(:message_id as uuid)"  # noqa: S608 - of constants
    " and conversation_id <> cast(:conversation_id as uuid)) or exists (select from conversations"
    f" where {_USER} and conversation_id = cast(:conversation_id as uuid)"
    " and (deleted_at is not null or erase_time >= cast(:write_time as timestamptz)))"
    f" or (exists (select from forgotten_turns where {_USER} and conversation_id = cast(:conversation_id as uuid)"
    f" and message_id = cast(:message_id as uuid)) and not exists (select from turns where {_USER}"
    " and message_id = cast(:message_id as uuid)))"
)
"""Whether a message was deleted, with what was said in its conversation or by an edit, or is another conversation's."""

READ: Final = _sql(
    f"select {COLUMNS} from facts f where f.{_USER} and f.id = cast(:id as uuid) and {_ALIVE}"  # noqa: S608 - of constants
)

FIND: Final = _sql(
    f"select {COLUMNS}, t.message_id is not null as is_message, cast(t.message_id as text) as message_id,"  # noqa: S608
    " cast(t.conversation_id as text) as conversation_id, t.sequence, t.role, t.body as message_body, t.revision,"
    " t.create_time, t.token_count, t.record_time as message_record_time"
    f" from (select) one left join facts f on f.{_USER} and f.id = cast(:id as uuid) and {_ALIVE}"
    f" left join turns t on t.{_USER} and t.message_id = cast(:id as uuid)"
)
"""A fact or a message, by its id: one row, of nothing where there is neither."""

LIST: Final = _sql(
    f"select {COLUMNS} from facts f where f.{_USER} and f.superseded_by is null and {_ALIVE}"  # noqa: S608 - of constants
    " and (cast(:include_closed as boolean) or f.invalidate_time is null)"
    " and (cast(:subject as text) = '' or lower(f.subject) = lower(cast(:subject as text)))"
    " and (cast(:after_time as timestamptz) is null"
    " or (f.record_time, f.id) < (cast(:after_time as timestamptz), cast(:after_id as uuid)))"
    " order by f.record_time desc, f.id desc limit :most"
)

HISTORY: Final = _sql(
    f"select {COLUMNS} from facts fact left join lateral ("  # noqa: S608 - of constants
    f" select * from facts v where v.{_USER} and v.superseded_by = fact.id"
    " and (v.expire_time is null or v.expire_time > clock_timestamp())"
    " and (cast(:after_time as timestamptz) is null"
    " or (v.invalidate_time, v.id) < (cast(:after_time as timestamptz), cast(:after_id as uuid)))"
    " order by v.invalidate_time desc, v.id desc limit :most) f on true"
    f" where fact.{_USER} and fact.id = cast(:id as uuid)"
    " and (fact.expire_time is null or fact.expire_time > clock_timestamp())"
    " order by f.invalidate_time desc, f.id desc"
)
"""The versions of a fact; one row of nothing where it has none, no row where there is no such fact."""

LIVE: Final = _sql(
    f"select {COLUMNS} from facts f where f.{_USER} and f.invalidate_time is null and {_ALIVE}"  # noqa: S608 - of constants
    " order by f.importance desc, f.record_time desc, f.id desc limit :most"
)

# Any word of the text, quoted as to_tsquery's own syntax wants it. A text without words is like nothing.
_WORDS: Final = (
    "(select cast(string_agg('''' || replace(replace(word, '\\', '\\\\'), '''', '''''') || '''', ' | ') as tsquery) as words"
    " from unnest(tsvector_to_array(lexemes_of(:text))) as word)"
)
SIMILAR: Final = _sql(
    f"select {COLUMNS} from facts f, {_WORDS} asked where f.{_USER} and f.invalidate_time is null and {_ALIVE}"  # noqa: S608
    " and f.lexemes @@ asked.words order by ts_rank(f.lexemes, asked.words) desc, f.record_time desc, f.id desc limit :most"
)


def fact_of(row: Mapping[Any, Any]) -> Fact:
    """A fact, of COLUMNS."""
    return Fact(
        id=row["id"],
        text=row["body"],
        subject=row["subject"],
        attribute=row["attribute"],
        importance=row["importance"],
        stamped_by=row["stamped_by"],
        origin=row["origin"],
        valid_from=row["valid_from"],
        valid_to=row["valid_to"],
        record_time=row["record_time"],
        invalidate_time=row["invalidate_time"],
        superseded_by=row["superseded_by"],
        expire_time=row["expire_time"],
        sources=tuple(Source(*pair) for pair in row["sources"]),
    )


def of_facts(facts: Sequence[Fact]) -> dict[str, list[Any]]:
    """Facts, as WRITE takes them."""
    return {
        "ids": [fact.id for fact in facts],
        "bodies": [fact.text for fact in facts],
        "hashes": [body_hash(fact.text) for fact in facts],
        "subjects": [fact.subject for fact in facts],
        "attributes": [fact.attribute for fact in facts],
        "importances": [fact.importance for fact in facts],
        "stamps": [fact.stamped_by for fact in facts],
        "origins": [fact.origin for fact in facts],
        "froms": [fact.valid_from for fact in facts],
        "tos": [fact.valid_to for fact in facts],
        "record_times": [fact.record_time for fact in facts],
        "invalidate_times": [fact.invalidate_time for fact in facts],
        "superseded_bys": [fact.superseded_by for fact in facts],
        "expire_times": [fact.expire_time for fact in facts],
    }


def of_sources(facts: Sequence[Fact]) -> dict[str, list[Any]]:
    """The sources of facts, as WRITE_SOURCES takes them."""
    pairs = [(fact.id, source) for fact in facts for source in fact.sources]
    return {
        "fact_ids": [fact_id for fact_id, _ in pairs],
        "conversation_ids": [source.conversation_id for _, source in pairs],
        "message_ids": [source.message_id for _, source in pairs],
    }


def of_pairs(pairs: Mapping[str, str]) -> dict[str, list[Any]]:
    """Old ids and new ones, as MOVE_EMBEDDINGS and INHERIT take them."""
    return {"olds": list(pairs), "news": list(pairs.values())}


def of_basis(basis: Basis) -> dict[str, Any]:
    """What ADVANCE and UNCHANGED take."""
    return {
        "conversation_id": basis.conversation_id,
        "message_ids": list(basis.messages),
        "revisions": list(basis.messages.values()),
        "extracted_sequence": basis.extracted_sequence,
        "after_sequence": basis.after_sequence,
    }
