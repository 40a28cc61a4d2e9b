"""The SQL of a search: two rankings, and the rows of those who won.

Owns the exact scans of one user's own rows, by btree: under row-level security no index of words can serve, and an index of
vectors for all users would find somebody else's neighbours first (one such over a million rows found a fifth of what an
exact scan finds). Nothing here goes row by row where a constant number of expressions will do: a scan of ten thousand
memories must be done in some ten milliseconds.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import sqlalchemy as sa

from services.memory.embedding.pieces import MOST_PIECES

MOST_WORDS: Final = 24
"""Distinct words of a query that are searched for. Each costs a look at each memory."""
WORD_COUNTS: Final = (4, 8, 12, 16, MOST_WORDS)
"""For so many words there are statements: a place that is not needed still costs a little, in each row."""
MOST_SOURCES: Final = 20
"""Messages that one fact votes for."""

# Okapi BM25. Found on ten long dialogues; close to what is usual.
_K1: Final = "0.9::float8"
_B: Final = "0.4::float8"
# Several selects of a piece would each unpack them all; one that stands outside of its row is unpacked once instead.
_NEAREST_PIECE: Final = (
    "case when pieces is null then null"  # noqa: S608 - of constants, here and below
    " when pg_column_toast_chunk_id(pieces) is null then least("
    + ", ".join(f"pieces[{piece}] <#> cast(:vector as halfvec)" for piece in range(1, MOST_PIECES + 1))
    + ") else (select min(piece <#> cast(:vector as halfvec)) from unnest(pieces) as piece) end"
)
_IS_LIVE: Final = "(facts.expire_time is null or facts.expire_time > now())"
_SOURCES: Final = (
    "array(select cast(source.conversation_id as text) || ':' || source.sequence from fact_sources"  # noqa: S608
    " join turns source on source.user_id = fact_sources.user_id and source.message_id = fact_sources.message_id"
    " where fact_sources.user_id = :user_id and fact_sources.fact_id = best.id"
    f" order by fact_sources.message_id limit {MOST_SOURCES})"
)
_NO_PLACE: Final = "cast(null as uuid) as conversation_id, cast(null as integer) as sequence"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a search looks at: the statement is another for each."""

    messages: bool = True
    in_conversation: bool = False
    superseded: bool = False
    excluding: bool = False
    in_window: bool = False


@cache
def by_words(scope: Scope, words: int) -> sa.TextClause:
    """Ranks by BM25, messages and facts as one body of texts; by at most `words` words, one of WORD_COUNTS.

    Takes user_id, query, depth, and what the scope needs: conversation_id, excluded, start and end. Rows: leg (`words`, or
    `recent`: the latest of the window), is_message, id, place, score, moment, sources, is_embedded.
    """
    slots = range(1, words + 1)
    hits = f"select is_message, id, conversation_id, sequence, moment, {_score(slots)} as score from docs cross join corpus"  # noqa: S608
    is_hit = f"coalesce({_each('f{}', slots)}) is not null"
    recent = (
        " union all (select 'recent', is_message, cast(id as text), cast(conversation_id as text), sequence, moment,"
        " extract(epoch from moment)::float8, array[]::text[], true from docs"
        " where is_message and moment >= :start and moment < :end order by moment desc limit :depth)"
    )
    return sa.text(
        f"with {_asked(slots)}, docs as materialized ({_docs(scope, slots)}), {_corpus(slots)},"  # noqa: S608
        f" best as materialized (({hits} where is_message and {is_hit} order by score desc, id limit :depth)"
        f" union all ({hits} where not is_message and {is_hit} order by score desc, id limit :depth))"
        " select 'words' as leg, is_message, cast(id as text), cast(conversation_id as text), sequence, moment, score,"
        f" case when is_message then array[]::text[] else {_SOURCES} end as sources,"
        " exists (select from embeddings where embeddings.user_id = :user_id and item_id = best.id) as is_embedded from best"
        f"{recent if scope.in_window else ''}"
    )


def _each(template: str, slots: range, between: str = ", ") -> str:
    return between.join(template.replace("{}", str(slot)) for slot in slots)


def _asked(slots: range) -> str:
    """One row of the words: those that are said most often, then the longest, which tell the most."""
    return (
        "terms as materialized (select '''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''' as term"  # noqa: S608
        " from unnest(lexemes_of(:query)) order by cardinality(positions) desc, length(lexeme) desc, lexeme"
        f" limit {len(slots)}),"
        f" asked as materialized (select {_each('(array_agg(term))[{}]::tsquery as t{}', slots)} from terms)"
    )


