"""The SQL of a search: the ranking by meaning, and the rows of those who won; that by words stands in word_statements.py.

Owns the exact scan of one user's own vectors, by btree: an index of vectors for all users would find somebody else's
neighbours first (one such over a million rows found a fifth of what an exact scan finds). Nothing here goes row by row where
a constant number of expressions will do: a scan of ten thousand memories must be done in some ten milliseconds.
"""

from functools import cache
from typing import Final

import sqlalchemy as sa

from services.memory.embedding.pieces import MOST_PIECES
from services.memory.recall.scope import IS_LIVE, SOURCES, Scope

# Several selects of a piece would each unpack them all; one that stands outside of its row is unpacked once instead.
_NEAREST_PIECE: Final = (
    "case when pieces is null then null"  # noqa: S608 - of constants, here and below
    " when pg_column_toast_chunk_id(pieces) is null then least("
    + ", ".join(f"pieces[{piece}] <#> cast(:vector as halfvec)" for piece in range(1, MOST_PIECES + 1))
    + ") else (select min(piece <#> cast(:vector as halfvec)) from unnest(pieces) as piece) end"
)


@cache
def by_meaning(scope: Scope) -> sa.TextClause:
    """Ranks by the nearer of the whole and its pieces; vectors have length 1.

    Takes user_id, vector, model, depth, and what the scope needs. Rows as of `by_words`, all embedded.
    """
    mine = f"-least(body <#> cast(:vector as halfvec), {_NEAREST_PIECE}) as score from embeddings"
    mine += " where embeddings.user_id = :user_id and model = :model"
    place = " and conversation_id = :conversation_id" if scope.in_conversation else ""
    messages = (
        f"messages as materialized (select item_id, conversation_id, sequence, {mine} and conversation_id is not null"
        f"{place}{scope.without('item_id')} order by score desc, item_id limit :depth), "
    )
    messages_found = (
        "select 'meaning' as leg, true as is_message, cast(item_id as text) as id,"
        " cast(messages.conversation_id as text) as conversation_id, messages.sequence, create_time as moment, score,"
        " array[]::text[] as sources, true as is_embedded"
        " from messages join turns on turns.user_id = :user_id and message_id = item_id"
        " where token_count > 0 union all "
    )
    # The rows go from the scan into the sort, which keeps the best: ten thousand kept for another look cost half as much
    # again. Facts, which have no conversation, have a place of their own in the index.
    return sa.text(
        f"with {messages if scope.messages else ''}"  # noqa: S608 - of constants
        f"near as materialized (select item_id, {mine} and conversation_id is null),"
        " best as materialized (select facts.id, coalesce(valid_from, record_time) as moment, score"
        " from near join facts on facts.user_id = :user_id and facts.id = near.item_id"
        f" where true{scope.of_facts} order by score desc, facts.id limit :depth)"
        f" {messages_found if scope.messages else ''}"
        "select 'meaning' as leg, false as is_message, cast(id as text) as id, cast(null as text) as conversation_id,"
        f" cast(null as integer) as sequence, moment, score, {SOURCES} as sources,"
        " true as is_embedded from best"
    )


@cache
def rows(scope: Scope) -> sa.TextClause:
    """What stands at places and under ids of facts; a place or an id that is not there (any more) gives no row.

    Takes user_id, ordinals, conversation_ids, sequences, fact_ids, of equal length, and `excluded` where the scope has it.
    """
    return sa.text(
        "select wanted.ordinal, cast(turns.message_id as text) as message_id, turns.role, turns.body, turns.revision,"  # noqa: S608
        " turns.create_time, turns.token_count, turns.record_time, cast(facts.id as text) as fact_id,"
        " facts.body as fact_body, facts.subject, facts.attribute, facts.importance, facts.stamped_by, facts.origin,"
        " facts.valid_from, facts.valid_to, facts.record_time as fact_record_time, facts.invalidate_time,"
        " cast(facts.superseded_by as text) as superseded_by, facts.expire_time,"
        " array(select cast(conversation_id as text) || ':' || cast(message_id as text) from fact_sources"
        " where fact_sources.user_id = :user_id and fact_sources.fact_id = facts.id order by message_id) as sources"
        " from unnest(cast(:ordinals as integer[]), cast(:conversation_ids as uuid[]), cast(:sequences as bigint[]),"
        " cast(:fact_ids as uuid[])) as wanted (ordinal, conversation_id, sequence, fact_id)"
        " left join turns on turns.user_id = :user_id and turns.conversation_id = wanted.conversation_id"
        f" and turns.sequence = wanted.sequence and turns.token_count > 0{scope.without('turns.message_id')}"
        f" left join facts on facts.user_id = :user_id and facts.id = wanted.fact_id and {IS_LIVE}"
        f"{'' if scope.superseded else ' and facts.invalidate_time is null'}"
        " where turns.message_id is not null or facts.id is not null order by wanted.ordinal"
    )
