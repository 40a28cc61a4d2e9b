"""Chat as real processes: killed, stopped, continued and told to end in the middle of replies."""

import asyncio
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from parley.chat.v1 import chat_pb2
from simulator.control import ScriptedAnswer
from simulator.server import Running, running
from suite.databases import ServiceDatabase
from tests.chat.peers import WORKLOADS, MemoryStandIn, running_auth, running_memory
from tests.chat.service import User, checked, text_of
from tests.conftest import truncate
from tests.issuer import Issuer

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 1.5


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@dataclass
class Chat:
    """One `python -m services.chat`."""

    process: Process
    channel: grpc.aio.Channel
    issuer: Issuer

    def user(self, user_id: str) -> User:
        return User(self.channel, self.issuer.as_user(user_id), user_id)

    def tell(self, told: signal.Signals) -> None:
        self.process.send_signal(told)

    async def exit_code(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


@dataclass
class Stand:
    """What chat processes stand on, and those that were started."""

    environment: Mapping[str, str]
    issuer: Issuer
    simulator: Running
    memory: MemoryStandIn
    started: list[Chat] = field(default_factory=list)

    async def start(self, **changed: str) -> Chat:
        port = free_port()
        addresses = {"LISTEN_ADDRESS": f"127.0.0.1:{port}", "METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.chat", cwd=ROOT, env={**self.environment, **addresses, **changed}
        )
        chat = Chat(process, grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port}"), self.issuer)
        self.started.append(chat)
        async with asyncio.timeout(20):
            await chat.channel.channel_ready()
        return chat

    async def stop(self) -> None:
        for chat in self.started:
            await chat.channel.close()
            if chat.process.returncode is None:
                chat.tell(signal.SIGKILL)
                await chat.process.wait()


@pytest.fixture
async def stand(chat_database: ServiceDatabase, issuer: Issuer, tmp_path: Path) -> AsyncIterator[Stand]:
    await truncate(chat_database)
    credential, memory = tmp_path / "credential", MemoryStandIn()
    credential.write_text(WORKLOADS["chat"])
    async with AsyncExitStack() as parts:
        simulator = await parts.enter_async_context(running())
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": chat_database.url,
            "AUTH_TARGET": await parts.enter_async_context(running_auth(issuer)),
            "MEMORY_TARGET": await parts.enter_async_context(running_memory(memory, issuer)),
            "WORKLOAD_CREDENTIAL_FILE": str(credential),
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": simulator.base_url,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "LEASE_RENEW_SECONDS": "0.3",
            "DRAIN_WAIT_SECONDS": "0",
            "DRAIN_SECONDS": "4",
        }
        stand = Stand(environment, issuer, simulator, memory)
        parts.push_async_callback(stand.stop)
        yield stand


USER = "0199aaaa-0000-7000-8000-000000000001"


async def until_text(call: Any, events: list[chat_pb2.CompletionEvent]) -> None:
    async for event in call:
        events.append(event)
        if event.WhichOneof("event") == "text_delta":
            return


