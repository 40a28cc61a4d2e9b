"""What is recorded gets its embeddings, whatever happens meanwhile, and loses them with its text."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row

from parley.memory.v1 import memory_pb2
from services.memory.embedding.store import Embedded, EmbeddingStore, Item
from services.memory.embedding.upkeep import Embedding
from services.memory.upkeep.store import Owed, UpkeepStore
from services.runtime.database import open_database
from simulator.control import Fault, Match, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.odd_provider import Json, listed, odd_provider
from tests.memory.service import MemoryService, eventually, message, new_id, turn
from tests.memory.test_embedder import opened

Settings = dict[str, object]
Row = dict[str, Any]
STATED = "I live in Porto by the river. My sister Ana lives in Lisbon with two cats."


async def rows(database: ServiceDatabase, query: str = "select * from embeddings order by sequence") -> list[Row]:
    connecting = psycopg.AsyncConnection.connect(database.migration_url, autocommit=True, row_factory=dict_row)
    async with await connecting as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        return await (await connection.execute(query.encode())).fetchall()


async def change(database: ServiceDatabase, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        await connection.execute(statement.encode())


async def embedded(database: ServiceDatabase, count: int, *, model: str | None = None) -> list[Row]:
    """The embeddings, once there are so many of the model, and nothing more is owed."""
    async for _ in eventually(15):
        found = [row for row in await rows(database) if model in (None, row["model"])]
        if len(found) == count and not await rows(database, "select from upkeep where task = 'embed'"):
            return found
    raise AssertionError


async def test_messages_are_embedded_whole_and_what_users_say_by_the_sentence_too(
    start_memory: Start, database: ServiceDatabase, provider: Settings, simulator: Running
) -> None:
    conversation_id = new_id()
    async with start_memory(**provider) as memory:
        said = [message(1, STATED), message(2, "Noted. Anything else that I should know?"), message(3, ""), message(4, "Ok")]
        await memory.record(conversation_id, said)
        found = await embedded(database, 3)
    assert [(row["sequence"], row["kind"], row["model"]) for row in found] == [
        (sequence, "turn", "text-embedding-3-small@512") for sequence in (1, 2, 4)
    ]
    assert {str(row["conversation_id"]) for row in found} == {conversation_id}
    assert [row["pieces"] is not None for row in found] == [True, False, False]
    texts = [text for one in await simulator.control.requests("embeddings") for text in one.body["input"]]
    assert f"user, 14 November 2023: {STATED}" in texts
    assert "My sister Ana lives in Lisbon with two cats." in texts
    assert "assistant, 14 November 2023: Ok" in texts


async def test_many_conversations_of_many_users_take_few_calls(
    start_memory: Start, database: ServiceDatabase, provider: Settings, simulator: Running
) -> None:
    async with start_memory() as memory:
        told = [
            memory_pb2.ConversationTurns(user_id=new_id(), conversation_id=new_id(), messages=turn(1)) for _ in range(60)
        ]
        await memory.stub.RecordTurns(
            memory_pb2.RecordTurnsRequest(conversations=told),
            metadata=memory.issuer.as_service("chat", audience="memory"),
            timeout=10,
        )
    async with start_memory(**provider):
        # It was off when they came: made up for.
        await embedded(database, 120)
    assert len(await simulator.control.requests("embeddings")) <= 4


async def test_a_long_conversation_is_embedded_in_parts(
    start_memory: Start, database: ServiceDatabase, provider: Settings
) -> None:
    async with start_memory(**provider) as memory:
        await memory.record(new_id(), [one for number in range(1, 51) for one in turn(number)])
        await memory.record(new_id(), [one for number in range(1, 51) for one in turn(number)])
        await embedded(database, 200)


async def test_a_rewritten_message_is_embedded_anew_and_a_deleted_one_not_at_all(
    start_memory: Start, database: ServiceDatabase, provider: Settings
) -> None:
    kept, deleted = new_id(), new_id()
    async with start_memory(**provider) as memory:
        first, second = message(1, "I like green tea"), message(2, "Good to know")
        await memory.record(kept, [first, second])
        await memory.record(deleted, turn(1))
        before = {row["sequence"]: row["body"] for row in await embedded(database, 4) if str(row["conversation_id"]) == kept}
        await memory.record(kept, [message(1, "I like black coffee", message_id=first.message_id, revision=1)])
        await memory.forget(deleted)
        after = {row["sequence"]: row["body"] for row in await embedded(database, 2)}
        assert after[1] != before[1]
        assert after[2] == before[2]
        await memory.forget(kept, 2)
        assert len(await embedded(database, 1)) == 1


async def test_a_message_that_is_rewritten_has_no_embedding_from_that_moment(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    """Nothing embeds here: what is gone went in the transaction that records."""
    one = message(1, "before")
    await memory.record(new_id(), [one])
    conversation = (await rows(database, "select * from turns"))[0]
    await change(
        database,
        "insert into embeddings (user_id, item_id, kind, conversation_id, sequence, model, body)"  # noqa: S608 - of our own
        f" values ('{memory.user_id}', '{one.message_id}', 'turn', '{conversation['conversation_id']}', 1, 'm', '[1,2]')",
    )
    again = message(1, "after", message_id=one.message_id, revision=1)
    await memory.record(str(conversation["conversation_id"]), [again])
    assert await rows(database) == []


async def test_facts_are_embedded_and_change_with_their_words(
    start_memory: Start, database: ServiceDatabase, provider: Settings
) -> None:
    user_id, fact_id = new_id(), new_id()
    owed = f"insert into upkeep (user_id, scope_id, task) values ('{user_id}', '{user_id}', 'embed')"  # noqa: S608
    await change(
        database,
        "insert into facts (user_id, id, body, body_hash, stamped_by, origin)"  # noqa: S608 - of our own
        f" values ('{user_id}', '{fact_id}', 'Lives in Porto', '\\x01', 'user', 'stated')",
    )
    await change(database, owed)
    async with start_memory(**provider):
        (fact,) = await embedded(database, 1)
        assert (fact["kind"], str(fact["item_id"]), fact["pieces"]) == ("fact", fact_id, None)
        await change(database, f"update facts set importance = 9 where id = '{fact_id}'")  # noqa: S608 - of our own
        assert len(await rows(database)) == 1
        await change(database, f"update facts set body = 'Lives in Lisbon' where id = '{fact_id}'")  # noqa: S608
        assert await rows(database) == []
        await change(database, owed)
        assert (await embedded(database, 1))[0]["body"] != fact["body"]
        await change(database, f"delete from facts where id = '{fact_id}'")  # noqa: S608 - of our own
        assert await rows(database) == []


def _owed(memory_user: str, conversation_id: str) -> Owed:
    return Owed(memory_user, conversation_id, "embed", 0, 1)


async def test_nothing_is_written_of_a_text_that_changed_or_went_while_the_model_was_asked(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    changed, gone, same = new_id(), new_id(), new_id()
    told = {one: message(1, "before") for one in (changed, gone, same)}
    for conversation_id, one in told.items():
        await memory.record(conversation_id, [one])
    found = open_database(database.url)
    try:
        store = EmbeddingStore(found)
        owed = [_owed(memory.user_id, one) for one in told]
        items = await store.missing(owed, model="m@2", most=10)
        assert {item.id for item in items} == {one.message_id for one in told.values()}
        await memory.record(changed, [message(1, "after", message_id=told[changed].message_id, revision=1)])
        await memory.forget(gone)
        made = [Embedded(item, "[1,0]", ["[0,1]", "[1,0]"]) for item in items]
        assert await store.write(made, model="m@2", still_owed=[]) == 1
        # Once more, as after a crash: no second row.
        assert await store.write(made, model="m@2", still_owed=[]) == 1
    finally:
        await found.close()
    (row,) = await rows(database)
    assert (str(row["conversation_id"]), json.loads(row["body"])) == (same, [1, 0])


async def test_a_message_that_is_being_deleted_is_neither_waited_for_nor_written(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    one = message(1, "words")
    conversation_id = new_id()
    await memory.record(conversation_id, [one])
    found = open_database(database.url)
    try:
        store = EmbeddingStore(found)
        items = await store.missing([_owed(memory.user_id, conversation_id)], model="m@2", most=10)
        async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
            await connection.execute("select set_config('parley.scope', 'service', false)")
            await connection.execute("delete from turns")
            async with asyncio.timeout(3):
                assert await store.write([Embedded(items[0], "[1,0]", [])], model="m@2", still_owed=[]) == 0
        assert await rows(database) == []
    finally:
        await found.close()


async def test_another_model_embeds_everything_anew_and_the_two_never_mix(
    start_memory: Start, database: ServiceDatabase, provider: Settings
) -> None:
    async with start_memory(**provider) as memory:
        for _ in range(5):
            await memory.record(new_id(), turn(1), user_id=new_id())
        await embedded(database, 10)
    async with (
        start_memory(**{**provider, "embedding_dimensions": 64}),
        start_memory(**{**provider, "embedding_dimensions": 64}),
    ):
        found = await embedded(database, 10, model="text-embedding-3-small@64")
    assert {len(json.loads(row["body"])) for row in found} == {64}
    assert len(await rows(database)) == 10


async def test_renewal_goes_by_bounded_parts_so_that_new_texts_do_not_wait_for_all_old_ones(
    memory: MemoryService, database: ServiceDatabase, simulator: Running
) -> None:
    for _ in range(9):
        await memory.record(new_id(), [message(1, "words")], user_id=new_id())
    await change(
        database,
        "insert into embeddings (user_id, item_id, kind, conversation_id, sequence, model, body)"
        " select user_id, message_id, 'turn', conversation_id, sequence, 'old@2', '[1,2]' from turns",
    )
    await change(database, "delete from upkeep")
    found = open_database(database.url)
    try:
        store, upkeep = EmbeddingStore(found), UpkeepStore(found)
        async with opened(simulator.base_url, dimensions=32) as embedder:
            embedding = Embedding(store, upkeep, embedder)
            renewing = asyncio.create_task(embedding.renew(backlog=4, interval_seconds=0.01))
            most = done = 0
            while done < 9:
                assert not renewing.done() or done >= 5
                claimed: Sequence[Owed] = await upkeep.claim("embed", most=1, lease_seconds=60)
                if claimed:
                    most = max(most, sum(one.count for one in await upkeep.waiting()))
                    await embedding.embed(claimed)
                    await upkeep.settle(claimed)
                    done += 1
            await asyncio.wait_for(renewing, 5)
    finally:
        await found.close()
    # Four are asked for where fewer than four wait.
    assert most <= 7
    assert {row["model"] for row in await rows(database)} == {"text-embedding-3-small@32"}


async def test_vectors_of_the_most_dimensions_fit_their_rows(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1, STATED)])
    found = open_database(database.url)
    vector = f"[{','.join(['0.01234'] * 3840)}]"
    try:
        store = EmbeddingStore(found)
        items: Sequence[Item] = await store.missing([_owed(memory.user_id, conversation_id)], model="m", most=1)
        made = [Embedded(items[0], vector, [vector] * 8)]
        assert await store.write(made, model="a-name-of-a-model-that-is-rather-long" * 3, still_owed=[]) == 1
    finally:
        await found.close()


async def test_a_model_that_is_away_keeps_nothing_from_being_recorded_and_is_caught_up(
    start_memory: Start, database: ServiceDatabase, provider: Settings, simulator: Running
) -> None:
    fault = Fault(kind="status", status=503)
    await simulator.control.script(*[ScriptedAnswer(match=Match(endpoint="embeddings"), fault=fault)] * 2)
    conversations = [new_id() for _ in range(20)]
    async with start_memory(**provider, upkeep_retry_seconds=0.2) as memory:
        for conversation_id in conversations:
            await memory.record(conversation_id, turn(1))
        await embedded(database, 40)


async def test_a_page_of_a_proxy_ends_no_process_and_what_it_kept_waiting_is_caught_up(
    start_memory: Start, database: ServiceDatabase
) -> None:
    is_back = False

    def answer(asked: Json) -> tuple[int, Any]:
        return (200, listed(*[[0.6, 0.8]] * len(asked["input"]))) if is_back else (200, b"<html>Be patient</html>")

    async with odd_provider(answer) as proxy:
        settings = {"openai_base_url": proxy.base_url, "embeddings_enabled": True, "embedding_dimensions": 2}
        async with start_memory(**settings, upkeep_retry_seconds=0.1, upkeep_longest_pause_seconds=0.2) as memory:
            await memory.record(new_id(), turn(1, "cats"))
            async for _ in eventually():
                if len(proxy.asked) >= 3:
                    break
            found = await memory.search("cats")
            assert {one.memory.text for one in found.memories} == {"cats 1", "cats 2"}
            assert list(found.degraded) == ["embeddings"]
            assert await rows(database, "select tries from upkeep where task = 'embed'") == [{"tries": 0}]
            is_back = True
            await embedded(database, 2)
