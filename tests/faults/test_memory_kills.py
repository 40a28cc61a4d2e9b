"""Memory, its Postgres and its Redis killed at random while turns are recorded: each turn is searchable, none twice.

PARLEY_TEST_KILLS (default 4) says how often; the seed is printed, and can be given by PARLEY_TEST_SEED.
"""

import asyncio
import os
import random
import time
import uuid

import pytest

from tests.chat.service import User
from tests.faults.memory_stand import Caller, MemoryStand, memory_stand, unique_word
from tests.faults.stand import Stand, soon
from tests.issuer import Issuer

KILLS = int(os.environ.get("PARLEY_TEST_KILLS", "4"))
SEED = int(os.environ.get("PARLEY_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
CALLERS = 4
CATCH_UP_SECONDS = 60.0
# Facts and summaries have tests of their own; here the provider only embeds.
SETTINGS = {"EXTRACTION_ENABLED": "false", "SUMMARIES_ENABLED": "false"}


async def killed(stand: MemoryStand, chance: random.Random, *, times: int) -> None:
    """Memory and what it stands on, one after the other."""
    # Each at least once where there are enough kills, and in any order.
    deaths = [stand.kill_memory, stand.kill_postgres, stand.kill_redis]
    plan = [*deaths, *chance.choices(deaths, k=times)][:times]
    chance.shuffle(plan)
    for kill in plan:
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        await kill()
    await asyncio.sleep(0.5)


async def killed_while_recording(stand: MemoryStand, chance: random.Random) -> list[Caller]:
    callers, enough = [Caller(stand, random.Random(chance.random())) for _ in range(CALLERS)], asyncio.Event()  # noqa: S311
    async with asyncio.TaskGroup() as talking:
        for caller in callers:
            talking.create_task(caller.talk(enough))
        await killed(stand, chance, times=KILLS)
        enough.set()
    return callers


async def embedded(stand: MemoryStand) -> None:
    """Every message has its one embedding, and nothing is owed any more."""

    async def is_done() -> bool:
        return not await stand.rows("select 1 from upkeep where task = 'embed' limit 1")

    await soon(is_done, within_seconds=CATCH_UP_SECONDS)
    assert await stand.rows(
        "select message_id from turns where not exists (select from embeddings where embeddings.user_id = turns.user_id"
        " and item_id = message_id and kind = 'turn' and model <> '')"
    ) == []  # fmt: skip
    assert await stand.rows("select item_id from embeddings group by item_id having count(*) > 1") == []


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_kills_lose_no_turn_and_double_none(issuer: Issuer) -> None:
    print("seed", SEED)  # noqa: T201 - what a failure is repeated with
    async with memory_stand(issuer, SETTINGS) as stand:
        callers = await killed_while_recording(stand, random.Random(SEED))  # noqa: S311 - a test's chance
        accepted = [text for caller in callers for text in caller.accepted.values()]
        assert sorted(accepted) == sorted(text for (text,) in await stand.rows("select body from turns"))
        began = time.monotonic()
        await embedded(stand)
        caught_up = time.monotonic() - began
        for caller in callers:
            await caller.found_once()
            answer = await stand.search(caller.user_id, "parcel at the gate", kind="message")
            assert list(answer.degraded) == []
            assert any("meaning" in one.found_by for one in answer.memories)
    repeats = sum(caller.repeats for caller in callers)
    print(f"{KILLS} kills, {len(accepted)} messages, {repeats} calls repeated, embedded {caught_up:.1f} s after the last")  # noqa: T201


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_what_chat_has_answered_reaches_memory_whatever_dies(stand: Stand, issuer: Issuer) -> None:
    print("seed", SEED)  # noqa: T201 - what a failure is repeated with
    chance, said, enough = random.Random(SEED), list[str](), asyncio.Event()  # noqa: S311 - a test's chance
    kills = max(2, KILLS // 2)

    async def talk(user: User) -> None:
        while not enough.is_set():
            word = unique_word(chance)
            events = [event async for event in user.open_stream(f"The parcel called {word} waits at the gate.")]
            assert events[-1].WhichOneof("event") == "completed", events[-1]
            said.append(word)

    async with memory_stand(issuer, SETTINGS) as memory:
        chat = await stand.start(MEMORY_TARGET=memory.target, TITLES_ENABLED="false", LOG_LEVEL="ERROR")
        users = [chat.user(str(uuid.uuid4())) for _ in range(2)]
        async with asyncio.TaskGroup() as talking:
            for user in users:
                talking.create_task(talk(user))
            await killed(memory, chance, times=kills)
            enough.set()

        async def is_told() -> bool:
            rows = await memory.rows("select count(*) from turns where role = 'user'")
            return bool(rows[0][0] >= len(said))

        # Chat asks a memory that was away ever more rarely.
        await soon(is_told, within_seconds=CATCH_UP_SECONDS)
        told = [text for (text,) in await memory.rows("select body from turns where role = 'user'")]
        assert sorted(told) == sorted(f"The parcel called {word} waits at the gate." for word in said)
        replies = await memory.rows("select count(*), count(distinct message_id) from turns where role = 'assistant'")
        assert replies == [(len(said), len(said))]
    print(f"{kills} kills, {len(said)} turns")  # noqa: T201 - the figures
