"""Whether a reply may go on: the tokens that a user may spend a day.

Owns the decision and its refusal. Invariant: a round of the model runs only once an upper bound of its cost is reserved, so
that replies at once do not spend together what each of them alone could. Without a budget it does nothing.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Protocol

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.usage.store import Spending, UsageStore
from services.runtime.errors import ResourceExhausted


class Spender(Protocol):
    """What costs tokens: a generation, or a title."""

    @property
    def id(self) -> str:
        """What names the reservation: a UUID."""

    @property
    def user_id(self) -> str:
        """Whose tokens they are."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a user spent; the budget and what is left of it today, None where there is no budget."""

    spending: Spending
    budget_tokens: int | None
    left_tokens: int | None


class Budget:
    """The budget of every user; `tokens_per_day` 0 is none."""

    def __init__(self, store: UsageStore, *, tokens_per_day: int) -> None:
        self._store = store
        self.tokens_per_day = tokens_per_day

    @property
    def is_bounded(self) -> bool:
        """Whether there is a budget at all: without one nobody needs to know what a round may cost."""
        return self.tokens_per_day > 0

    async def reserve(self, generation: Spender, tokens: int, *, spent_tokens: int | None = None) -> None:
        """Reserves an upper bound of the next round's cost (see round_cost.py). Before each round of the model.

        `spent_tokens` are what the earlier rounds of this reply cost, input and output; None when that is not known: their
        reservations then stay. Raises ResourceExhausted (TOKEN_BUDGET_SPENT) when today's budget has no room for it.
        """
        if not self.is_bounded:
            return
        is_reserved = await self._store.reserve(
            generation_id=generation.id,
            user_id=generation.user_id,
            tokens=tokens,
            spent_tokens=spent_tokens,
            budget_tokens=self.tokens_per_day,
        )
        if not is_reserved:
            raise self._spent()

    async def account(self, user_id: str, *, days: int) -> "Account":
        """What the user spent in the last `days` days, today included, and what is left of today's budget."""
        spending = await self._store.read_spending(user_id, days=days)
        left = max(0, self.tokens_per_day - spending.today_tokens) if self.is_bounded else None
        return Account(spending, self.tokens_per_day if self.is_bounded else None, left)

    def _spent(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"Today's {self.tokens_per_day} tokens leave no room for this reply. Ask for fewer output tokens, or wait "
            "until midnight UTC.",
            reasons.ERROR_REASON_TOKEN_BUDGET_SPENT,
            metadata={"budget_tokens": str(self.tokens_per_day)},
            retry_delay_seconds=seconds_until_midnight(dt.datetime.now(dt.UTC)),
        )


def seconds_until_midnight(now: dt.datetime) -> float:
    """Seconds from `now`, in UTC, to the next day's beginning; at least one."""
    midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
    return max(1.0, (midnight - now).total_seconds())
