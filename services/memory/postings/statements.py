"""The SQL of the lists of words: constants, nothing executed. Every statement names the user first.

An entry of a list is one number: from its low end 16 bits for how many different words the message holds, 9 for how often
this one stands in it (a tsvector keeps 256 places at most), and the rest for its number, counted from the segment's first.
"""

from typing import Final

import sqlalchemy as sa

NUMBER: Final = "(entry >> 25)"
"""Of an entry: the message's number, less the first of its segment."""
COUNT: Final = "((entry >> 16) & 511)"
"""Of an entry: how often the word stands in the message."""
LENGTH: Final = "(entry & 65535)"
"""Of an entry: how many different words the message holds."""

_MINE: Final = "user_id = cast(:user_id as uuid)"

NUMBER_OLD: Final = sa.text(
    "update turns set number = nextval('turn_numbers')"  # noqa: S608 - of constants
    f" where {_MINE} and message_id = any(array(select message_id from turns where {_MINE} and number is null limit :most))"
)
"""Numbers up to `most` messages from before there were numbers."""

CLOSE: Final = sa.text(
    "insert into segments (user_id, first_number, last_number)"  # noqa: S608 - of constants
    " select cast(:user_id as uuid), min(number), max(number) from (select number from turns"
    f" where {_MINE} and number > (select coalesce(max(last_number), 0) from segments where {_MINE})"
    " order by number limit :most) following having count(*) = :most returning last_number"
)
"""Makes a segment of the next `most` messages; none where there are not so many."""

UNBUILT: Final = sa.text(
    f"select last_number from segments where {_MINE} and not is_built"  # noqa: S608 - of constants
    " order by last_number limit :most"
)

HOLD: Final = sa.text(
    "select first_number from segments"  # noqa: S608 - of constants
    f" where {_MINE} and last_number = :last_number and not is_built for update"
)

BUILD: Final = sa.text(
    "with docs as materialized (select number - :first_number as place, length(lexemes) as length, lexemes from turns"  # noqa: S608
    f" where {_MINE} and number between :first_number and :last_number and token_count > 0),"
    " written as (insert into postings (user_id, segment, word, entries)"
    " select cast(:user_id as uuid), :last_number, lexeme,"
    " array_agg((place << 25) | (cardinality(positions) << 16) | length)"
    " from docs cross join unnest(docs.lexemes) group by lexeme order by lexeme)"
    " update segments set is_built = true, message_count = (select count(*) from docs),"
    " length_total = (select coalesce(sum(length), 0) from docs)"
    f" where {_MINE} and last_number = :last_number"
)
"""Writes the lists of a segment that is held, from what its messages say now."""

DROP_EMPTY: Final = sa.text(
    f"delete from segments where {_MINE} and last_number = :last_number and not exists (select from turns"  # noqa: S608
    f" where turns.{_MINE} and number between :first_number and :last_number)"
)
"""Drops a segment none of whose messages is left; a later one can have none of its numbers."""
