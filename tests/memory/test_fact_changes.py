"""Changes of facts as the extraction makes them: many in one transaction, on the ground of messages that are still there."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from services.memory.facts.changes import Add, Basis, Change, Close, Confirm, Content, Outcome, Replace, Stale
from services.memory.facts.held import FactLimits, Request
from services.memory.facts.store import FactStore
from services.memory.records import Fact, Source, body_hash
from services.runtime.database import Database, open_database
from suite.databases import ServiceDatabase
from tests.memory.database import fetch, run
from tests.memory.service import MemoryService, message, new_id, repeatable
from tests.memory.statements import counted_statements

YEAR_2024 = datetime(2024, 1, 1, tzinfo=UTC)
YEAR_2025 = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
async def pool(database: ServiceDatabase) -> AsyncIterator[Database]:
    opened = open_database(database.url, pool_size=5)
    yield opened
    await opened.close()


@pytest.fixture
def facts(pool: Database) -> FactStore:
    return FactStore(pool, FactLimits(facts=1000, versions=100), portray_delay_seconds=300)


@pytest.fixture
def user_id() -> str:
    return new_id()


def told(count: int = 1) -> list[Source]:
    return [Source(new_id(), new_id()) for _ in range(count)]


def add(text: str, *, sources: Sequence[Source] | None = None, **fields: object) -> Add:
    values: dict[str, object] = {"stamped_by": "user", "origin": "extracted", "sources": sources or told(), **fields}
    return Add(text=text, **values)  # type: ignore[arg-type] # as the test gives them


def to(fact_id: str, text: str, *, sources: Sequence[Source] | None = None, **fields: object) -> Replace:
    values: dict[str, object] = {"stamped_by": "user", "origin": "extracted", "sources": sources or told(), **fields}
    return Replace(fact_id=fact_id, text=text, **values)  # type: ignore[arg-type] # as the test gives them


async def one(facts: FactStore, user_id: str, change: Change) -> Outcome:
    [outcome] = await facts.change(user_id, [change], basis=None)
    return outcome


async def read(facts: FactStore, user_id: str, fact_id: str) -> Fact:
    found = await facts.find(user_id, fact_id)
    assert isinstance(found, Fact)
    return found


async def texts(facts: FactStore, user_id: str) -> list[str]:
    return sorted(fact.text for fact in await facts.read_live(user_id, most=1000))


async def test_what_is_added_again_is_merged(facts: FactStore, user_id: str) -> None:
    first, second = told(), told()
    outcomes = await facts.change(
        user_id, [add("Likes tea", sources=first), add("likes tea!", sources=second, stamped_by="assistant")], basis=None
    )
    assert [outcome.result for outcome in outcomes] == ["added", "merged"]
    fact = await read(facts, user_id, outcomes[0].fact_id)
    assert fact.stamped_by == "assistant"
    assert set(fact.sources) == {*first, *second}
    assert outcomes[1].fact_id == fact.id


async def test_what_the_user_stated_stays_stated_and_expires_as_asked(facts: FactStore, user_id: str) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    stated = Add(text="Is in a hotel", stamped_by="user", origin="stated", expire_time=tomorrow)
    outcome = await one(facts, user_id, stated)
    await one(facts, user_id, add("is in a hotel"))
    fact = await read(facts, user_id, outcome.fact_id)
    assert (fact.origin, fact.expire_time) == ("stated", tomorrow)
    await one(facts, user_id, Add(text="Is in a hotel", stamped_by="user", origin="stated"))
    assert (await read(facts, user_id, outcome.fact_id)).expire_time is None


async def test_repeating_changes_changes_nothing(facts: FactStore, user_id: str, database: ServiceDatabase) -> None:
    tea, cake = [(await one(facts, user_id, add(text))).fact_id for text in ("Likes tea", "Likes cake")]
    changes: list[Change] = [
        add("Likes rain"),
        to(tea, "Likes coffee", valid_from=YEAR_2025),
        Confirm(fact_id=tea, stamped_by="user", sources=told()),
        Close(fact_id=cake, valid_to=YEAR_2025),
    ]
    first = await facts.change(user_id, changes, basis=None)
    assert [outcome.result for outcome in first] == ["added", "replaced", "confirmed", "closed"]
    before = await fetch(database, "select * from facts order by id"), await fetch(database, "select version from people")
    again = await facts.change(user_id, changes, basis=None)
    assert [outcome.result for outcome in again] == ["merged", "merged", "confirmed", "not_current"]
    after = await fetch(database, "select * from facts order by id"), await fetch(database, "select version from people")
    assert after == before


async def test_a_replaced_fact_keeps_its_id_and_its_history_the_rest(
    facts: FactStore, user_id: str, database: ServiceDatabase
) -> None:
    of_lisbon, of_porto = told(2), told()
    lisbon = (await one(facts, user_id, add("Lives in Lisbon", sources=of_lisbon, valid_from=YEAR_2024))).fact_id
    statement = "insert into embeddings (user_id, item_id, kind, model, body) values (%s, %s, 'fact', 'm', '[1,2]')"
    await run(database, statement, user_id, lisbon)
    outcome = await one(facts, user_id, to(lisbon, "Lives in Porto", sources=of_porto, valid_from=YEAR_2025))
    assert outcome == Outcome("replaced", lisbon)
    porto = await read(facts, user_id, lisbon)
    [version] = await facts.read_history(user_id, lisbon, limit=10)
    assert (porto.text, porto.valid_from, porto.valid_to, set(porto.sources)) == (
        "Lives in Porto",
        YEAR_2025,
        None,
        set(of_porto),
    )
    assert (version.text, version.valid_from, version.valid_to) == ("Lives in Lisbon", YEAR_2024, YEAR_2025)
    assert (set(version.sources), version.superseded_by) == (set(of_lisbon), lisbon)
    assert version.invalidate_time == porto.record_time
    # What the words meant goes with the words.
    assert await fetch(database, "select item_id::text from embeddings") == [(version.id,)]


async def test_a_version_never_ends_before_it_began(facts: FactStore, user_id: str) -> None:
    porto = (await one(facts, user_id, add("Lives in Porto", valid_from=YEAR_2025))).fact_id
    await one(facts, user_id, to(porto, "Lives in Lisbon", valid_from=YEAR_2024))
    [version] = await facts.read_history(user_id, porto, limit=10)
    assert version.valid_to == YEAR_2025
    assert (await one(facts, user_id, Close(fact_id=porto, valid_to=YEAR_2024 - timedelta(days=1)))).result == "closed"
    assert (await read(facts, user_id, porto)).valid_to == YEAR_2024


async def test_a_fact_replaced_by_what_another_says_becomes_its_history(facts: FactStore, user_id: str) -> None:
    tea = (await one(facts, user_id, add("Likes tea"))).fact_id
    await one(facts, user_id, to(tea, "Likes green tea"))
    drink = (await one(facts, user_id, add("Likes coffee"))).fact_id
    await one(facts, user_id, to(drink, "Likes black coffee"))
    outcome = await one(facts, user_id, to(tea, "likes BLACK coffee"))
    assert outcome == Outcome("merged", drink)
    assert await texts(facts, user_id) == ["Likes black coffee"]
    history = await facts.read_history(user_id, drink, limit=10)
    assert [version.text for version in history] == ["Likes green tea", "Likes coffee", "Likes tea"]
    assert {version.superseded_by for version in history} == {drink}
    assert (await read(facts, user_id, tea)).superseded_by == drink


async def test_two_facts_can_take_each_others_words(facts: FactStore, user_id: str) -> None:
    first, second = [(await one(facts, user_id, add(text))).fact_id for text in ("Likes tea", "Likes coffee")]
    changes = [to(first, "Likes rain"), to(second, "Likes tea"), to(first, "Likes coffee")]
    assert [one.result for one in await facts.change(user_id, changes, basis=None)] == ["replaced"] * 3
    assert [(await read(facts, user_id, fact_id)).text for fact_id in (first, second)] == ["Likes coffee", "Likes tea"]
    history = await facts.read_history(user_id, first, limit=10)
    assert [version.text for version in history] == ["Likes rain", "Likes tea"]


async def test_a_closed_fact_stays_and_leaves_its_words_free(facts: FactStore, user_id: str) -> None:
    source = told()
    closed = (await one(facts, user_id, add("Works at Acme", sources=source))).fact_id
    assert await one(facts, user_id, Close(fact_id=closed, valid_to=YEAR_2025, sources=told())) == Outcome("closed", closed)
    fact = await read(facts, user_id, closed)
    assert (fact.valid_to, fact.superseded_by, list(fact.sources)) == (YEAR_2025, None, source)
    assert fact.invalidate_time is not None
    assert await texts(facts, user_id) == []
    assert await facts.read_page(user_id, limit=10) == []
    assert await facts.read_page(user_id, limit=10, include_closed=True) == [fact]
    again = await one(facts, user_id, add("Works at Acme"))
    assert again.result == "added"
    assert again.fact_id != closed
    for change in (to(closed, "Works at Else"), Confirm(fact_id=closed, stamped_by="user", sources=told())):
        assert await one(facts, user_id, change) == Outcome("not_current", closed)


async def test_what_says_something_else_by_now_is_left_alone(facts: FactStore, user_id: str) -> None:
    fact_id = (await one(facts, user_id, add("Likes tea"))).fact_id
    await facts.edit(user_id, fact_id, {"text": "Likes rain"}, stamped_by="user")
    seen = "Likes tea"
    changes: list[Change] = [
        to(fact_id, "Likes coffee", seen_text=seen),
        Close(fact_id=fact_id, seen_text=seen),
        Confirm(fact_id=fact_id, stamped_by="tool", sources=told(), seen_text=seen),
        to(new_id(), "Likes coffee"),
    ]
    assert {one.result for one in await facts.change(user_id, changes, basis=None)} == {"not_current"}
    assert await texts(facts, user_id) == ["Likes rain"]
    assert (await one(facts, user_id, to(fact_id, "Likes coffee", seen_text="likes rain"))).result == "replaced"


async def test_somebody_elses_fact_is_not_there(facts: FactStore, user_id: str) -> None:
    theirs = (await one(facts, new_id(), add("Likes tea"))).fact_id
    assert (await one(facts, user_id, to(theirs, "Likes rain"))).result == "not_current"
    assert (await one(facts, user_id, Close(fact_id=theirs))).result == "not_current"
    assert await texts(facts, user_id) == []


async def test_sources_have_a_bound(facts: FactStore, user_id: str) -> None:
    latest: list[Source] = []
    for _ in range(3):
        latest = told(60)
        outcome = await one(facts, user_id, add("Likes tea", sources=latest))
    sources = (await read(facts, user_id, outcome.fact_id)).sources
    assert len(sources) == 100
    assert set(latest) <= set(sources)


async def test_a_full_memory_takes_no_new_fact_and_every_other_change(pool: Database, user_id: str) -> None:
    facts = FactStore(pool, FactLimits(facts=2, versions=10), portray_delay_seconds=0)
    first = await one(facts, user_id, add("Fact 1"))
    outcomes = await facts.change(
        user_id, [add("Fact 2"), add("Fact 3"), add("fact 1"), to(first.fact_id, "Fact 4")], basis=None
    )
    assert [outcome.result for outcome in outcomes] == ["added", "full", "merged", "replaced"]
    assert await texts(facts, user_id) == ["Fact 2", "Fact 4"]


async def test_a_change_owes_its_consequences_and_counts(facts: FactStore, user_id: str, database: ServiceDatabase) -> None:
    await one(facts, user_id, add("Likes tea"))
    owed = await fetch(database, "select task, scope_id::text, due_time <= now() from upkeep order by task")
    assert owed == [("embed", user_id, True), ("portray", user_id, False)]
    [(before,)] = await fetch(database, "select version from people")
    await one(facts, user_id, add("Likes rain"))
    [(after,)] = await fetch(database, "select version from people")
    assert after > before


async def test_many_changes_take_no_more_statements_than_a_few(facts: FactStore, user_id: str) -> None:
    known = [(await one(facts, user_id, add(f"Fact {number}"))).fact_id for number in range(60)]

    def changes(ids: Sequence[str]) -> list[Change]:
        return [
            change
            for fact_id in ids
            for change in (add(f"New {fact_id}"), to(fact_id, f"Then {fact_id}"), to(fact_id, f"Now {fact_id}"))
        ]

    with counted_statements() as few:
        await facts.change(user_id, changes(known[:1]), basis=None)
    with counted_statements() as many:
        await facts.change(user_id, changes(known[1:]), basis=None)
    assert len(few) == len(many) <= 14
    with pytest.raises(ValueError, match="at most 200"):
        await facts.change(user_id, changes(known) + changes(known), basis=None)


async def statements_of(call: Awaitable[object]) -> int:
    with counted_statements() as seen:
        await call
    return len([one for one in seen if not one.startswith("begin")])


async def test_what_is_asked_takes_few_statements(facts: FactStore, user_id: str, database: ServiceDatabase) -> None:
    conversation_id, message_id = new_id(), new_id()
    row = "insert into conversations (user_id, conversation_id, version) values (%s, %s, 1)"
    await run(database, row, user_id, conversation_id)
    row = (
        "insert into turns (user_id, conversation_id, sequence, message_id, role, body, revision, token_count, create_time)"
        " values (%s, %s, 1, %s, 'user', 'hello', 0, 1, now())"
    )
    await run(database, row, user_id, conversation_id, message_id)
    fact_id = (await one(facts, user_id, add("Fact 0"))).fact_id
    for number in range(1, 9):
        await one(facts, user_id, to(fact_id, f"Fact {number}"))
        await one(facts, user_id, add(f"Other {number}"))
    assert await statements_of(facts.read_page(user_id, limit=10)) == 1
    assert await statements_of(facts.find(user_id, fact_id)) == 1
    assert await statements_of(facts.find(user_id, message_id)) == 1
    assert await statements_of(facts.read_history(user_id, fact_id, limit=10)) == 1
    assert await statements_of(facts.add(user_id, add("Likes tea"), request=Request("r", b"digest"))) == 13
    assert await statements_of(facts.add(user_id, add("Likes tea"), request=Request("r", b"digest"))) == 4
    assert await statements_of(facts.edit(user_id, fact_id, {"text": "Likes rain"}, stamped_by="user")) <= 14
    assert await statements_of(facts.delete(user_id, fact_id)) <= 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": ""},
        {"text": "  "},
        {"text": "x" * 1001},
        {"text": "a\0b"},
        {"attribute": "x" * 101},
        {"subject": "a\x07"},
        {"importance": 0},
        {"importance": 11},
        {"sources": ()},
    ],
)
def test_what_no_fact_can_be_is_refused(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"text": "Likes tea", "stamped_by": "user", "origin": "extracted", "sources": told()}
    Content(**right)  # type: ignore[arg-type] # as the test gives them
    with pytest.raises(ValueError, match=r"fact|name"):
        Content(**{**right, **wrong})  # type: ignore[arg-type] # as the test gives them


async def recorded(memory: MemoryService, *, messages: int = 2) -> Basis:
    conversation_id = new_id()
    said = [message(number, f"words {number}") for number in range(1, messages + 1)]
    await memory.record(conversation_id, said)
    return Basis(conversation_id, {one.message_id: one.revision for one in said}, extracted_sequence=messages)


def sources_of(basis: Basis) -> list[Source]:
    return [Source(basis.conversation_id, message_id) for message_id in basis.messages]


async def extracted_sequence(database: ServiceDatabase, basis: Basis) -> int:
    query = "select extracted_sequence from conversations where conversation_id = %s"
    [(sequence,)] = await fetch(database, query, basis.conversation_id)
    assert isinstance(sequence, int)
    return sequence


async def test_what_was_extracted_is_noted_with_the_changes(
    memory: MemoryService, facts: FactStore, database: ServiceDatabase
) -> None:
    basis = await recorded(memory)
    await facts.change(memory.user_id, [add("Likes tea", sources=sources_of(basis))], basis=basis)
    assert await extracted_sequence(database, basis) == 2
    empty = await recorded(memory)
    assert await facts.change(memory.user_id, [], basis=empty) == []
    assert await extracted_sequence(database, empty) == 2
    assert await texts(facts, memory.user_id) == ["Likes tea"]


async def test_a_basis_serves_once(memory: MemoryService, facts: FactStore, database: ServiceDatabase) -> None:
    basis = await recorded(memory, messages=8)
    done = await asyncio.gather(
        *(facts.change(memory.user_id, [add(f"Likes drink {number}")], basis=basis) for number in range(4)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Stale) for one in done) == 3
    assert len(await texts(facts, memory.user_id)) == 1
    further = Basis(basis.conversation_id, basis.messages, extracted_sequence=9, after_sequence=0)
    with pytest.raises(Stale):
        await facts.change(memory.user_id, [add("Likes rain")], basis=further)
    assert await extracted_sequence(database, basis) == 8
    further = Basis(basis.conversation_id, basis.messages, extracted_sequence=9, after_sequence=8)
    await facts.change(memory.user_id, [add("Likes rain")], basis=further)
    assert await extracted_sequence(database, basis) == 9


async def test_changes_on_the_ground_of_what_is_gone_are_not_made(
    memory: MemoryService, facts: FactStore, database: ServiceDatabase
) -> None:
    rewritten, shortened, deleted, strange = [await recorded(memory) for _ in range(4)]
    last = list(rewritten.messages)[1]
    await memory.record(rewritten.conversation_id, [message(2, "other words", message_id=last, revision=1)])
    await memory.forget(shortened.conversation_id, 2)
    await memory.forget(deleted.conversation_id)
    elsewhere = Basis(strange.conversation_id, {**strange.messages, new_id(): 0}, extracted_sequence=2)
    others = await recorded(memory)
    mixed = Basis(others.conversation_id, strange.messages, extracted_sequence=2)
    for basis in (rewritten, shortened, deleted, elsewhere, mixed):
        with pytest.raises(Stale):
            await facts.change(memory.user_id, [add("Likes tea", sources=sources_of(basis))], basis=basis)
    with pytest.raises(Stale):
        await facts.change(new_id(), [add("Likes tea")], basis=strange)
    assert await fetch(database, "select id from facts") == []
    assert await fetch(database, "select true from conversations where extracted_sequence > 0") == []


async def test_facts_are_found_by_their_words(facts: FactStore, user_id: str) -> None:
    said = ["Has a dog called Rex", "Likes walking the dog", "Works at O'Neill \\ Sons: 'C++'", "Lives in Porto"]
    await facts.change(user_id, [add(text, importance=number + 1) for number, text in enumerate(said)], basis=None)
    await one(facts, new_id(), add("Has a dog too"))
    found = await facts.read_similar(user_id, "My dogs are called Rex & Bo | !(x)", most=5)
    assert [fact.text for fact in found] == ["Has a dog called Rex", "Likes walking the dog"]
    assert [one.text for one in await facts.read_similar(user_id, "o'neill's \\ 'sons'", most=5)] == [said[2]]
    assert await facts.read_similar(user_id, "the of ?!", most=5) == []
    assert await facts.read_similar(user_id, "", most=5) == []
    assert [fact.text for fact in await facts.read_live(user_id, most=2)] == ["Lives in Porto", said[2]]


def any_change(chance: random.Random, known: Sequence[str]) -> Change:
    text = f"Fact {chance.randrange(12)}"
    kind = chance.randrange(4)
    if kind == 0 or not known:
        return add(text)
    fact_id = chance.choice(known)
    if kind == 1:
        return to(fact_id, text)
    return Close(fact_id=fact_id) if kind == 2 else Confirm(fact_id=fact_id, stamped_by="user", sources=told())


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_changed_at_once_the_facts_agree(
    pool: Database, database: ServiceDatabase, user_id: str, seed: int
) -> None:
    stores = [FactStore(pool, FactLimits(facts=40, versions=5), portray_delay_seconds=0) for _ in range(3)]
    chance = repeatable(seed)
    known: list[str] = []

    async def work(store: FactStore, batches: Sequence[int]) -> None:
        for size in batches:
            outcomes = await store.change(user_id, [any_change(chance, known) for _ in range(size)], basis=None)
            known.extend(outcome.fact_id for outcome in outcomes if outcome.result == "added")

    async with asyncio.TaskGroup() as group:
        for store in stores:
            group.create_task(work(store, [1, 5, 2, 20, 1, 8]))
    rows = await fetch(
        database, "select id::text, body, body_hash, invalidate_time, superseded_by::text, valid_from, valid_to from facts"
    )
    by_id = {row[0]: row for row in rows}
    current = [row[2] for row in rows if row[3] is None]
    assert len(current) == len(set(current))
    assert all(row[2] == body_hash(row[1]) for row in rows)
    versions = [row for row in rows if row[4] is not None]
    assert all(by_id[row[4]][4] is None for row in versions), "a history is flat"
    per_fact = [len(list(group)) for _, group in itertools.groupby(sorted(row[4] for row in versions))]
    assert max(per_fact, default=0) <= 5
    groundless = "select id from facts where not exists (select from fact_sources where fact_id = id)"
    assert await fetch(database, groundless) == []
