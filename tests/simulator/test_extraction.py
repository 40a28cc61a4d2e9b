"""Facts by rule: which operations a conversation comes to."""

from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI

from services.memory.extraction.proposals import SCHEMA, read_answer

FORMAT: Any = {"type": "json_schema", "name": SCHEMA.name, "schema": dict(SCHEMA.schema), "strict": True}


def line(**fields: Any) -> str:
    return orjson.dumps(fields).decode()


def said(number: int, text: str, who: str = "user") -> str:
    return line(message=number, date="2024-02-10 Saturday", who=who, text=text)


def known(number: int, attribute: str, text: str) -> str:
    return line(fact=number, subject="user", attribute=attribute, text=text)


async def operations(client: AsyncOpenAI, *lines: str) -> list[dict[str, Any]]:
    """What is proposed, without what it leaves out."""
    answer, again = [
        await client.responses.create(model="m", input="\n".join(lines), text={"format": FORMAT}) for _ in range(2)
    ]
    assert again.output_text == answer.output_text
    assert read_answer(answer.output_text) is not None
    return list(orjson.loads(answer.output_text)["operations"])


@pytest.mark.parametrize(
    ("text", "fact", "attribute"),
    [
        ("I live in New York City.", "The user lives in New York City.", "home city"),
        ("Well, I'm living in Porto now", "The user lives in Porto.", "home city"),
        ("I moved from Lisbon to Porto and I miss it", "The user lives in Porto.", "home city"),
        ("My name is Ana Lopes!", "The user's name is Ana Lopes.", "name"),
        ("call me Bo", "The user's name is Bo.", "name"),
        ("I really love green tea", "The user likes green tea.", "likes"),
        ("I can't stand olives", "The user dislikes olives.", "dislikes"),
        ("I prefer trains because they are slow", "The user prefers trains.", "preference"),
        ("I'm allergic to peanuts", "The user is allergic to peanuts.", "allergy"),
        ("I work at Acme as a baker", "The user works at Acme.", "employer"),
        ("I work as a nurse", "The user works as a nurse.", "occupation"),
        ("I am a teacher", "The user is a teacher.", "is"),
        ("I'm 42 years old", "The user is 42 years old.", "age"),
        ("I have a dog called Rex", "The user has a dog called Rex.", "pet"),
        ("My wife is Ana", "The user's wife is Ana.", "wife"),
        ("my sister's name is Ida", "The user's sister is Ida.", "sister"),
        ("My favourite colour is green", "The user's favourite colour is green.", "favourite colour"),
        ("Please always answer in French", "The user wants answers in French.", "answer language"),
        ("Remember that I take my coffee black.", "The user takes their coffee black.", "note"),
    ],
)
async def test_a_sentence_in_the_first_person_is_a_fact(client: AsyncOpenAI, text: str, fact: str, attribute: str) -> None:
    [proposed] = await operations(client, "KNOWN FACTS", "none", "", "MESSAGES", said(1, text))
    assert (proposed["operation"], proposed["fact"], proposed["sources"]) == ("ADD", None, [1])
    assert (proposed["text"], proposed["attribute"]) == (fact, attribute)


@pytest.mark.parametrize(
    "text", ["Thanks!", "Do I live in Rome?", "What is my name?", "It rains in Rome.", "I don't know.", "Tell me a joke."]
)
async def test_small_talk_and_questions_come_to_nothing(client: AsyncOpenAI, text: str) -> None:
    assert await operations(client, "KNOWN FACTS", "none", "", "MESSAGES", said(1, text)) == []


async def test_of_a_sentence_without_end_the_beginning_counts(client: AsyncOpenAI) -> None:
    text = f"I live in Faro, {'I ' * 2_500} and I like tea"
    assert [one["text"] for one in await operations(client, "MESSAGES", said(1, text))] == ["The user lives in Faro."]
    assert await operations(client, "MESSAGES", said(1, f"I live in Faro, {'or so ' * 500}?")) == []


