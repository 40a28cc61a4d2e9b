"""The search over one user's conversations.

Owns what a hit is: every word occurs in the conversation's title and one of its messages taken together, the last word as
the beginning of one; a message counts when it holds at least one of them. Letters and digits make words, whatever their
case. Invariants: one statement whatever is found; it looks at the user's latest 100,000 messages, by an index on the user,
since row-level security keeps an index of words from being used; words never reach Postgres as syntax.
"""

from typing import Any, Final

import sqlalchemy as sa

from services.chat.records import Found
from services.chat.rows import CONVERSATION_COLUMNS, conversation_of
from services.runtime.database import Database

_SEARCHED_MESSAGES: Final = 100_000
_EXCERPT_CHARACTERS: Final = 240
# As many characters are read around the place where a message says what was looked for.
_EXCERPT_WINDOW: Final = 600
# In text, for the text search functions that it is made of. Postgres cuts the query into words itself, as it did the
# messages. `every` and `some` are null where there is no word: then nothing is found.
_SEARCH: Final = sa.text(
    """
with query as materialized (
  select cast(string_agg(part, ' & ') as tsquery) as every, cast(string_agg(part, ' | ') as tsquery) as some,
    (array_agg(lexeme order by length(lexeme) desc, lexeme))[1] as longest
  from (
    select lexeme, quote_literal(lexeme) || case when positions[cardinality(positions)] = last.position then ':*' else '' end
    from unnest(words_of(:query)),
      (select max(position) as position from unnest(words_of(:query)), unnest(positions) as position) as last
  ) as words (lexeme, part)
),
titled as materialized (
  select id, latest_time, setweight(coalesce(words, words_of(title)), 'A') as words
  from conversations where user_id = :user_id
),
recent as (
  select id, conversation_id, words, text, status from messages
  where user_id = :user_id and supersede_time is null order by id desc limit :searched
),
told as (
  select recent.id, recent.conversation_id, coalesce(recent.words, words_of(recent.text)) as words
  from recent, query
  where recent.status <> 'generating' and coalesce(recent.words, words_of(recent.text)) @@ query.some
),
hits as (
  select titled.id as conversation_id, told.id as message_id, ts_rank(titled.words || told.words, query.every, 1) as rank
  from told join titled on titled.id = told.conversation_id, query
  where (titled.words || told.words) @@ query.every
  union all
  select titled.id, null, ts_rank(titled.words, query.every, 1) from titled, query where titled.words @@ query.every
),
best as (
  select distinct on (conversation_id) conversation_id, message_id, cast(rank * 1000000 as integer) as score
  from hits order by conversation_id, message_id is null, rank desc, message_id desc
),
page as (
  select * from best
  where cast(:after_id as uuid) is null
    or (score, conversation_id) < (cast(:after_score as integer), cast(:after_id as uuid))
  order by score desc, conversation_id desc limit :limit
)
select c.id, c.title, c.message_count, c.last_message_time, c.create_time, c.update_time, c.latest_time,
  page.score, cast(page.message_id as text) as message_id, substr(m.text, greatest(
    regexp_instr(m.text collate "pg_c_utf8", '\\m' || query.longest, 1, 1, 0, 'i') - :window, 1), 2 * :window) as near,
  query.longest
from page cross join query join conversations c on c.id = page.conversation_id
left join messages m on m.id = page.message_id
order by page.score desc, page.conversation_id desc
"""
).columns(*CONVERSATION_COLUMNS)


class SearchStore:
    """The conversations and their words in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_conversations(
        self, query: str, *, user_id: str, limit: int, after: tuple[int, str] | None
    ) -> list[Found]:
        """The conversations with every word of the query after a key, the best first."""
        score, conversation_id = after or (0, None)
        values: dict[str, Any] = {
            "query": query, "user_id": user_id, "limit": limit, "after_score": score, "after_id": conversation_id,
            "searched": _SEARCHED_MESSAGES, "window": _EXCERPT_WINDOW,
        }  # fmt: skip
        async with self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(_SEARCH, values)).mappings().all()
        return [
            Found(conversation_of(row), row["message_id"], excerpt(row["near"] or "", row["longest"]), row["score"])
            for row in rows
        ]


def excerpt(near: str, word: str) -> str:
    """A line around a word, cut where words end; from the beginning where the word does not stand there as such."""
    line = " ".join(near.split())
    place = max(line.lower().find(word), 0)
    begin = max(0, min(place - _EXCERPT_CHARACTERS // 3, len(line) - _EXCERPT_CHARACTERS))
    if begin:
        begin = line.find(" ", begin, place) + 1 or begin
    cut = line[begin : begin + _EXCERPT_CHARACTERS]
    if begin + _EXCERPT_CHARACTERS < len(line):
        cut = cut[: cut.rfind(" ", _EXCERPT_CHARACTERS // 2)] if " " in cut[_EXCERPT_CHARACTERS // 2 :] else cut
        cut += " …"
    return f"… {cut}" if begin else cut
