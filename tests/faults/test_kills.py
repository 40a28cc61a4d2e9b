"""Chat processes killed at random tokens under load: nothing is lost, doubled, or left open.

PARLEY_TEST_KILLS (default 3) says how often; 200 take some minutes. The seed is printed, and can be given.
"""

import asyncio
import os
import random
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from parley.chat.v1 import chat_pb2
from suite.postgres import EmbeddedPostgres
from tests.chat.service import checked, text_of
from tests.faults.stand import Chat, Stand

KILLS = int(os.environ.get("PARLEY_TEST_KILLS", "3"))
SEED = int(os.environ.get("PARLEY_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
PEOPLE = 6
TOKENS = 60
MODEL = f"sim-{TOKENS}-15-0"
WHOLE = " ".join(f"tok{number}" for number in range(TOKENS))
PATIENCE_SECONDS = 60.0
# What a client sees of a process that is gone.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass
class Replicas:
    """Two chat processes of which one is killed now and then; a new one takes its place."""

    stand: Stand
    chance: random.Random
    running: list[Chat] = field(default_factory=list)
    kills: int = 0
    # What the provider was asked, by number: its journal keeps only the latest.
    asked: dict[int, str] = field(default_factory=dict)

    async def kill_one(self) -> None:
        index = self.chance.randrange(len(self.running))
        dying = self.running[index]
        self.running[index] = await self.stand.start()
        dying.tell(signal.SIGKILL)
        await dying.exit_code()
        self.kills += 1
        await self.read_journal()

    async def read_journal(self) -> None:
        received = await self.stand.simulator.control.requests("responses")
        self.asked |= {request.number: str(request.body) for request in received}

    def any(self) -> Chat:
        return self.chance.choice(self.running)


@dataclass
class Attempt:
    """What one client saw of one turn: the events of each generation, however often its connection broke."""

    text: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    generation_id: str = ""
    events: list[chat_pb2.CompletionEvent] = field(default_factory=list)
    failed: list[list[chat_pb2.CompletionEvent]] = field(default_factory=list)
    breaks: int = 0
    text_at_first_break: str = ""

    @property
    def last_kind(self) -> str | None:
        return self.events[-1].WhichOneof("event") if self.events else None

    def take(self, event: chat_pb2.CompletionEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "heartbeat":
            return
        if kind == "started":
            assert not self.events, "a generation begins once"
            self.generation_id = event.started.generation_id
        self.events.append(event)

    def note_break(self) -> None:
        if not self.breaks:
            self.text_at_first_break = text_of(self.events)
        self.breaks += 1

    def begin_again(self) -> None:
        self.failed.append(checked(self.events))
        self.events, self.generation_id = [], ""


class Person:
    """Says one thing after the other, and comes back for each answer until it is there."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.user_id = str(uuid.uuid4())
        self.turns: list[Attempt] = []

    async def talk(self, until: asyncio.Event) -> None:
        while not until.is_set():
            turn = Attempt(text=f"Count {uuid.uuid4().hex}")
            self.turns.append(turn)
            await self.answered(turn)

    async def answered(self, turn: Attempt) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while turn.last_kind != "completed":
            assert time.monotonic() < end, f"no end after {PATIENCE_SECONDS} s: {turn}"
            try:
                await self.read(turn)
            except grpc.aio.AioRpcError as error:
                if error.code() not in BROKEN:
                    raise
                turn.note_break()
                await asyncio.sleep(0.05)
            if turn.last_kind == "failed":
                assert turn.events[-1].failed.reason == "GENERATION_INTERRUPTED", turn.events[-1]
                turn.begin_again()

    async def read(self, turn: Attempt) -> None:
        user = self.replicas.any().user(self.user_id)
        if turn.generation_id:
            asked = chat_pb2.SubscribeGenerationRequest(
                generation_id=turn.generation_id, after_sequence=turn.events[-1].sequence
            )
            call = user.chat.SubscribeGeneration(asked, metadata=user.metadata, timeout=30)
        else:
            call = user.open_stream(turn.text, request_id=turn.request_id, model=MODEL)
        async for event in call:
            turn.take(event)


async def killed_under_load(stand: Stand, chance: random.Random) -> tuple[Replicas, list[Person]]:
    replicas = Replicas(stand, chance)
    replicas.running = list(await asyncio.gather(stand.start(), stand.start()))
    people, enough = [Person(replicas) for _ in range(PEOPLE)], asyncio.Event()
    async with asyncio.TaskGroup() as talking:
        for person in people:
            talking.create_task(person.talk(enough))
        while replicas.kills < KILLS:
            await asyncio.sleep(chance.uniform(0.1, 1.2))
            await replicas.kill_one()
        enough.set()
    return replicas, people


def told_once(turn: Attempt) -> None:
    """Every generation of the turn was one unbroken sequence, and its text never left the one that was asked for."""
    for events in (*turn.failed, turn.events):
        told = checked(events)
        text = text_of(told)
        assert WHOLE.startswith(text), text
    assert text_of(turn.events) == WHOLE
    assert turn.events[-1].completed.message.text == WHOLE


async def stored_once(server: EmbeddedPostgres, people: Sequence[Person]) -> None:
    """Each turn is in the database once, whole, and nothing is left open."""
    # As the superuser, whom row-level security does not hold.
    url = make_conninfo(server.admin_url, dbname="parley_chat")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (await connection.execute("select status, count(*) from generations group by status")).fetchall()
        assert {status for status, _ in rows} <= {"completed", "failed"}, rows
        said = await connection.execute("select text, count(*) from messages where role = 'user' group by text")
        counts: dict[str, int] = dict(await said.fetchall())
        written = await connection.execute("select text, status from messages where role = 'assistant'")
        replies = await written.fetchall()
    asked = [turn.text for person in people for turn in person.turns]
    assert counts == dict.fromkeys(asked, 1)
    assert replies == [(WHOLE, "complete")] * len(asked)


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("background", ["on", "off"])
async def test_kills_lose_nothing(stand: Stand, postgres: EmbeddedPostgres, background: str) -> None:
    print("seed", SEED)  # noqa: T201 - what a failure is repeated with
    # A lease that a process which starts beside others on a small machine does not lose by being slow.
    lease = {"LEASE_SECONDS": "4", "LEASE_RENEW_SECONDS": "1"}
    stand.environment = {**stand.environment, **lease, "OPENAI_BACKGROUND": background, "TITLES_ENABLED": "false"}
    replicas, people = await killed_under_load(stand, random.Random(SEED))  # noqa: S311 - a test's chance
    turns = [turn for person in people for turn in person.turns]
    for turn in turns:
        told_once(turn)
    await stored_once(postgres, people)
    interrupted = [failed for turn in turns for failed in turn.failed]
    if background == "on":
        assert interrupted == []
        await replicas.read_journal()
        regenerated_nothing(list(replicas.asked.values()), turns)
    figures = f"{replicas.kills} kills, {len(turns)} turns, {sum(turn.breaks for turn in turns)} broken streams, "
    print(figures + f"{len(interrupted)} interrupted and repeated")  # noqa: T201 - the figures


def regenerated_nothing(asked: Sequence[str], turns: Sequence[Attempt]) -> None:
    """The provider was asked once for each reply of which anybody saw a word before a kill."""
    for turn in turns:
        times = sum(turn.text in body for body in asked)
        assert times >= 1
        if times > 1:
            # Killed between the request and the provider's first word: nobody saw anything of it.
            assert turn.breaks >= 1, turn
            assert turn.text_at_first_break == "", turn
