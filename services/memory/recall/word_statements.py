"""The SQL of the ranking by words: Okapi BM25 over messages and facts as one body of texts.

Under row-level security no index of words can serve. Who has said much has lists by word (services/memory/postings), which a
btree finds: of those messages only the ones with a word of the query are read. What is in no list is looked at one by one:
the latest messages, all of who has said little, one conversation, and facts. Invariant: the scores are the same wherever a
text stands, to the last bit, so that the lists change what a search costs and nothing else.
"""

from functools import cache
from typing import Final

import sqlalchemy as sa

from services.memory.postings.statements import COUNT, LENGTH, NUMBER
from services.memory.recall.scope import SOURCES, Scope

MOST_WORDS: Final = 24
"""Distinct words of a query that are searched for. Each costs a look at each memory that is in no list."""
WORD_COUNTS: Final = (4, 8, 12, 16, MOST_WORDS)
"""For so many words there are statements: a place that is not needed still costs a little, in each row."""

HAS_LISTS: Final = sa.text("select exists (select from segments where user_id = :user_id)")
"""Whether anything that a user said may stand in lists: else the statement without them costs half as much to plan."""

# Okapi BM25. Found on ten long dialogues; close to what is usual.
_K1: Final = "0.9::float8"
_B: Final = "0.4::float8"
_NO_PLACE: Final = "cast(null as uuid) as conversation_id, cast(null as integer) as sequence"
_FOUND: Final = "id, conversation_id, sequence, moment"
_OF_TURN: Final = "message_id as id, turns.conversation_id, sequence, create_time as moment"
# In a select of its own, so that each is looked up: as a condition it is answered by reading all that are embedded.
_IS_EMBEDDED: Final = (
    "coalesce((select true from embeddings where embeddings.user_id = :user_id and item_id = best.id), false) as is_embedded"
)


@cache
def by_words(scope: Scope, words: int) -> sa.TextClause:
    """Ranks by at most `words` words, one of WORD_COUNTS.

    Takes user_id, query, depth, and what the scope needs: conversation_id, excluded, start and end. Rows: leg (`words`;
    `recent`: the latest of the window; `looked_at`: one row, whose score is how many messages were looked at one by one),
    is_message, id, place, score, moment, sources, is_embedded.
    """
    slots = range(1, words + 1)
    lists = [_unlisted(), *_listed(scope, slots)] if scope.reads_lists else []
    parts = [*_asked(slots), *lists, _docs(scope, slots), _corpus(scope, slots), _best(scope, slots)]
    return sa.text(
        f"with {', '.join(parts)}"  # noqa: S608 - of constants, here and below
        " select 'words' as leg, is_message, cast(id as text), cast(conversation_id as text), sequence, moment, score,"
        f" case when is_message then array[]::text[] else {SOURCES} end as sources, {_IS_EMBEDDED} from best"
        " union all select 'looked_at', true, null, null, null, null, count(*)::float8, null, true from docs"
        " where is_message"
        f"{_recent(scope) if scope.in_window else ''}"
    )


def _each(template: str, slots: range, between: str = ", ") -> str:
    return between.join(template.replace("{}", str(slot)) for slot in slots)


def _asked(slots: range) -> list[str]:
    """The words, those that are said most often first, then the longest, which tell the most; and one row of them."""
    words = (
        "select lexeme, row_number() over (order by cardinality(positions) desc, length(lexeme) desc, lexeme) as slot"  # noqa: S608
        f" from unnest(lexemes_of(:query)) order by slot limit {len(slots)}"
    )
    terms = "select '''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''' as term, slot from words"
    each = _each("(array_agg(term order by slot))[{}]::tsquery as t{}", slots)
    return [
        f"words as materialized ({words})",
        f"terms as ({terms})",
        f"asked as materialized (select {each} from terms)",  # noqa: S608
    ]


def _docs(scope: Scope, slots: range) -> str:
    """Each text that is in no list with its length, and how often each word stands in it.

    Counted in C: taking a tsvector apart costs a microsecond a word. With weights of 1, ts_rank of one word is the sum of
    1/i² for i up to its count, over that of all i; what is missing to 1 is nearly 0.6079 / (count + 0.5).
    """
    counts = _each(
        "case when lexemes @@ t{} then"
        " round((0.6079271::float8 / (1 - ts_rank('{1,1,1,1}', lexemes, t{}))) - 0.5::float8) end as f{}",
        slots,
    )
    # Without a word there is nothing to look at.
    facts = (
        f"select false as is_message, facts.id, {_NO_PLACE}, coalesce(valid_from, record_time) as moment,"  # noqa: S608
        f" length(lexemes)::float8 as length, {counts}"
        f" from asked cross join facts where facts.user_id = :user_id{scope.of_facts} and asked.t1 is not null"
    )
    messages = [
        f" union all select true, {_OF_TURN}, length(lexemes)::float8, {counts} from asked cross join {source}"  # noqa: S608
        f" and turns.user_id = :user_id and token_count > 0{scope.of_turns} and asked.t1 is not null"
        for source in _looked_at(scope)
    ]
    return f"docs as materialized ({facts}{''.join(messages)})"


def _looked_at(scope: Scope) -> list[str]:
    """The messages that are looked at one by one, as the ends of as many statements."""
    if not scope.messages:
        return []
    if not scope.reads_lists:
        return ["turns where true"]
    # Those of runs without lists; and those from before there were numbers.
    return [
        "unlisted join turns on turns.number between first_number and last_number where true",
        "turns where number is null",
    ]


