"""The model that facts are learned by is down for an hour, in fast motion: search works, work waits, and is caught up with.

A second here is 200 of the clock: an hour is 18 seconds, and the pauses of the service are as much shorter.
"""

import asyncio
import random
import time

from simulator.control import Fault, Match, ScriptedAnswer
from tests.faults.memory_stand import Caller, MemoryStand, memory_stand
from tests.faults.stand import soon
from tests.issuer import Issuer

FASTER = 200
OUTAGE_SECONDS = 3600 / FASTER
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1 / FASTER, 60 / FASTER
# A try a minute, each a little earlier or later, the first ones closer together, and the one that was under way.
MOST_TRIES = 60 / 0.8 + 12
CONCURRENCY = 2
SETTINGS = {
    "UPKEEP_RETRY_SECONDS": str(FIRST_PAUSE_SECONDS),
    "UPKEEP_LONGEST_PAUSE_SECONDS": str(LONGEST_PAUSE_SECONDS),
    "EXTRACTION_DELAY_SECONDS": "0.05",
    "EXTRACTION_CONCURRENCY": str(CONCURRENCY),
    "SUMMARIES_ENABLED": "false",
}
CALLERS = 3


async def calls(stand: MemoryStand) -> int:
    return len(await stand.simulator.control.requests("responses"))


async def talk_and_search(caller: Caller, until: asyncio.Event) -> float:
    """Says something now and then, and finds each at once; the slowest search, in seconds."""
    slowest = 0.0
    while not until.is_set():
        await caller.record([caller.turns()])
        word = next(reversed(caller.accepted))
        began = time.monotonic()
        # By its words, among others that have an embedding already.
        answer = await caller.stand.search(caller.user_id, f"What about {word}?", kind="message", limit=100)
        slowest = max(slowest, time.monotonic() - began)
        assert any(word in found.memory.text for found in answer.memories), word
        await asyncio.sleep(0.2)
    return slowest


async def most_at_once(stand: MemoryStand, until: asyncio.Event) -> int:
    """How many calls the model was answering at the same time."""
    most = 0
    while not until.is_set():
        asked = await stand.simulator.control.requests("responses")
        most = max(most, sum(request.outcome == "running" for request in asked))
        await asyncio.sleep(0.005)
    return most


async def waiting(stand: MemoryStand) -> int:
    return int((await stand.rows("select count(*) from upkeep where task = 'extract'"))[0][0])


async def test_an_hour_without_the_model_costs_no_search_and_no_fact(issuer: Issuer) -> None:
    async with memory_stand(issuer, SETTINGS, pace_ms=20) as stand:
        # A provider that names no wait is given one of our own, which is not in fast motion.
        away = Fault(kind="status", status=503, retry_after_seconds=0)
        await stand.simulator.control.script(
            ScriptedAnswer(match=Match(endpoint="responses"), fault=away, for_seconds=OUTAGE_SECONDS)
        )
        chance, over = random.Random(4), asyncio.Event()  # noqa: S311 - a test's chance
        callers = [Caller(stand, random.Random(chance.random()), says="I like {word}.") for _ in range(CALLERS)]  # noqa: S311
        async with asyncio.TaskGroup() as talking:
            slowest = [talking.create_task(talk_and_search(caller, over)) for caller in callers]
            await asyncio.sleep(OUTAGE_SECONDS)
            over.set()
        tried, owed = await calls(stand), await waiting(stand)
        conversations = sum(len(caller.conversations) for caller in callers)
        assert owed == conversations
        assert 0 < tried <= MOST_TRIES
        assert await stand.rows("select 1 from facts") == []

        await stand.simulator.control.reset()
        back, began = asyncio.Event(), time.monotonic()
        watching = asyncio.create_task(most_at_once(stand, back))

        async def is_done() -> bool:
            return await waiting(stand) == 0

        await soon(is_done, within_seconds=60)
        caught_up = time.monotonic() - began
        back.set()
        assert await watching <= CONCURRENCY
        # One call a conversation: what waited was gathered, and nothing was asked twice.
        assert await calls(stand) <= conversations + 1
        known = [text for (text,) in await stand.rows("select body from facts where invalidate_time is null")]
        liked = [word for caller in callers for word, text in caller.accepted.items() if text.startswith("I like")]
        assert len(known) == len(liked)
        assert all(sum(word in text for text in known) == 1 for word in liked)
    search = max(task.result() for task in slowest)
    figures = f"{tried} calls in the outage, {owed} conversations waited, slowest search {search:.3f} s, "
    print(figures + f"{caught_up:.1f} s to catch up")  # noqa: T201 - the figures
