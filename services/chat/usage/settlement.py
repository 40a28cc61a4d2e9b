"""The end of a reply's account, inside the transaction that ends the reply.

Owns one statement, also as parts of the one that ends a turn (turn_end.py). Invariant: what a reply cost is counted exactly
once, on the day for which it was reserved (the day of its end without a reservation), and its reservation is gone in the
same commit.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.records import Usage

_RELEASED: Final = (
    "released as (delete from token_reservations where generation_id = cast(:generation_id as uuid)"
    " returning day, tokens, spent_tokens),"
    " cost as (select coalesce((select day from released), cast(now() at time zone 'utc' as date)) as day,"
    " case when :is_reported then 0 when :has_output then coalesce((select tokens from released), 0)"
    " else coalesce((select spent_tokens from released), 0) end as unreported)"
)
_COUNTED: Final = (
    "insert into usage_days as kept (user_id, day, model, input_tokens, cached_tokens, output_tokens, reasoning_tokens,"
    " unreported_tokens, replies)"
    " select cast(:user_id as uuid), cost.day, :model, :input_tokens, :cached_tokens, :output_tokens, :reasoning_tokens,"
    " cost.unreported, :replies from cost where :is_reported or :has_output or cost.unreported > 0"
    " on conflict (user_id, day, model) do update set"
    " input_tokens = kept.input_tokens + excluded.input_tokens,"
    " cached_tokens = kept.cached_tokens + excluded.cached_tokens,"
    " output_tokens = kept.output_tokens + excluded.output_tokens,"
    " reasoning_tokens = kept.reasoning_tokens + excluded.reasoning_tokens,"
    " unreported_tokens = kept.unreported_tokens + excluded.unreported_tokens,"
    " replies = kept.replies + excluded.replies"
)
# One statement, since every turn runs it: without a budget it is an upsert and a look that finds nothing.
_SETTLE: Final = sa.text(f"with {_RELEASED} {_COUNTED}")
SETTLED: Final = f"{_RELEASED}, counted as ({_COUNTED})"
"""The same as parts of a larger statement, which takes `settlement_values`."""
_NOTHING: Final = Usage(0, 0, 0, 0)


async def settle(  # noqa: PLR0913 - the columns of one row
    connection: AsyncConnection,
    *,
    generation_id: str,
    user_id: str,
    model: str,
    usage: Usage | None,
    has_output: bool = False,
    replies: int = 1,
) -> None:
    """Counts what a reply cost and releases what was reserved for it. Once a generation: a repeat counts twice.

    Where the provider never said the cost (`usage` is None), a reply that had begun to come (`has_output`) is charged to
    the budget as it was reserved, so that cancelling is no way around it; one that had not, with its earlier rounds only.
    `replies` is 0 for what is none, such as a title.
    """
    ids = {"generation_id": generation_id, "user_id": user_id, "model": model}
    await connection.execute(_SETTLE, ids | settlement_values(usage, has_output=has_output, replies=replies))


def settlement_values(usage: Usage | None, *, has_output: bool, replies: int = 1) -> dict[str, object]:
    """What SETTLED takes, beside `generation_id`, `user_id` and `model`; see `settle`."""
    cost = usage or _NOTHING
    return {
        "is_reported": usage is not None,
        "has_output": has_output,
        "replies": replies,
        "input_tokens": cost.input_tokens,
        "cached_tokens": cost.cached_tokens,
        "output_tokens": cost.output_tokens,
        "reasoning_tokens": cost.reasoning_tokens,
    }
