"""The cut of a context: within the budget, without holes, and steady at its beginning."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from services.memory.context import Block, Context, assemble
from services.memory.tokens import message_tokens, text_tokens
from services.memory.turns import Turn
from tests.memory.service import MemoryService, message, new_id, repeatable, turn
from tests.memory.statements import counted_statements


def _turn(sequence: int, tokens: int) -> Turn:
    role = "user" if sequence % 2 else "assistant"
    return Turn(f"m{sequence}", sequence, role, "text" if tokens else "", 0, datetime(2026, 1, 1, tzinfo=UTC), tokens)


def _whole(sizes: Sequence[int]) -> Block:
    turns = [_turn(place, tokens) for place, tokens in enumerate(sizes, 1) if tokens]
    return Block(1, 0, turns[::-1])


def _cut(block: Block, last_sequence: int, budget: int, most_messages: int = 500) -> Context:
    context = assemble(block, last_sequence=last_sequence, token_budget=budget, most_messages=most_messages)
    assert context is not None
    return context


def _begins_at(context: Context) -> int:
    return context.turns[0].sequence


def test_everything_goes_in_while_it_fits() -> None:
    assert [one.sequence for one in _cut(_whole([10] * 10), 10, 100).turns] == list(range(1, 11))
    assert _cut(_whole([10] * 10), 10, 100).token_count == 100


def test_a_message_larger_than_the_budget_gives_nothing() -> None:
    assert _cut(_whole([10, 10, 101]), 3, 100) == Context(last_sequence=3)


def test_every_cut_is_a_run_of_the_latest_turns_within_the_budget_and_not_much_smaller() -> None:
    chance = repeatable(7)
    for _ in range(300):
        sizes = [chance.choice([0, 5, 20, 60, 300]) for _ in range(chance.randint(1, 80))]
        budget = chance.randint(1, 1200)
        with_text = [place for place, tokens in enumerate(sizes, 1) if tokens]
        context = _cut(_whole(sizes), len(sizes), budget)
        places = [one.sequence for one in context.turns]
        assert places == with_text[len(with_text) - len(places) :]
        assert context.token_count == sum(one.token_count for one in context.turns) <= budget
        longest = 0
        for place in reversed(with_text):
            if longest + sizes[place - 1] > budget:
                break
            longest += sizes[place - 1]
        assert context.token_count * 4 >= longest * 3


def test_the_beginning_stays_the_same_for_many_turns() -> None:
    chance = repeatable(3)
    sizes = [chance.randint(20, 180) for _ in range(600)]
    beginnings = [_begins_at(_cut(_whole(sizes[:last]), last, 4000)) for last in range(2, 601, 2)]
    changes = sum(earlier != later for earlier, later in pairwise(beginnings))
    # A beginning that slides changes at 280 of these 300 turns. A quarter of 4,000 tokens is 10 messages or 5 turns: 56
    # changes are the fewest that there can be.
    assert changes <= 80
    assert beginnings == sorted(beginnings)


def test_a_cut_begins_with_a_user_message_where_it_can() -> None:
    for last in range(20, 60):
        assert _cut(_whole([10] * last), last, 100).turns[0].role == "user"


def test_any_block_that_reaches_back_far_enough_gives_the_same_cut() -> None:
    chance = repeatable(11)
    for _ in range(60):
        sizes = [chance.choice([0, 10, 40, 90]) for _ in range(60)]
        budget, most = chance.randint(50, 800), chance.randint(5, 70)
        expected = _cut(_whole(sizes), 60, budget, most)
        for first in range(2, 60):
            newest_first = [_turn(n, sizes[n - 1]) for n in range(60, first - 1, -1) if sizes[n - 1]]
            block = Block(first, sizes[first - 2], newest_first)
            found = assemble(block, last_sequence=60, token_budget=budget, most_messages=most)
            assert found in (None, expected)
            if found is None:
                assert sum(one.token_count for one in newest_first) + sizes[first - 2] <= budget


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("The quick brown fox jumps over the lazy dog.", 9, 14),
        ("a b c d e f", 6, 9),
        ("Привет, как дела сегодня?", 8, 14),
        ("今日はいい天気ですね", 9, 11),
        ("😀😀😀", 5, 7),
    ],
)
def test_tokens_are_of_the_right_order_in_any_script(text: str, least: int, most: int) -> None:
    assert least <= text_tokens(text) <= most


def test_an_empty_message_costs_nothing() -> None:
    assert message_tokens("") == 0
    assert message_tokens("x") > text_tokens("x")


async def test_a_context_holds_the_latest_messages_that_fit_oldest_first(memory: MemoryService) -> None:
    conversation_id = new_id()
    for number in range(1, 16):
        await memory.record(conversation_id, turn(number, "four words at most"))
    answer = await memory.assemble(conversation_id, budget=100)
    places = [one.sequence for one in answer.messages]
    assert places == list(range(places[0], 31))
    assert 75 <= answer.token_count <= 100
    assert answer.token_count == sum(message_tokens(one.text) for one in answer.messages)
    assert answer.last_sequence == 30


async def test_working_set_and_postgres_give_the_same_context(memory: MemoryService) -> None:
    conversation_id, chance = new_id(), repeatable(5)
    for number in range(1, 17):
        told = turn(number, "word " * chance.randint(1, 120))
        told[1].text *= chance.random() > 0.2
        await memory.record(conversation_id, told)
        budget = chance.choice([50, 400, 2000, 9000])
        held = await memory.assemble(conversation_id, budget=budget)
        await memory.record(conversation_id, told)
        await memory.forget(conversation_id, 2 * number + 1)  # forgets nothing, but empties the working set
        assert await memory.assemble(conversation_id, budget=budget) == held


async def test_a_replys_empty_text_is_left_out_and_leaves_no_hole(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1, "ask"), message(2, ""), message(3, "ask again")])
    answer = await memory.assemble(conversation_id)
    assert [one.sequence for one in answer.messages] == [1, 3]
    assert answer.last_sequence == 3


async def test_budgets_have_a_default_and_a_greatest(memory: MemoryService) -> None:
    conversation_id = new_id()
    for number in range(1, 14):
        await memory.record(conversation_id, turn(number, "word " * 1000))
    assert 2_000 < (await memory.assemble(conversation_id)).token_count <= 4_000
    assert 24_000 < (await memory.assemble(conversation_id, budget=10**9)).token_count <= 32_000


async def test_a_conversation_that_nobody_told_of_is_an_empty_context(memory: MemoryService) -> None:
    answer = await memory.assemble(new_id())
    assert (list(answer.messages), answer.last_sequence, answer.token_count) == ([], 0, 0)


async def test_a_context_takes_a_fixed_number_of_statements(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(n) for n in range(1, 101)])
    # The lane takes its connection.
    await memory.assemble(conversation_id)
    with counted_statements() as held:
        await memory.assemble(conversation_id)
    await memory.forget(conversation_id, 100)
    with counted_statements() as read:
        await memory.assemble(conversation_id)
    # The state of the conversation, in a lane; then identity and turns, when the working set has none.
    assert (len(held), len(read)) == (1, 3)
