"""What is remembered already in other words is learned once: stored by the tool from the same message, or stated before."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from parley.memory.v1 import memory_pb2
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.learning import LEARNING, Learner, operation, proposing
from tests.memory.service import message


@pytest.fixture
async def learner(start_memory: Start, simulator: Running, database: ServiceDatabase) -> AsyncIterator[Learner]:
    async with start_memory(openai_base_url=simulator.base_url, **LEARNING) as memory:
        yield Learner(memory, simulator, database)


async def remembered(learner: Learner, said: str, fact: str, *proposed: dict[str, Any]) -> memory_pb2.Memory:
    """A message, the fact that the tool stored of it while it was answered, and then what the model proposes of it."""
    one, reply = (message(learner.said + place, text) for place, text in enumerate((said, "I will."), 1))
    learner.said += 2
    source = memory_pb2.MemorySource(conversation_id=learner.conversation_id, message_id=one.message_id)
    stored = await learner.memory.add_memory(fact, metadata=learner.memory.as_chat(), source=source)
    if proposed:
        await learner.script(proposing(*proposed))
    await learner.memory.record(learner.conversation_id, [one, reply])
    await learner.read()
    return stored


async def test_what_the_tool_remembered_is_not_learned_again_by_the_simulator(learner: Learner) -> None:
    stored = await remembered(learner, "Remember that my passport expires in May 2027.", "My passport expires in May 2027.")
    [fact] = await learner.facts()
    assert (fact.id, fact.text, len(fact.sources)) == (stored.id, "My passport expires in May 2027.", 1)


@pytest.mark.parametrize(
    ("said", "stored", "proposed"),
    [
        (
            "Remember that my passport expires in May 2027.",
            "My passport expires in May 2027.",
            operation(text="The user's passport expires.", attribute="note", valid_from="2027-05-01"),
        ),
        (
            "Remember that my passport expires in May 2027.",
            "My passport expires in May 2027.",
            operation(text="The passport expires in May 2027.", subject="passport", attribute="expiry date"),
        ),
        (
            "Remember that I fly to Oslo for my sister's wedding",
            "I fly to Oslo for my sister's wedding",
            operation(text="The user flies to Oslo.", attribute="plan"),
        ),
        (
            "remember my dog Rex barks at night",
            "My dog Rex barks at night",
            operation(text="The user has a pet dog named Rex.", subject="Rex", attribute="pet"),
        ),
        (
            "Remember that Rex is my dog",
            "Rex is my dog",
            operation(text="The user has a pet named Rex, a dog.", attribute="pet"),
        ),
        ("请记住我住在上海", "我住在上海", operation(text="用户住在上海", attribute="home city")),
    ],
)
async def test_less_or_the_same_from_the_message_that_a_fact_has_is_that_fact(
    learner: Learner, said: str, stored: str, proposed: dict[str, Any]
) -> None:
    first = await remembered(learner, said, stored, proposed)
    assert [(fact.id, fact.text) for fact in await learner.facts()] == [(first.id, stored)]


@pytest.mark.parametrize(
    ("said", "stored", "proposed"),
    [
        ("Remember my sister is Ana. She lives in Porto", "My sister is Ana.", "The user's sister Ana lives in Porto"),
        ("Remember my sister is Ana. She is 30", "My sister is Ana.", "The user's sister Ana is 30"),
        ("Remember my dog is Rex. He fears all fireworks", "My dog is Rex.", "The user's dog Rex fears fireworks"),
        ("Remember I like tea. I don't like green tea", "I like tea.", "The user does not like green tea"),
    ],
)
async def test_what_the_same_message_says_beside_it_is_another_fact(
    learner: Learner, said: str, stored: str, proposed: str
) -> None:
    await remembered(learner, said, stored, operation(text=proposed, attribute="note"))
    assert await learner.texts() == sorted([stored, proposed])


async def test_less_of_the_same_in_another_message_is_another_fact(learner: Learner) -> None:
    await remembered(learner, "Remember that I like green tea.", "I like green tea.")
    await learner.script(proposing(operation(text="The user likes tea.", attribute="likes", sources=[2])))
    await learner.say("I like tea.")
    assert await learner.texts() == ["I like green tea.", "The user likes tea."]


@pytest.mark.parametrize("kind", ["ADD", "UPDATE"])
async def test_what_was_remembered_and_supersedes_an_older_fact_leaves_one_with_its_history(
    learner: Learner, kind: str
) -> None:
    await learner.say("I live in Lisbon.")
    text = "The user lives in Porto."
    number = 1 if kind == "UPDATE" else None
    proposed = operation(kind, text, attribute="home city", sources=[2], fact=number)
    # The model is shown the facts that are known: the older one among them.
    await remembered(learner, "Remember that I live in Porto now.", "I live in Porto now.", proposed)
    [current] = await learner.facts()
    assert current.text == "I live in Porto now."
    assert [one.text for one in await learner.memory.history(current.id)] == ["The user lives in Lisbon."]


@pytest.mark.parametrize(
    ("stated", "said", "learned"),
    [
        ("My dog is called Rex.", "My dog is called Rex.", operation(text="The user's dog is called Rex.", attribute="pet")),
        ("My dog is called Rex.", "My dog is called Rex.", operation(text="The user's dog is called Rex.", subject="Rex")),
        ("I fly kites.", "I fly kites", operation(text="The user flies kites.", attribute="hobby")),
        ("I go to Oslo by myself.", "I go to Oslo by myself", operation(text="They go to Oslo by themselves.")),
        ("We've a garden.", "We've a garden!", operation(text="The user has a garden.", attribute="has")),
        ("I'm from Lisbon", "I'm from Lisbon", operation(text="The user is from Lisbon", attribute="note")),
    ],
)
async def test_what_the_user_stated_in_the_first_person_is_known_in_the_third(
    learner: Learner, stated: str, said: str, learned: dict[str, Any]
) -> None:
    first = await learner.memory.add_memory(stated)
    await learner.script(proposing(learned))
    [source] = await learner.say(said)
    [fact] = await learner.facts()
    assert (fact.id, fact.text) == (first.id, stated)
    assert [one.message_id for one in fact.sources] == [source]


async def test_the_same_of_somebody_else_is_another_fact(learner: Learner) -> None:
    await learner.memory.add_memory("My sister lives in Oslo.")
    await learner.script(proposing(operation(text="Ana lives in Oslo.", subject="Ana")))
    await learner.say("Ana lives in Oslo")
    assert len(await learner.facts()) == 2


async def test_every_statement_of_a_compound_sentence_is_learned(learner: Learner) -> None:
    await learner.say("My name is Ana and I live in Lisbon.", "I love climbing, and I am allergic to peanuts.")
    assert await learner.texts() == [
        "The user is allergic to peanuts.",
        "The user likes climbing.",
        "The user lives in Lisbon.",
        "The user's name is Ana.",
    ]
