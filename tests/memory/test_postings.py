"""Lists of words change what a search costs, and nothing else: not what is found, its scores, or what a deletion leaves."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.memory.postings.chore import index
from services.memory.postings.store import PostingStore
from services.memory.recall.fusion import FactKey, Key, Place
from services.memory.recall.store import Extent, RecallStore
from services.runtime.database import Database, open_database
from suite.databases import ServiceDatabase
from tests.memory.database import fetch, run
from tests.memory.service import MemoryService, eventually, message, new_id, repeatable

VOCABULARY = [first + second + "x" for first in "bdfgklmnprstvz" for second in ("al", "en", "ir", "ot", "uk")]
K1, B = 0.9, 0.4
# What stands in the lists and what they would be made of now, less each other.
WRONG = (
    "with said as (select turns.user_id, last_number as segment, lexeme as word,"
    " array_agg(((number - first_number) << 25) | (cardinality(positions) << 16) | length(lexemes) order by number)"
    " as entries"
    " from segments join turns on turns.user_id = segments.user_id and number between first_number and last_number"
    " cross join unnest(lexemes) where is_built group by 1, 2, 3),"
    " listed as (select user_id, segment, word, array(select unnest(entries) order by 1) as entries from postings)"
    " (table said except table listed) union all (table listed except table said)"
)
WRONG_TOTALS = (
    "select last_number, message_count, length_total from segments except select last_number,"
    " case when is_built then count(number) else 0 end, case when is_built then coalesce(sum(length(lexemes)), 0) else 0 end"
    " from segments left join turns on turns.user_id = segments.user_id and number between first_number and last_number"
    " and token_count > 0 group by last_number, is_built"
)


@pytest.fixture
async def opened(database: ServiceDatabase) -> AsyncIterator[Database]:
    served = open_database(database.url, pool_size=4)
    yield served
    await served.close()


@pytest.fixture
def store(opened: Database) -> PostingStore:
    """Lists of ten messages."""
    return PostingStore(opened, segment_messages=10)


async def said_much(memory: MemoryService, *, seed: int = 1, conversations: int = 6) -> list[str]:
    """Messages of few words, some of them often; one is empty, one says nothing that is a word; and facts."""
    chance, ids = repeatable(seed), []
    for _ in range(conversations):
        ids.append(new_id())
        texts = [
            " ".join(chance.choices(VOCABULARY, range(len(VOCABULARY), 0, -1), k=chance.randint(1, 30))) for _ in range(9)
        ]
        await memory.record(ids[-1], [message(n, text) for n, text in enumerate([*texts, "", "and the of"], 1)])
    for number in range(5):
        await memory.add_memory(f"{' '.join(chance.choices(VOCABULARY, k=6))} fact{number}")
    return ids


async def ranked(opened: Database, user_id: str, query: str, **narrowed: Any) -> dict[Key, float]:
    """The ranking by words: the scores, in their order."""
    extent = Extent(user_id, 40, **narrowed)
    words, _ = await RecallStore(opened).by_words(extent, query, word_count=len(query.split()))
    return {one.key: one.score for one in words}


async def texts_of(database: ServiceDatabase, user_id: str) -> dict[Key, Counter[str]]:
    rows = await fetch(
        database,
        "select conversation_id::text, sequence, null, lexemes::text from turns where user_id = %s and token_count > 0"
        " union all select null, null, id::text, lexemes::text from facts where user_id = %s and invalidate_time is null",
        user_id,
        user_id,
    )
    return {
        FactKey(fact_id) if fact_id else Place(conversation_id, sequence): _counted(lexemes)
        for conversation_id, sequence, fact_id, lexemes in rows
    }


def _counted(lexemes: str) -> Counter[str]:
    """Of a tsvector as text: 'word':1,5 'other':2."""
    parts = (part.rpartition(":") for part in lexemes.split())
    return Counter({word.strip("'"): places.count(",") + 1 for word, _, places in parts})


def bm25(texts: Mapping[Key, Counter[str]], words: list[str]) -> dict[Key, float]:
    """Okapi BM25 as its authors write it, with the inverse frequency that is never negative."""
    mean = sum(len(text) for text in texts.values()) / len(texts)
    holders = {word: sum(word in text for text in texts.values()) for word in words}
    weights = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in holders.items()}
    scores = {}
    for key, text in texts.items():
        norm = K1 * (1 - B + B * len(text) / max(mean, 1))
        score = sum(weights[word] * text[word] * (K1 + 1) / (text[word] + norm) for word in words if word in text)
        if any(word in text for word in words):
            scores[key] = score
    return scores


async def test_scores_are_those_of_bm25_and_the_same_to_the_last_bit_with_lists_and_without(
    memory: MemoryService, database: ServiceDatabase, opened: Database, store: PostingStore
) -> None:
    conversations = await said_much(memory)
    await said_much(MemoryService(memory.issuer, memory.stub, memory.memory, memory.upkeep), seed=2)
    chance, user_id = repeatable(3), memory.user_id
    told = [
        row[0] for row in await fetch(database, "select message_id::text from turns where user_id = %s limit 7", user_id)
    ]
    queries = [" ".join(chance.sample(VOCABULARY, k=chance.randint(1, 12))) for _ in range(40)]
    narrowings: list[dict[str, Any]] = [
        {},
        {"kind": "message"},
        {"kind": "fact"},
        {"conversation_id": conversations[0]},
        {"excluded_message_ids": frozenset(told)},
    ]

    async def all_ranked() -> list[list[tuple[Key, float]]]:
        asked = [(query, one) for query in queries for one in narrowings]
        return [list((await ranked(opened, user_id, query, **one)).items()) for query, one in asked]

    before = await all_ranked()
    for position, query in enumerate(queries):
        expected = bm25(await texts_of(database, user_id), query.split())
        got = dict(before[position * len(narrowings)])
        assert got
        assert all(score == pytest.approx(expected[key], rel=1e-12) for key, score in got.items())
    await index(store, user_id)
    assert await fetch(database, "select is_built, count(*) from segments group by is_built") == [(True, 6)]
    assert await fetch(database, WRONG) == []
    assert await all_ranked() == before
    # One without lists between those that have some, and some that are in none.
    await run(
        database, "update turns set body = body || ' ', record_time = now() where sequence = 4 and user_id = %s", user_id
    )
    dropped = await fetch(database, "select count(*) from segments where not is_built")
    assert dropped[0][0] > 0
    assert await all_ranked() == before


async def test_messages_from_before_there_were_numbers_are_found_and_get_theirs(
    memory: MemoryService, database: ServiceDatabase, opened: Database, store: PostingStore
) -> None:
    await said_much(memory)
    before = await ranked(opened, memory.user_id, "balx denx")
    await run(database, "update turns set number = null where sequence > 3")
    assert await ranked(opened, memory.user_id, "balx denx") == before
    await index(store, memory.user_id)
    assert await fetch(database, "select count(*) from turns where number is null") == [(0,)]
    assert await fetch(database, "select count(*) from segments where is_built") == [(6,)]
    assert await ranked(opened, memory.user_id, "balx denx") == before


async def test_what_is_deleted_or_rewritten_takes_its_lists_along_and_the_rest_stays_found(
    memory: MemoryService, database: ServiceDatabase, opened: Database, store: PostingStore
) -> None:
    conversations = await said_much(memory)
    hidden = message(12, "zebrafink balx")
    await memory.record(conversations[0], [hidden])
    await said_much(memory, seed=4)
    await index(store, memory.user_id)
    assert await fetch(database, "select count(*) from postings where word = 'zebrafink'") == [(1,)]
    assert len(await memory.found("zebrafink", kind="message")) > 0

    rewritten = message(12, "otter balx", message_id=hidden.message_id, revision=1)
    await memory.record(conversations[0], [rewritten])
    assert await fetch(database, "select count(*) from postings where word = 'zebrafink'") == [(0,)]
    assert await ranked(opened, memory.user_id, "zebrafink") == {}
    assert (await memory.found("otter"))[0] == "otter balx"

    await memory.forget(conversations[1], 5)
    await memory.forget(conversations[2])
    assert await fetch(database, WRONG) == await fetch(database, WRONG_TOTALS) == []
    texts = await texts_of(database, memory.user_id)
    for _ in range(2):
        got = await ranked(opened, memory.user_id, "balx denx firx")
        expected = bm25(texts, ["balx", "denx", "firx"])
        assert got
        assert all(score == pytest.approx(expected[key], rel=1e-12) for key, score in got.items())
        await index(store, memory.user_id)
        assert await fetch(database, "select count(*) from segments where not is_built") == [(0,)]
        assert await fetch(database, WRONG) == await fetch(database, WRONG_TOTALS) == []


async def test_a_segment_of_which_nothing_is_left_goes(
    memory: MemoryService, database: ServiceDatabase, store: PostingStore
) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(n, f"balx {n}") for n in range(1, 11)])
    await index(store, memory.user_id)
    await memory.forget(conversation_id)
    assert await fetch(database, "select is_built, message_count from segments") == [(False, 0)]
    await index(store, memory.user_id)
    assert await fetch(database, "select * from segments") == []
    again = new_id()
    await memory.record(again, [message(n, f"balx {n}") for n in range(1, 6)])
    assert len(await memory.found("balx")) == 5


async def test_lists_that_are_made_while_messages_are_rewritten_and_deleted_say_what_is_there(
    memory: MemoryService, database: ServiceDatabase, store: PostingStore
) -> None:
    conversations = await said_much(memory, conversations=8)
    told = await fetch(
        database, "select conversation_id::text, sequence, message_id::text, role from turns where token_count > 0"
    )
    chance, done = repeatable(5), asyncio.Event()

    async def rewrite() -> None:
        for revision in range(1, 40):
            place, sequence, message_id, _ = chance.choice(told)
            text = " ".join(chance.choices(VOCABULARY, k=12))
            await memory.record(place, [message(sequence, text, message_id=message_id, revision=revision)])
        await memory.forget(conversations[3], 4)
        done.set()

    async def list_always() -> int:
        rounds = 0
        while not done.is_set():
            await index(store, memory.user_id)
            rounds += 1
        return rounds

    _, first, second = await asyncio.gather(rewrite(), list_always(), list_always())
    assert first > 1 < second
    assert await fetch(database, WRONG) == await fetch(database, WRONG_TOTALS) == []
    await index(store, memory.user_id)
    assert await fetch(database, "select count(*) from segments where is_built") == await fetch(
        database, "select count(*) from segments"
    )
    assert await fetch(database, WRONG) == await fetch(database, WRONG_TOTALS) == []


async def test_an_import_and_another_user_keep_to_themselves(
    memory: MemoryService, database: ServiceDatabase, opened: Database, store: PostingStore
) -> None:
    await said_much(memory)
    await index(store, memory.user_id)
    other = new_id()
    assert await ranked(opened, other, "balx denx") == {}
    async with opened.transaction(user_id=other) as connection:
        for table in ("segments", "postings"):
            rows = await connection.exec_driver_sql(f"select count(*) from {table}")  # noqa: S608 - of constants
            assert rows.scalar_one() == 0
    await index(store, other)
    assert await fetch(database, "select count(*) from segments where user_id <> %s", memory.user_id) == [(0,)]


async def test_who_has_said_much_is_indexed_by_the_search_that_had_to_look_at_it(
    memory: MemoryService, database: ServiceDatabase, opened: Database
) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1, "balx denx")])
    await run(
        database,
        "insert into turns (user_id, conversation_id, sequence, message_id, role, body, revision, token_count, create_time)"
        " select %s, %s, n, gen_random_uuid(), 'user', 'denx ' || n, 0, 2, now() from generate_series(2, 2100) n",
        memory.user_id,
        conversation_id,
    )
    await ranked(opened, memory.user_id, "balx", conversation_id=conversation_id)
    assert await fetch(database, "select * from upkeep where task = 'index'") == []
    before = await ranked(opened, memory.user_id, "balx denx")
    async for _ in eventually(20):
        memory.upkeep.look()
        if await fetch(database, "select count(*) from segments where is_built") == [(2,)]:
            break
    assert await ranked(opened, memory.user_id, "balx denx") == before
    async for _ in eventually(10):
        if await fetch(database, "select * from upkeep where task = 'index'") == []:
            break
