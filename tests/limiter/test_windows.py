"""Exact windows, whoever counts: on real Redis, over gRPC as the edge asks."""

import asyncio
import json
import time

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from gateway.limiter.own_count import MOST_NAMES, OwnCount
from gateway.limiter.settings import LimiterSettings
from gateway.limiter.windows import Window
from services.runtime.redis import open_redis
from tests.limiter.conftest import Start
from tests.limiter.harness import Response, headers_of


async def test_as_many_as_the_window_allows_and_not_one_more(start_limiter: Start, name: str) -> None:
    limiter = await start_limiter(limit_general="5/minute")
    answers = [await limiter.ask("general", user=name) for _ in range(8)]
    assert [answer.overall_code == Response.OK for answer in answers] == [True] * 5 + [False] * 3
    assert [headers_of(answer)["ratelimit-remaining"] for answer in answers] == ["4", "3", "2", "1", "0", "0", "0", "0"]
    assert await limiter.allows("general", user=f"{name}-another")


async def test_two_limiters_and_many_at_once_share_one_window(start_limiter: Start, name: str) -> None:
    first, second = await start_limiter(limit_general="40/minute"), await start_limiter(limit_general="40/minute")
    verdicts = await asyncio.gather(
        *(limiter.allows("general", user=name) for _ in range(100) for limiter in (first, second))
    )
    assert sum(verdicts) == 40


async def test_both_windows_hold_and_a_refused_call_is_counted_in_neither(start_limiter: Start, name: str) -> None:
    limiter = await start_limiter(limit_model="2/second,5/minute")
    assert [await limiter.allows("model", user=name) for _ in range(4)] == [True, True, False, False]
    await asyncio.sleep(1.1)
    # Had the refused ones been counted by the minute, it would be full.
    assert [await limiter.allows("model", user=name) for _ in range(3)] == [True, True, False]
    await asyncio.sleep(1.1)
    last = [await limiter.ask("model", user=name) for _ in range(2)]
    assert [answer.overall_code == Response.OK for answer in last] == [True, False]
    assert headers_of(last[1])["ratelimit-limit"] == "5"
    assert 50 < int(headers_of(last[1])["retry-after"]) <= 60


async def test_no_span_of_the_windows_length_holds_more(start_limiter: Start, name: str) -> None:
    limiter = await start_limiter(limit_general="10/second")
    admitted = []
    end = time.monotonic() + 3
    while time.monotonic() < end:
        sent = time.monotonic()
        if await limiter.allows("general", user=name):
            admitted.append((sent, time.monotonic()))
        await asyncio.sleep(0.01)
    assert len(admitted) >= 20
    for first, eleventh in zip(admitted, admitted[10:], strict=False):
        # Counted between sending and answer: the eleventh cannot have been answered before a second was over.
        assert eleventh[1] - first[0] >= 1.0


async def test_what_a_refusal_says(start_limiter: Start, name: str) -> None:
    limiter = await start_limiter(limit_sign_in="1/minute,100/hour")
    assert await limiter.allows("sign_in", address=name)
    answer = await limiter.ask("sign_in", address=name)
    headers = headers_of(answer)
    assert headers["ratelimit-policy"] == "1;w=60, 100;w=3600"
    assert 55 < int(headers["retry-after"]) <= 60
    assert headers["grpc-status"] == "8"
    body = json.loads(answer.raw_body)
    info, retry = body["details"]
    assert body["code"] == 8
    assert info["reason"] == "RATE_LIMITED"
    assert info["metadata"] == {"limit_class": "sign_in", "limit": "1", "window_seconds": "60"}
    assert retry["retry_delay"] == f"{headers['retry-after']}s"
    assert name not in answer.raw_body.decode()


async def test_a_lowered_limit_holds_for_what_was_counted_before(start_limiter: Start, name: str) -> None:
    before = await start_limiter(limit_general="10/minute")
    assert all([await before.allows("general", user=name) for _ in range(10)])
    after = await start_limiter(limit_general="3/minute")
    answer = await after.ask("general", user=name)
    assert answer.overall_code == Response.OVER_LIMIT
    assert int(headers_of(answer)["retry-after"]) > 50


async def test_off_counts_nothing_and_an_unknown_class_is_let_through(start_limiter: Start, name: str) -> None:
    limiter = await start_limiter(limit_general="off")
    assert headers_of(await limiter.ask("general", user=name)) == {}
    assert await limiter.allows("of-a-newer-edge", user=name)


async def test_nothing_is_left_when_the_window_is_over(start_limiter: Start, name: str, redis_url: str) -> None:
    limiter = await start_limiter(limit_general="3/second")
    assert await limiter.allows("general", user=name)
    redis: Redis = open_redis(redis_url, connections=1, wait_seconds=1)
    assert await redis.keys(f"limit:*{name}*") == [f"limit:general:{name}:1".encode()]
    await asyncio.sleep(1.2)
    assert await redis.keys(f"limit:*{name}*") == []
    await redis.aclose()


async def test_without_redis_users_pass_and_addresses_are_counted_here(start_limiter: Start, name: str) -> None:
    limits = {f"limit_{limit}": "2/minute" for limit in ("general", "sign_in", "exchange")}
    limiter = await start_limiter(redis_url="redis://127.0.0.1:1/0", redis_retry_seconds=0.1, **limits)
    assert all([await limiter.allows("general", user=name) for _ in range(5)])
    for limit in ("sign_in", "exchange"):
        assert [await limiter.allows(limit, address=name) for _ in range(4)] == [True, True, False, False]
        assert await limiter.allows(limit, address=f"{name}-another")


async def test_an_exchange_tells_nothing_until_it_is_refused(start_limiter: Start, name: str) -> None:
    """Its call is counted by user as well, and that count tells what is left."""
    limiter = await start_limiter(limit_exchange="1/minute")
    assert headers_of(await limiter.ask("exchange", address=name)) == {}
    assert headers_of(await limiter.ask("exchange", address=name))["ratelimit-limit"] == "1"


@pytest.mark.parametrize("wrong", ["", "20", "20/fortnight", "0/minute", "10001/minute", "1/minute,2/minute", "x/minute"])
def test_a_limit_that_cannot_be_read_is_refused(wrong: str, redis_url: str) -> None:
    with pytest.raises(ValidationError, match="limit_model"):
        LimiterSettings.model_validate(
            {
                "listen_address": "127.0.0.1:0",
                "metrics_address": "127.0.0.1:0",
                "redis_url": redis_url,
                "limit_model": wrong,
            }
        )


def test_the_own_count_is_exact_and_bounded() -> None:
    now = 0.0
    count = OwnCount(clock=lambda: now)
    windows = (Window(2, 60), Window(3, 3600))
    assert [count.count("a", windows).is_allowed for _ in range(3)] == [True, True, False]
    now = 61
    assert [count.count("a", windows).is_allowed for _ in range(2)] == [True, False]
    for index in range(MOST_NAMES + 5):
        count.count(str(index), windows)
    assert len(count._times) == MOST_NAMES