async def test_the_assistant_says_no_facts(client: AsyncOpenAI) -> None:
    assert await operations(client, "MESSAGES", said(1, "I live in the cloud.", "assistant")) == []


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("I moved to Porto last May.", "2023-05"),
        ("I moved to Porto in January.", "2024-01"),
        ("I have lived in Porto since 2019", "2019"),
        ("I moved to Porto in June 2021", "2021-06"),
        ("I moved to Porto yesterday", "2024-02-09"),
        ("I moved to Porto last year", "2023"),
        ("I moved to Porto last month", "2024-01"),
        ("I moved to Porto", None),
    ],
)
async def test_dates_are_resolved_by_that_of_the_message(client: AsyncOpenAI, text: str, date: str | None) -> None:
    [proposed] = await operations(client, "MESSAGES", said(1, text))
    assert (proposed["text"], proposed["valid_from"]) == ("The user lives in Porto.", date)


async def test_known_facts_are_updated_ended_or_confirmed(client: AsyncOpenAI) -> None:
    facts = [
        "KNOWN FACTS",
        known(1, "home city", "The user lives in Lisbon."),
        known(2, "likes", "The user likes coffee."),
        known(3, "employer", "The user works at Acme."),
        known(4, "name", "The user's name is Ana."),
        "",
        "MESSAGES",
    ]
    proposed = await operations(
        client,
        *facts,
        said(1, "I moved to Porto. I hate coffee."),
        said(2, "I no longer work at Acme."),
        said(3, "As you know, my name is Ana."),
    )
    found = [(one["operation"], one["fact"], one["sources"]) for one in proposed]
    assert found == [("UPDATE", 1, [1]), ("UPDATE", 2, [1]), ("INVALIDATE", 3, [2]), ("NOOP", 4, [3])]


async def test_the_same_said_twice_is_one_operation_with_both_sources(client: AsyncOpenAI) -> None:
    [proposed] = await operations(client, "MESSAGES", said(1, "I like tea."), said(2, "I still like tea!"))
    assert proposed["sources"] == [1, 2]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("My name is Ana and I live in Lisbon.", ["The user's name is Ana.", "The user lives in Lisbon."]),
        ("I love climbing, and I am allergic to peanuts.", ["The user likes climbing.", "The user is allergic to peanuts."]),
        ("I work at Acme, and my dog is called Rex", ["The user works at Acme.", "The user's dog is called Rex."]),
        ("I like tea, but I can't stand olives", ["The user likes tea.", "The user dislikes olives."]),
        ("I live in Lisbon and work at Acme.", ["The user lives in Lisbon.", "The user works at Acme."]),
        (
            "My name is Bo; my wife is Ana, so I speak Greek",
            ["The user's name is Bo.", "The user's wife is Ana.", "The user speaks Greek."],
        ),
        ("I moved to Porto and I love it, and I have to unpack.", ["The user lives in Porto."]),
    ],
)
async def test_every_statement_of_a_compound_sentence_is_a_fact(client: AsyncOpenAI, text: str, facts: list[str]) -> None:
    assert [one["text"] for one in await operations(client, "MESSAGES", said(1, text))] == facts


@pytest.mark.parametrize(
    ("text", "fact", "attribute", "since"),
    [
        ("Remember that my passport expires in May 2027.", "The user's passport expires in May 2027.", "plan", None),
        ("Remember that my son was born in May 2019", "The user's son was born in May 2019.", "note", None),
        ("Remember that I play chess since 2019", "The user plays chess.", "note", "2019"),
        ("My birthday is in May 1990.", "The user's birthday is in May 1990.", "birthday", None),
        ("I am moving to Porto in 2030", "The user is moving to Porto in 2030.", "plan", None),
        ("I lived in Rome until 2019", "The user lived in Rome.", "former home city", None),
    ],
)
async def test_a_date_stays_where_a_fact_is_nothing_without_it_and_nothing_holds_since_the_future(
    client: AsyncOpenAI, text: str, fact: str, attribute: str, since: str | None
) -> None:
    [proposed] = await operations(client, "MESSAGES", said(1, text))
    assert (proposed["text"], proposed["attribute"], proposed["valid_from"]) == (fact, attribute, since)
