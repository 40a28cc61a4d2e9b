"""Standing duties: they end with their block, their faults are not missed, and what is away for a while is waited for."""

import asyncio

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.testing import capture_logs

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.duties import beside, repeat
from services.runtime.errors import Unavailable


async def _fail(error: Exception) -> None:
    raise error


async def test_duties_run_beside_the_block_and_end_with_it() -> None:
    ended: list[str] = []

    async def duty(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async with beside(duty("feed"), duty("sweep")):
        await asyncio.sleep(0)
        assert ended == []
    assert sorted(ended) == ["feed", "sweep"]


async def test_a_duty_that_fails_ends_the_block_with_its_own_error() -> None:
    with pytest.raises(LookupError, match="unforeseen"):
        async with beside(_fail(LookupError("unforeseen")), asyncio.sleep(60)):
            await asyncio.sleep(60)


async def test_two_duties_that_fail_are_both_told() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with beside(_fail(LookupError("one")), _fail(KeyError("other"))):
            await asyncio.sleep(60)
    assert {type(error) for error in caught.value.exceptions} == {LookupError, KeyError}


async def test_what_goes_away_for_two_at_once_is_one_error_for_who_expects_it() -> None:
    """As with a server whose end two connections learn of in one poll: neither duty can be cancelled before it fails."""
    with pytest.raises(ConnectionResetError, match="one"):
        async with beside(_fail(ConnectionResetError("one")), _fail(TimeoutError("other")), expected=(OSError,)):
            await asyncio.sleep(60)


async def test_the_block_and_a_duty_that_fails_on_its_way_out_are_one_error_too() -> None:
    async def fails_when_told_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("while connecting")

    async def block() -> None:
        async with beside(fails_when_told_to_end(), expected=(ConnectionError,)):
            await asyncio.sleep(0)
            raise ConnectionError("in the block")

    with pytest.raises(ConnectionError):
        await block()


async def test_a_fault_among_what_is_expected_is_told() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with beside(_fail(ConnectionError()), _fail(LookupError("a fault")), expected=(OSError,)):
            await asyncio.sleep(60)
    assert {type(error) for error in caught.value.exceptions} == {ConnectionError, LookupError}


async def test_a_duty_is_done_again_although_what_it_needs_was_away() -> None:
    away = iter([Unavailable("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE), PoolTimeoutError(), None, None])
    done = asyncio.Event()

    async def duty() -> None:
        error = next(away)
        if error is None:
            done.set()
        else:
            raise error

    with capture_logs() as logs:
        async with beside(repeat("sweep", duty, interval_seconds=0.001)):
            await asyncio.wait_for(done.wait(), 5)
    postponed = [(one["event"], one["duty"], one["error"]) for one in logs]
    assert postponed == [("duty.postponed", "sweep", "Unavailable"), ("duty.postponed", "sweep", "TimeoutError")]


async def test_a_fault_of_a_repeated_duty_is_not_repeated() -> None:
    with pytest.raises(LookupError):
        await repeat("sweep", lambda: _fail(LookupError()), interval_seconds=0)
