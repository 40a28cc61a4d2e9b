"""Memory functions by intent: which call the words lead to, with which arguments, and how its result is told."""

from typing import Any

import orjson
import pytest

from simulator.answers import FunctionCall
from simulator.memory_calls import next_call, read_intent, tell_results
from simulator.prompt import Call, Message, Output, Prompt

TOOLS = tuple({"type": "function", "name": name} for name in ("remember", "recall", "forget"))
ONE, TWO = (f"0199aaaa-0000-7000-8000-00000000000{number}" for number in (1, 2))


def prompt(text: str, *items: Any, told: str = "", tools: Any = TOOLS) -> Prompt:
    before = (Message("developer", told),) if told else ()
    return Prompt(items=(*before, Message("user", text), *items), tools=tools)


def called(asked: Prompt) -> tuple[str, dict[str, Any]] | None:
    made = next_call(asked)
    if not made:
        return None
    (one,) = made
    assert isinstance(one, FunctionCall)
    return one.name, orjson.loads(one.arguments)


def result(name: str, **told: Any) -> tuple[Call, Output]:
    return Call("c", name, "{}"), Output("c", orjson.dumps(told).decode())


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("Remember that my dog is Rex.", ("remember", {"text": "My dog is Rex."})),
        ("please remember: I hate olives", ("remember", {"text": "I hate olives"})),
        ("Remember my cat is Tom", ("remember", {"text": "My cat is Tom"})),
        ("What do you remember about my dog?", ("recall", {"query": "my dog"})),
        ("what do you know of Ana", ("recall", {"query": "Ana"})),
        ("Forget about my dog", ("recall", {"query": "my dog"})),
        ("Remember to buy milk", None),
        ("Do you remember the war?", None),
        ("Do not forget that I like tea", None),
        ("Hello", None),
    ],
)
async def test_the_words_lead_to_a_call(text: str, call: tuple[str, dict[str, Any]] | None) -> None:
    assert called(prompt(text)) == call
    assert called(prompt(text, tools=())) is None


async def test_what_is_to_be_forgotten_is_the_fact_that_is_shown_and_no_message() -> None:
    told = f'- [{ONE}] (2026-05-04, user) "User\'s dog is Rex"\n- [{TWO}] (2026-05-05, user said) "My dog is Rex"'
    assert called(prompt("Forget that my dog is Rex.", told=told)) == ("forget", {"memory_id": ONE})


async def test_what_is_recalled_is_forgotten_then_and_what_is_not_found_is_said() -> None:
    found = [{"memory_id": TWO, "kind": "message", "text": "My dog"}, {"memory_id": ONE, "kind": "fact", "text": "My dog"}]
    assert called(prompt("Forget about my dog", *result("recall", memories=found))) == ("forget", {"memory_id": ONE})
    nothing = prompt("Forget about my dog", *result("recall", memories=[]))
    assert called(nothing) is None
    assert tell_results(nothing) == 'I remember nothing like "my dog".'


@pytest.mark.parametrize(
    ("text", "made", "reply"),
    [
        ("Remember that I like tea", result("remember", remembered={}), "I will remember it."),
        ("Forget about tea", result("forget", forgotten=ONE), "I have forgotten it."),
        ("What do you know about tea?", result("recall", memories=[]), "I remember nothing about tea."),
        (
            "What do you know about tea?",
            result("recall", memories=[{"text": "I like it"}, {"text": "Green"}]),
            "About tea I remember: I like it; Green.",
        ),
        ("Remember that I like tea", (Call("c", "remember", "{}"), Output("c", "Error: no")), "I called remember and it "),
    ],
)
async def test_the_result_is_told(text: str, made: Any, reply: str) -> None:
    assert (tell_results(prompt(text, *made)) or "").startswith(reply)
    assert called(prompt(text, *made)) is None


async def test_results_of_other_functions_are_left_to_others() -> None:
    assert tell_results(prompt("Remember that I like tea", *result("add_task"))) is None
    assert read_intent("x" * 500 + " remember that I like tea") is None