def _unlisted() -> str:
    """The runs of messages that are in no list: behind all segments, and of segments that have none."""
    return (
        "unlisted as materialized (select coalesce(max(last_number), 0) + 1 as first_number,"
        " 9223372036854775807 as last_number from segments where user_id = :user_id"
        " union all select first_number, last_number from segments where user_id = :user_id and not is_built)"
    )


def _listed(scope: Scope, slots: range) -> list[str]:
    """The messages in lists with a word of the query, by their numbers, with the same columns as those that are looked at.

    What is excluded counts neither there nor among all of them. `offset 0`: each list is looked up by itself, also while the
    planner knows the table as it was before it grew; reading all lists of the user costs a hundred times as much.
    """
    excluded = (
        "select turns.number, length(lexemes) as length from segments join turns"
        " on turns.number between first_number and last_number where segments.user_id = :user_id and is_built"
        " and turns.user_id = :user_id and token_count > 0 and turns.message_id = any(cast(:excluded as uuid[]))"
        if scope.excluding
        else "select cast(null as bigint) as number, 0 as length where false"
    )
    counts = _each(f"max(case when slot = {{}} then {COUNT} end)::float8 as f{{}}", slots)
    entries = (
        "select first_number, slot, unnest(entries) as entry from segments cross join words cross join lateral"
        " (select entries from postings where user_id = :user_id and segment = last_number and word = lexeme offset 0) list"
        " where segments.user_id = :user_id and is_built"
    )
    totals = (
        "select coalesce(sum(message_count), 0)::bigint - (select count(*) from excluded) as listed_count,"
        " coalesce(sum(length_total), 0)::bigint - (select coalesce(sum(length), 0) from excluded) as listed_length"
        " from segments where segments.user_id = :user_id and is_built"
    )
    listed = (
        f"select first_number + {NUMBER} as number, max({LENGTH})::float8 as length, {counts}"  # noqa: S608
        f" from ({entries}) found where first_number + {NUMBER} <> all(array(select number from excluded)) group by 1"
    )
    return [
        f"excluded as materialized ({excluded})",
        f"totals as materialized ({totals})",
        f"listed as materialized ({listed})",
    ]


def _corpus(scope: Scope, slots: range) -> str:
    """How many texts there are, how long they are, and what each word weighs, which is less the more texts have it."""
    number, length, holders = "doc_count", "doc_length", "n{}"
    source = (
        "(select count(*) as doc_count, coalesce(sum(length), 0) as doc_length,"  # noqa: S608
        f" {_each('count(f{}) as n{}', slots)} from docs) looked_at"
    )
    if scope.reads_lists:
        number, length, holders = "(doc_count + listed_count)", "(doc_length + listed_length)", "(n{} + m{})"
        source += (
            f" cross join (select listed_count, listed_length, {_each('count(f{}) as m{}', slots)}"  # noqa: S608
            " from totals left join listed on true group by listed_count, listed_length) in_lists"
        )
    weight = f"ln(1 + (({number} - {holders}) + 0.5::float8) / ({holders} + 0.5::float8)) * (1 + {_K1}) as w{{}}"
    mean = f"{length}::float8 / nullif({number}, 0)::float8"
    return (
        f"corpus as materialized (select {_K1} * (1 - {_B}) as flat, {_K1} * {_B} / greatest({mean}, 1) as slope,"  # noqa: S608
        f" {_each(weight, slots)} from {source})"
    )


def _best(scope: Scope, slots: range) -> str:
    """The best messages and the best facts.

    Of messages in lists, whose ids are not there, as many are looked up as are wanted, and what is as good as the last.
    """
    best = "order by score desc, id limit :depth"
    score = _each("coalesce(w{} * f{} / (f{} + flat + slope * length), 0)", slots, " + ") + " as score"
    is_hit = f"coalesce({_each('f{}', slots)}) is not null"
    looked_at = f"select is_message, {_FOUND}, {score} from docs cross join corpus where {is_hit}"  # noqa: S608
    messages = f"{looked_at} and is_message"
    if scope.reads_lists:
        in_lists = (
            f"select number as found_number, {score} from listed cross join corpus"  # noqa: S608
            " order by score desc fetch first (cast(:depth as bigint)) rows with ties"
        )
        turn = f"select {_OF_TURN} from turns where user_id = :user_id and number = found_number offset 0"  # noqa: S608
        messages = (
            f"select * from ({messages} union all select true, {_FOUND}, score from ({in_lists}) in_lists"  # noqa: S608
            f" cross join lateral ({turn}) turn) found"
        )
    return f"best as materialized (({messages} {best}) union all ({looked_at} and not is_message {best}))"


def _recent(scope: Scope) -> str:
    """The latest messages of the window, whatever they say."""
    if not scope.messages:
        return ""
    return (
        " union all (select 'recent', true, cast(message_id as text), cast(turns.conversation_id as text), sequence,"  # noqa: S608
        " create_time, extract(epoch from create_time)::float8, array[]::text[], true from turns"
        f" where turns.user_id = :user_id and token_count > 0{scope.of_turns}"
        " and create_time >= :start and create_time < :end order by create_time desc limit :depth)"
    )