async def test_a_killed_process_costs_the_turn_at_most_its_lease(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    asked = {"request_id": "one", "model": "sim-60-20-0"}
    before: list[chat_pb2.CompletionEvent] = []
    await until_text(first.user(USER).open_stream("Count", **asked), before)
    # Follows the reply of the process that is about to die.
    following = asyncio.create_task(second.user(USER).stream("Count", **asked))
    await asyncio.sleep(0.2)
    first.tell(signal.SIGKILL)
    await first.exit_code()
    begin = time.monotonic()
    answer = await second.user(USER).create("Count", **asked)
    # The lease, a poll, and the reply itself (60 tokens, 20 ms each).
    assert time.monotonic() - begin < LEASE_SECONDS + 1 + 1.2 + 2
    assert answer.message.text.split() == [f"tok{number}" for number in range(60)]
    events = await following
    assert text_of(events) == answer.message.text
    assert answer.message.id == before[0].started.message_id
    messages = await second.user(USER).messages(answer.conversation_id)
    assert messages == [answer.user_message, answer.message]
    assert len(await stand.simulator.control.requests("responses")) == 2


async def test_a_reply_nobody_asks_for_again_does_not_stay_generating(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    before: list[chat_pb2.CompletionEvent] = []
    await until_text(first.user(USER).open_stream("Count", model="sim-100-20-0"), before)
    await asyncio.sleep(0.7)
    first.tell(signal.SIGKILL)
    await first.exit_code()
    conversation_id = before[0].started.conversation_id

    async def is_closed() -> bool:
        return (await second.user(USER).messages(conversation_id))[1].status == "incomplete"

    await soon(is_closed, within_seconds=LEASE_SECONDS * 2 + 2)
    said, reply = await second.user(USER).messages(conversation_id)
    assert (said.text, reply.incomplete_reason) == ("Count", "GENERATION_INTERRUPTED")
    # What was written until the last sign of life is kept.
    assert reply.text.startswith("tok0 tok1")


async def soon(condition: Callable[[], Awaitable[bool]], *, within_seconds: float) -> None:
    end = time.monotonic() + within_seconds
    while not await condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)


async def test_a_process_that_sleeps_past_its_lease_writes_nothing_more(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    # Its reply would be another text than the one of the process that takes over.
    await stand.simulator.control.script(
        ScriptedAnswer(text="the sleeper's words are never saved", hold_after_tokens=2), ScriptedAnswer(text="Awake.")
    )
    sleeping: list[chat_pb2.CompletionEvent] = []
    call = first.user(USER).open_stream("Hi", request_id="one")
    await until_text(call, sleeping)
    first.tell(signal.SIGSTOP)
    try:
        answer = await second.user(USER).create("Hi", request_id="one")
        await stand.simulator.control.release()
    finally:
        first.tell(signal.SIGCONT)
    assert answer.message.text == "Awake."
    sleeping += [event async for event in call]
    assert checked(sleeping)[-1].failed.reason == "GENERATION_INTERRUPTED"
    await asyncio.sleep(0.5)
    for chat in (first, second):
        assert await chat.user(USER).messages(answer.conversation_id) == [answer.user_message, answer.message]
        assert await chat.user(USER).create("Hi", request_id="one") == answer


async def test_a_stop_lets_replies_end(stand: Stand) -> None:
    chat = await stand.start()
    events: list[chat_pb2.CompletionEvent] = []
    call = chat.user(USER).open_stream("Count", model="sim-60-20-0")
    await until_text(call, events)
    chat.tell(signal.SIGTERM)
    events += [event async for event in call]
    assert checked(events)[-1].completed.message.status == "complete"
    assert len(text_of(events).split()) == 60
    assert await chat.exit_code() == 0


async def test_a_reply_that_outlasts_the_drain_is_told_saved_and_taken_up_elsewhere(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(DRAIN_SECONDS="1"), stand.start())
    await stand.simulator.control.script(ScriptedAnswer(text="one two three four", hold_after_tokens=3))
    events: list[chat_pb2.CompletionEvent] = []
    call = first.user(USER).open_stream("Hi", request_id="one")
    await until_text(call, events)
    first.tell(signal.SIGTERM)
    events += [event async for event in call]
    failed = checked(events)[-1].failed
    assert failed.reason == "GENERATION_INTERRUPTED"
    assert failed.HasField("retry_delay")
    assert failed.partial_message.text == text_of(events) != ""
    assert await first.exit_code() == 0
    saved = (await second.user(USER).messages(events[0].started.conversation_id))[1]
    assert saved == failed.partial_message
    again = await second.user(USER).create("Hi", request_id="one")
    assert (again.message.id, again.message.status) == (saved.id, "complete")
    await stand.simulator.control.release()


async def test_a_stopping_process_begins_no_reply(stand: Stand) -> None:
    chat = await stand.start(DRAIN_SECONDS="2")
    await stand.simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=1))
    events: list[chat_pb2.CompletionEvent] = []
    call = chat.user(USER).open_stream("Hi")
    await until_text(call, events)
    chat.tell(signal.SIGTERM)
    await asyncio.sleep(0.3)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await chat.user(USER).create("Another")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await stand.simulator.control.release()
    events += [event async for event in call]
    assert checked(events)[-1].WhichOneof("event") == "completed"
    assert await chat.exit_code() == 0


async def test_bad_settings_are_named_all_at_once(stand: Stand) -> None:
    environment = {**stand.environment, "LEASE_SECONDS": "0", "LISTEN_ADDRESS": "nowhere"}
    del environment["OPENAI_API_KEY"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.chat", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    for variable in (b"LEASE_SECONDS", b"LISTEN_ADDRESS", b"METRICS_ADDRESS", b"OPENAI_API_KEY"):
        assert variable in said
