"""The SQL of erasure: constants, nothing executed. Every statement names the user first.

Deleting goes by batches, so that no statement comes near the time that one may take.
"""

from typing import Final

import sqlalchemy as sa

_CLOCK: Final = "cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)"
_MINE: Final = "user_id = cast(:user_id as uuid)"
_HERE: Final = "(cast(:conversation_id as uuid) is null or conversation_id = cast(:conversation_id as uuid))"
_BEFORE: Final = "(cast(:before as timestamptz) is null or record_time < cast(:before as timestamptz))"

BATCH: Final = 2_000


def dropping(table: str, key: str, most: int = BATCH) -> sa.TextClause:
    """Deletes up to `most` rows of the user: repeat it while it finds some."""
    chosen = f"select {key} from {table} where {_MINE} limit {most}"  # noqa: S608 - of constants
    return sa.text(f"delete from {table} where {_MINE} and ({key}) in ({chosen})")  # noqa: S608 - of constants


# What an erasure's time covers by itself is not noted one by one.
DROP_TURNS: Final = sa.text(
    f"with gone as (delete from turns where {_MINE} and message_id in ("  # noqa: S608 - of constants
    f" select message_id from turns where {_MINE} and {_HERE} and {_BEFORE} limit :most)"
    " returning user_id, conversation_id, message_id, revision, sequence, create_time),"
    " noted as (insert into forgotten_turns (user_id, conversation_id, message_id, revision)"
    " select user_id, conversation_id, message_id, revision from gone"
    " where cast(:covered as timestamptz) is null or create_time > cast(:covered as timestamptz)"
    " on conflict (user_id, conversation_id, message_id) do update"
    " set revision = greatest(forgotten_turns.revision, excluded.revision))"
    " select cast(conversation_id as text), min(sequence) as first, count(*) as count from gone group by conversation_id"
)
"""Deletes up to `most` messages; gives the first sequence and the number of them by conversation."""

COVER_CONVERSATION: Final = sa.text(
    "insert into conversations (user_id, conversation_id, version, erase_time)"  # noqa: S608 - of constants
    f" values (:user_id, :conversation_id, {_CLOCK}, clock_timestamp())"
    " on conflict (user_id, conversation_id) do update set"
    " erase_time = greatest(conversations.erase_time, excluded.erase_time)"
    " where conversations.deleted_at is null returning erase_time"
)
"""The tombstone of a conversation whose messages are erased: what was said there until now is not taken any more."""

CUT: Final = sa.text(
    f"with cut as (update conversations set version = greatest(version + 1, {_CLOCK}),"  # noqa: S608 - of constants
    " last_sequence = least(last_sequence, lost.first - 1)"
    " from unnest(cast(:conversation_ids as uuid[]), cast(:firsts as integer[])) as lost (id, first)"
    f" where {_MINE} and conversation_id = lost.id and deleted_at is null returning user_id, conversation_id, version)"
    " insert into pending_evictions (user_id, conversation_id, version)"
    " select user_id, conversation_id, version from cut"
    " on conflict (user_id, conversation_id) do update set version = excluded.version"
    " returning cast(conversation_id as text), version"
)
"""Makes conversations end before what they lost, and owes the eviction of what the working set holds of them."""

ALL_CONVERSATIONS: Final = sa.text(f"select cast(conversation_id as text) from conversations where {_MINE}")  # noqa: S608

SKIP_EXTRACTION: Final = sa.text(
    "update conversations set extracted_sequence = greatest(extracted_sequence, ("  # noqa: S608 - of constants
    " select coalesce(max(sequence), 0) from turns where turns.user_id = conversations.user_id"
    " and turns.conversation_id = conversations.conversation_id))"
    f" where {_MINE} and {_HERE} and deleted_at is null"
)
"""Facts are learned only from what comes after the messages that there are."""

FACTS: Final = sa.text(
    f"select cast(id as text) from facts where {_MINE} and {_BEFORE} limit :most"  # noqa: S608 - of constants
)
FACTS_OF_CONVERSATION: Final = sa.text(
    f"select cast(id as text) from facts where {_MINE} and {_BEFORE} and origin in ('extracted', 'remembered')"  # noqa: S608
    " and exists (select from fact_sources here where here.user_id = facts.user_id and here.fact_id = facts.id"
    " and here.conversation_id = cast(:conversation_id as uuid))"
    " and not exists (select from fact_sources other where other.user_id = facts.user_id and other.fact_id = facts.id"
    " and other.conversation_id <> cast(:conversation_id as uuid)) limit :most"
)
"""Facts that were learned from this conversation and nothing else."""

DROP_SOURCES: Final = dropping("fact_sources", "fact_id, message_id")
DROP_EMBEDDINGS: Final = dropping("embeddings", "item_id")
DROP_SUMMARIES: Final = dropping("summaries", "scope_id")
DROP_UPKEEP: Final = dropping("upkeep", "scope_id, task")
# Lists of some thousand words go with each.
DROP_SEGMENTS: Final = dropping("segments", "last_number", 20)
DROP_EVERYTHING_MADE: Final = (DROP_SEGMENTS, DROP_EMBEDDINGS, DROP_SOURCES, DROP_SUMMARIES, DROP_UPKEEP)
"""Before the messages themselves: what goes with them by triggers is gone then. Each until there is nothing left."""
DROP_UPKEEP_OF: Final = sa.text(
    f"delete from upkeep where {_MINE} and task = any(cast(:tasks as text[]))"  # noqa: S608 - of constants
    " and (cast(:scope_id as uuid) is null or scope_id = cast(:scope_id as uuid))"
)
