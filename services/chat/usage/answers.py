"""What a user spent, as the contract has it.

Owns the conversion and nothing else. Counts in the contract are numbers of 32 bits: what is more is told as the greatest.
"""

from typing import Final

from google.protobuf import timestamp_pb2

from parley.chat.v1 import chat_pb2, conversation_pb2
from services.chat.usage.budget import Account
from services.chat.usage.store import UsageOfDay

_GREATEST: Final = 2**31 - 1


def to_usage_response(account: Account) -> chat_pb2.GetUsageResponse:
    """The answer of GetUsage."""
    spending = account.spending
    reset_time = timestamp_pb2.Timestamp()
    reset_time.FromDatetime(spending.reset_time)
    return chat_pb2.GetUsageResponse(
        days=[_day(one) for one in spending.days],
        budget_tokens=account.budget_tokens,
        used_tokens=_count(spending.today_tokens),
        left_tokens=account.left_tokens,
        reset_time=reset_time,
    )


def _day(day: UsageOfDay) -> chat_pb2.UsageOfDay:
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    usage = conversation_pb2.Usage(**{name: _count(getattr(day.usage, name)) for name in names})
    return chat_pb2.UsageOfDay(date=day.day.isoformat(), model=day.model, usage=usage, replies=_count(day.replies))


def _count(count: int) -> int:
    return min(count, _GREATEST)
