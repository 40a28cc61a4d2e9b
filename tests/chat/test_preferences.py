"""What the user prefers goes into every reply; auth is asked rarely, and not needed."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from parley.auth.v1 import user_pb2
from services.chat.preferences import PreferenceClient
from services.runtime.calls import Call, Caller, enter
from services.runtime.channels import open_channel
from services.runtime.peers import ServiceTokens
from simulator.server import Running
from tests.chat.conftest import Peers
from tests.chat.peers import WORKLOADS, MemoryStandIn, PreferencesStandIn
from tests.chat.service import ChatProcess, User, eventually, inputs, refusal
from tests.issuer import Issuer
from tests.work import PATIENCE_SECONDS

OpenClient = Callable[..., PreferenceClient]


async def test_preferences_fill_what_a_request_leaves_open(
    user: User, preferences: PreferencesStandIn, simulator: Running
) -> None:
    preferences.known[user.id] = user_pb2.Preferences(
        model="gpt-5", reasoning_effort="low", instructions="Call me Ana.", language="pt-BR"
    )
    completion = await user.create("hello")
    assert completion.model == "gpt-5"
    [request] = await simulator.control.requests("responses")
    assert (request.body["model"], request.body["reasoning"]["effort"]) == ("gpt-5", "low")
    assert "Call me Ana." in request.body["instructions"]
    assert "pt-BR" in request.body["instructions"]


async def test_a_request_goes_before_the_preferences_but_for_what_the_user_always_wants(
    user: User, preferences: PreferencesStandIn, simulator: Running
) -> None:
    preferences.known[user.id] = user_pb2.Preferences(model="gpt-5", reasoning_effort="low", instructions="Call me Ana.")
    await user.create("hello", model="gpt-5-nano", reasoning_effort="high", instructions="Be a pirate.")
    [request] = await simulator.control.requests("responses")
    assert (request.body["model"], request.body["reasoning"]["effort"]) == ("gpt-5-nano", "high")
    told = request.body["instructions"]
    assert told.startswith("Be a pirate.")
    assert told.endswith("Call me Ana.")


async def test_the_instructions_are_the_same_bytes_every_turn_and_begin_the_same_for_everybody(
    chat: ChatProcess, preferences: PreferencesStandIn, simulator: Running
) -> None:
    users = [chat.user(), chat.user()]
    preferences.known[users[0].id] = user_pb2.Preferences(instructions="Call me Ana.", language="en")
    for user in (users[0], users[0], users[1]):
        await user.create("hello")
    first, second, other = [one.body["instructions"] for one in await simulator.control.requests("responses")]
    assert first == second != other
    assert first.startswith(other)


async def test_auth_is_asked_once_for_turns_that_follow_and_for_turns_at_once(
    user: User, preferences: PreferencesStandIn
) -> None:
    preferences.delay_seconds = 0.1
    await asyncio.gather(*(user.create(f"hello {n}") for n in range(5)))
    await user.create("again")
    assert preferences.asked == [user.id]


async def test_each_user_has_their_own(chat: ChatProcess, preferences: PreferencesStandIn) -> None:
    users = [chat.user() for _ in range(3)]
    for index, user in enumerate(users):
        preferences.known[user.id] = user_pb2.Preferences(model=f"gpt-5-{index}")
    answers = await asyncio.gather(*(user.create("hello") for user in users))
    assert [one.model for one in answers] == ["gpt-5-0", "gpt-5-1", "gpt-5-2"]


async def test_auth_that_is_away_costs_the_preferences_and_says_so(user: User, preferences: PreferencesStandIn) -> None:
    preferences.known[user.id] = user_pb2.Preferences(model="gpt-5")
    preferences.is_away = True
    events = await user.stream("hello")
    assert list(events[0].started.degraded) == ["preferences"]
    assert events[-1].completed.message.model == "gpt-5-mini"


async def test_auth_that_hangs_costs_a_second_once(user: User, preferences: PreferencesStandIn) -> None:
    preferences.delay_seconds = 300
    begin = time.monotonic()
    assert list((await user.stream("hello"))[0].started.degraded) == ["preferences"]
    assert 0.9 < time.monotonic() - begin < PATIENCE_SECONDS
    assert list((await user.stream("hello"))[0].started.degraded) == ["preferences"]
    assert preferences.asked == [user.id]


async def test_a_turn_without_memory_neither_asks_nor_tells_it(
    user: User, memory: MemoryStandIn, simulator: Running
) -> None:
    first = await user.create("one")
    conversation_id = first.conversation_id
    await eventually(lambda: set(memory.turns.get(conversation_id, {})) == {1, 2})
    memory.asked.clear()
    await user.create("two", conversation_id=conversation_id, memory_enabled=False)
    assert memory.asked == []
    await user.create("three", conversation_id=conversation_id)
    await eventually(lambda: set(memory.turns[conversation_id]) == {1, 2, 5, 6})
    last = await user.create("four", conversation_id=conversation_id)
    await eventually(lambda: set(memory.turns[conversation_id]) == {1, 2, 5, 6, 7, 8})
    assert last.message.status == "complete"
    said = [[text for role, text in one if role == "user"] for one in await inputs(simulator)]
    assert said == [["one"], ["one", "two"], ["one", "two", "three"], ["one", "two", "three", "four"]]


async def test_memory_follows_the_preference_where_a_request_says_nothing(
    user: User, preferences: PreferencesStandIn, memory: MemoryStandIn
) -> None:
    preferences.known[user.id] = user_pb2.Preferences(memory_enabled=False)
    first = await user.create("one")
    assert memory.asked == []
    await user.create("two", conversation_id=first.conversation_id, memory_enabled=True)
    assert memory.asked == [first.conversation_id]
    await eventually(lambda: set(memory.turns.get(first.conversation_id, {})) == {3, 4})


async def test_who_cannot_be_asked_about_memory_is_not_remembered(
    user: User, preferences: PreferencesStandIn, memory: MemoryStandIn
) -> None:
    preferences.is_away = True
    first = await user.create("one")
    assert memory.asked == []
    preferences.is_away = False
    await user.create("two", conversation_id=first.conversation_id, memory_enabled=True)
    await eventually(lambda: set(memory.turns.get(first.conversation_id, {})) == {3, 4})


async def test_a_model_that_the_provider_refuses_is_named_whoever_chose_it(
    user: User, preferences: PreferencesStandIn
) -> None:
    preferences.known[user.id] = user_pb2.Preferences(model="sim-0-0-0-status-404")
    refused = await refusal(user.create("hello"))
    assert refused.reason == "MODEL_REFUSED_REQUEST"
    assert refused.metadata["model"] == "sim-0-0-0-status-404"


@pytest.fixture
async def open_client(peers: Peers) -> AsyncIterator[OpenClient]:
    """Opens clients of auth, with settings changed."""
    opened: list[PreferenceClient] = []
    async with (
        open_channel(peers.auth_target, audience="auth", tokens=None, timeout_seconds=5) as auth,
        open_channel(
            peers.auth_target,
            audience="auth",
            tokens=ServiceTokens(auth, workload="chat", credential=WORKLOADS["chat"]),
            timeout_seconds=5,
        ) as channel,
    ):

        def open_one(**changed: float) -> PreferenceClient:
            opened.append(PreferenceClient(channel, **changed))
            return opened[-1]

        yield open_one
        for client in opened:
            await client.close()


@pytest.fixture
def client(open_client: OpenClient) -> PreferenceClient:
    return open_client()


async def test_without_the_users_own_token_chat_asks_on_behalf_of_the_user(
    client: PreferenceClient, preferences: PreferencesStandIn
) -> None:
    user_id = str(uuid.uuid4())
    preferences.known[user_id] = user_pb2.Preferences(language="de", conversation_timeout_seconds=60)
    found = await client.of(user_id)
    assert found.is_current
    assert (found.preferences.language, found.preferences.conversation_timeout_seconds) == ("de", 60)
    assert preferences.asked == [user_id]


async def test_with_the_users_token_chat_asks_as_the_user(
    client: PreferenceClient, preferences: PreferencesStandIn, issuer: Issuer
) -> None:
    user_id = str(uuid.uuid4())
    enter(Call("r", Caller(user_id=user_id, session_id="s", token=issuer.user_token(user_id))))
    assert (await client.of(user_id)).is_current
    assert preferences.asked == [user_id]


async def test_a_change_is_seen_once_what_was_read_is_old(open_client: OpenClient, preferences: PreferencesStandIn) -> None:
    client, user_id = open_client(believed_seconds=0.3), str(uuid.uuid4())
    preferences.known[user_id] = user_pb2.Preferences(language="de")
    assert (await client.of(user_id)).preferences.language == "de"
    preferences.known[user_id] = user_pb2.Preferences(language="fr")
    assert (await client.of(user_id)).preferences.language == "de"
    await asyncio.sleep(0.35)
    assert (await client.of(user_id)).preferences.language == "fr"
    assert preferences.asked == [user_id, user_id]


async def test_the_last_known_holds_while_auth_is_away(open_client: OpenClient, preferences: PreferencesStandIn) -> None:
    client, user_id = open_client(believed_seconds=0.1), str(uuid.uuid4())
    preferences.known[user_id] = user_pb2.Preferences(language="de")
    await client.of(user_id)
    preferences.is_away = True
    await asyncio.sleep(0.15)
    for _ in range(3):
        stale = await client.of(user_id)
        assert (stale.preferences.language, stale.is_current) == ("de", False)
    # Who is away is asked once a second.
    assert len(preferences.asked) == 2
    preferences.is_away = False
    await asyncio.sleep(1.1)
    assert (await client.of(user_id)).is_current


async def test_a_caller_who_gives_up_takes_nothing_from_the_others(
    client: PreferenceClient, preferences: PreferencesStandIn
) -> None:
    user_id = str(uuid.uuid4())
    preferences.delay_seconds = 0.2
    hasty, patient = asyncio.create_task(client.of(user_id)), asyncio.create_task(client.of(user_id))
    await asyncio.sleep(0.05)
    hasty.cancel()
    assert (await patient).is_current
    assert preferences.asked == [user_id]