def _docs(scope: Scope, slots: range) -> str:
    """Each text with its length, and how often each word stands in it.

    Counted in C: taking a tsvector apart costs a microsecond a word. With weights of 1, ts_rank of one word is the sum of
    1/i² for i up to its count, over that of all i; what is missing to 1 is nearly 0.6079 / (count + 0.5).
    """
    counts = _each(
        "case when lexemes @@ t{} then"
        " round((0.6079271::float8 / (1 - ts_rank('{1,1,1,1}', lexemes, t{}))) - 0.5::float8) end as f{}",
        slots,
    )
    # Without a word there is nothing to scan, unless for the time.
    condition = "" if scope.in_window else " and asked.t1 is not null"
    facts = (
        f"select false as is_message, facts.id, {_NO_PLACE}, coalesce(valid_from, record_time) as moment,"  # noqa: S608
        f" length(lexemes)::float8 as length, {counts}"
        f" from asked cross join facts where facts.user_id = :user_id{_fact_conditions(scope)}{condition}"
    )
    messages = (
        f"select true, message_id, conversation_id, sequence, create_time, length(lexemes)::float8, {counts}"  # noqa: S608
        f" from asked cross join turns where turns.user_id = :user_id and token_count > 0"
        f"{_turn_conditions(scope, 'turns.message_id')}{condition}"
    )
    return f"{facts} union all {messages}" if scope.messages else facts


def _corpus(slots: range) -> str:
    weight = f"ln(1 + (count(*) - count(f{{}}) + 0.5::float8) / (count(f{{}}) + 0.5::float8)) * (1 + {_K1}) as w{{}}"
    return (
        f"corpus as materialized (select {_K1} * (1 - {_B}) as flat, {_K1} * {_B} / greatest(avg(length), 1) as slope,"  # noqa: S608
        f" {_each(weight, slots)} from docs)"
    )


def _score(slots: range) -> str:
    return _each("coalesce(w{} * f{} / (f{} + flat + slope * length), 0)", slots, " + ")


@cache
def by_meaning(scope: Scope) -> sa.TextClause:
    """Ranks by the nearer of the whole and its pieces; vectors have length 1.

    Takes user_id, vector, model, depth, and what the scope needs. Rows as of `by_words`, all embedded.
    """
    mine = f"-least(body <#> cast(:vector as halfvec), {_NEAREST_PIECE}) as score from embeddings"
    mine += " where embeddings.user_id = :user_id and model = :model"
    place = " and conversation_id = :conversation_id" if scope.in_conversation else ""
    messages = (
        f"messages as materialized (select item_id, conversation_id, sequence, {mine} and kind = 'turn'"
        f"{place}{_excluded(scope, 'item_id')} order by score desc, item_id limit :depth), "
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
        f" where true{_fact_conditions(scope)} order by score desc, facts.id limit :depth)"
        f" {messages_found if scope.messages else ''}"
        "select 'meaning' as leg, false as is_message, cast(id as text) as id, cast(null as text) as conversation_id,"
        f" cast(null as integer) as sequence, moment, score, {_SOURCES} as sources,"
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
        f" and turns.sequence = wanted.sequence and turns.token_count > 0{_excluded(scope, 'turns.message_id')}"
        f" left join facts on facts.user_id = :user_id and facts.id = wanted.fact_id and {_IS_LIVE}"
        f"{'' if scope.superseded else ' and facts.invalidate_time is null'}"
        " where turns.message_id is not null or facts.id is not null order by wanted.ordinal"
    )


def _turn_conditions(scope: Scope, id_column: str) -> str:
    place = " and conversation_id = :conversation_id" if scope.in_conversation else ""
    return place + _excluded(scope, id_column)


def _fact_conditions(scope: Scope) -> str:
    current = "" if scope.superseded else " and facts.invalidate_time is null"
    learned_here = (
        " and exists (select from fact_sources where fact_sources.user_id = :user_id and fact_sources.fact_id = facts.id"
        " and fact_sources.conversation_id = :conversation_id)"
        if scope.in_conversation
        else ""
    )
    return f" and {_IS_LIVE}{current}{learned_here}"


def _excluded(scope: Scope, id_column: str) -> str:
    return f" and {id_column} <> all(cast(:excluded as uuid[]))" if scope.excluding else ""
