"""Searching by words: what is found, of whom, and how much."""

import grpc
import pytest

from services.memory.recall.scope import Scope
from services.memory.recall.word_statements import by_words
from services.runtime.database import open_database
from suite.databases import ServiceDatabase
from tests.memory.service import MemoryService, fields_of, message, new_id
from tests.memory.statements import counted_statements


async def said(memory: MemoryService, *texts: str, conversation_id: str = "", user_id: str | None = None) -> str:
    """A conversation with these messages, the user's and the assistant's in turn."""
    conversation_id = conversation_id or new_id()
    await memory.record(conversation_id, [message(n, text) for n, text in enumerate(texts, 1)], user_id=user_id)
    return conversation_id


async def test_a_message_is_found_by_a_word_of_it(memory: MemoryService) -> None:
    conversation_id = await said(memory, "My dog is called Bello.", "What a fine name!", "I repair old clocks.")
    answer = await memory.search("dog")
    best = answer.memories[0]
    assert (best.memory.text, best.memory.kind, best.memory.role) == ("My dog is called Bello.", "message", "user")
    assert (best.memory.conversation_id, best.memory.sequence) == (conversation_id, 1)
    assert best.memory.stamped_by == "user"
    assert best.memory.record_time.seconds
    assert list(best.found_by) == ["words"]
    assert all(one.score > 0 for one in answer.memories)
    assert list(answer.degraded) == []


async def test_words_are_found_in_other_forms(memory: MemoryService) -> None:
    await said(memory, "We adopted two puppies.", "Lovely.", "I was running late.")
    assert (await memory.found("puppy adoption"))[0] == "We adopted two puppies."
    assert (await memory.found("who runs?"))[0] == "I was running late."


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Meine Tochter studiert Meeresbiologie in Kiel.", "Was studiert die Tochter?"),
        ("我妹妹住在上海。她喜欢喝茶。", "上海"),
        ("うちの猫はミケという名前です。", "猫の名前"),
        ("แมวของฉันชื่อส้ม", "แมว"),
        ("Мою собаку зовут Белка.", "собаку"),
        ("كلبي اسمه ريكس", "كلبي"),
    ],
)
async def test_other_languages_are_found_by_their_words(memory: MemoryService, text: str, query: str) -> None:
    await said(memory, "I like tea.", "Good.", text, "Indeed.", "Nothing else.")
    assert (await memory.found(query))[0] == text


async def test_a_rare_word_counts_more_than_a_common_one_and_a_short_text_more_than_a_long_one(
    memory: MemoryService,
) -> None:
    for n in range(8):
        await said(memory, f"The garden needs water, day {n}.")
    await said(memory, "The garden has a gazebo.")
    assert (await memory.found("gazebo in the garden"))[0] == "The garden has a gazebo."
    long = "Marzipan, among a great many other sweets such as nougat, toffee, fudge, liquorice and candied orange peel."
    await said(memory, long)
    await said(memory, "Marzipan it is.")
    assert (await memory.found("marzipan", kind="message"))[:2] == ["Marzipan it is.", long]


async def test_a_word_that_is_said_often_counts_more(memory: MemoryService) -> None:
    await said(memory, "chess tea bread milk")
    await said(memory, "chess chess chess milk")
    assert (await memory.found("chess"))[0] == "chess chess chess milk"


async def test_nothing_to_look_for_finds_nothing(memory: MemoryService) -> None:
    await said(memory, "My dog is called Bello.")
    assert await memory.found("what is the of and") == []
    assert await memory.found("?!") == []
    assert await memory.found("submarine") == []


async def test_quotes_and_operators_are_words_like_others(memory: MemoryService) -> None:
    await said(memory, "O'Brien's cat & dog | bird")
    for query in ("O'Brien", "dog & !cat", "bird <-> \\ ' \" : *", "%s :name", "'; drop table turns --"):
        await memory.found(query)
    assert await memory.found("O'Brien's") == ["O'Brien's cat & dog | bird"]


async def test_an_empty_or_oversized_query_is_refused(memory: MemoryService) -> None:
    for query in ("", "x" * 10_001):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await memory.search(query)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields_of(refused.value) == {"query"}


async def test_a_long_query_is_answered(memory: MemoryService) -> None:
    await said(memory, "The astrolabe is in the attic.")
    padding = " ".join(f"filler{n}" for n in range(1_000))
    assert await memory.found(f"astrolabe {padding[:9_000]} astrolabe") == ["The astrolabe is in the attic."]


async def test_the_number_of_results_is_held_within_bounds(memory: MemoryService) -> None:
    for _ in range(2):
        await said(memory, *(f"kiwi number {n}" for n in range(100)))
    assert len(await memory.found("kiwi")) == 10
    assert len(await memory.found("kiwi", limit=3)) == 3
    assert len(await memory.found("kiwi", limit=5_000)) == 100


async def test_a_reply_without_text_is_not_found(memory: MemoryService) -> None:
    await said(memory, "Where is the ferry?", "")
    assert await memory.found("ferry") == ["Where is the ferry?"]


async def test_only_messages_of_the_conversation_that_is_named_are_found(memory: MemoryService) -> None:
    first = await said(memory, "The kiwi is ripe.")
    await said(memory, "A kiwi is a bird.")
    assert await memory.found("kiwi", conversation_id=first) == ["The kiwi is ripe."]
    assert await memory.found("kiwi", conversation_id=new_id()) == []


async def test_somebody_elses_messages_are_never_found(memory: MemoryService) -> None:
    conversation_id = await said(memory, "My secret is a canary.")
    other = new_id()
    await said(memory, "I have no pets.", user_id=other)
    assert await memory.found("canary", user_id=other) == []
    assert await memory.found("canary", user_id=other, conversation_id=conversation_id) == []
    assert await memory.found("canary") == ["My secret is a canary."]


async def test_row_level_security_alone_keeps_users_apart(memory: MemoryService, database: ServiceDatabase) -> None:
    await said(memory, "My secret is a canary.")
    statement = by_words(Scope(), 4)
    values = {"user_id": memory.user_id, "query": "canary", "depth": 10}
    opened = open_database(database.url, pool_size=1)
    counts = []
    # The statement asks for the rows of one user in transactions of both.
    for user_id in (memory.user_id, new_id()):
        async with opened.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statement, values)).all()
            counts.append(len([row for row in rows if row.leg == "words"]))
    await opened.close()
    assert counts == [1, 0]


async def test_a_deleted_conversation_is_not_found_and_neither_is_an_end_that_was_edited_away(memory: MemoryService) -> None:
    conversation_id = await said(memory, "The kiwi is ripe.", "Eat it.", "The mango is ripe.", "Eat it too.")
    await memory.forget(conversation_id, 3)
    assert await memory.found("mango") == []
    assert (await memory.found("kiwi"))[0] == "The kiwi is ripe."
    await memory.forget(conversation_id)
    assert await memory.found("kiwi") == []


async def test_a_search_is_three_statements_however_much_is_found(memory: MemoryService) -> None:
    await said(memory, *(f"kiwi number {n}" for n in range(60)))
    for n in range(5):
        await memory.add_memory(f"Likes kiwi {n}.")
    with counted_statements() as seen:
        assert len(await memory.found("kiwi", limit=50)) == 50
    assert len([one for one in seen if not one.startswith("begin")]) == 3
