"""Random interleavings of stop, start, incoming texts, sends, retries and reports, against the real database.

PARLEY_TEST_INTERLEAVINGS says how many. What happened is told by an audit in the database itself: whoever claims a send,
and whoever changes consent, holds the number's row while it draws the audit's next number, so that these stand in the
order of the commits.
"""

import asyncio
import datetime as dt
import os
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from services.runtime.database import open_database
from services.runtime.errors import ServiceError
from services.runtime.jobs import Jobs
from services.sms.inbox_store import ANSWER_JOB, InboxStore
from services.sms.message_store import MessageStore, TextLimits
from services.sms.outbox_store import OutboxStore
from services.sms.provider.provider import NotTakenError, RefusedError, Taken, Text, UnansweredError
from services.sms.records import DeliveryReport, IncomingText, NewText
from services.sms.rows import SEND_JOB
from services.sms.sending import Sending, SendLimits
from suite.databases import ServiceDatabase

CASES = int(os.environ.get("PARLEY_TEST_INTERLEAVINGS", "150"))
SEED = int(os.environ.get("PARLEY_TEST_SEED", "20261129"))
AT_ONCE = 12
AUDIT = """
create table audit (id bigserial primary key, phone_number text, what text, kind text, message_id uuid, epoch integer);
create function audit_consent() returns trigger language plpgsql as $$
begin
  insert into audit (phone_number, what, epoch)
  values (new.phone_number, case when new.is_opted_out then 'stop' else 'start' end, new.epoch);
  return null;
end $$;
create trigger audit_consent after update on consents for each row
  when (old.epoch is distinct from new.epoch) execute function audit_consent();
create function audit_claim() returns trigger language plpgsql as $$
begin
  insert into audit (phone_number, what, kind, message_id, epoch)
  values (new.phone_number, 'claim', new.kind, new.id, new.consent_epoch);
  return null;
end $$;
create trigger audit_claim after update of status on messages for each row
  when (new.status = 'sending') execute function audit_claim();
grant select, insert, delete on audit to {role};
grant usage on sequence audit_id_seq to {role};
"""
UNAUDIT = "drop table if exists audit; drop function if exists audit_consent, audit_claim cascade"


@dataclass
class Carrier:
    """A provider that takes, refuses, loses its answers and is not there, by chance; and remembers what it took."""

    chance: random.Random
    taken: Counter[str] = field(default_factory=Counter)

    async def send(self, text: Text) -> Taken:
        await _pause(self.chance)
        fate = self.chance.random()
        if fate < 0.2:
            raise NotTakenError("20429")
        if fate < 0.25:
            raise RefusedError("21211")
        if fate < 0.3:
            # Lost on the way there: nobody knows.
            raise UnansweredError("503")
        self.taken[text.message_id] += 1
        if fate < 0.45:
            raise UnansweredError("cut")
        return Taken(f"SM{text.message_id}", "sent")

    async def find(self, phone_number: str, text: str, *, since: dt.datetime) -> Sequence[Taken]:  # noqa: ARG002
        return ()

    async def forget(self, provider_message_id: str) -> None:
        """Nobody is purged here."""

    async def close(self) -> None:
        """Nothing is open."""


async def _pause(chance: random.Random) -> None:
    for _ in range(chance.randrange(4)):
        await asyncio.sleep(0)
    if chance.random() < 0.2:
        await asyncio.sleep(chance.random() * 0.004)


@dataclass
class Bench:
    inbox: InboxStore
    outbox: OutboxStore
    messages: MessageStore
    pool: AsyncConnectionPool

    async def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            return await (await connection.execute(statement.encode(), values)).fetchall()


async def _as_service(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("select set_config('parley.scope', 'service', false)")


@pytest.fixture
async def bench(database: ServiceDatabase) -> AsyncIterator[Bench]:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute(UNAUDIT.encode())
        await connection.execute(AUDIT.format(role=database.service_role).encode())
    opened = open_database(database.url, pool_size=AT_ONCE)
    pool = AsyncConnectionPool(
        database.migration_url, min_size=AT_ONCE, max_size=AT_ONCE, open=False, kwargs={"autocommit": True},
        configure=_as_service, timeout=120,
    )  # fmt: skip
    await pool.open()
    jobs = Jobs(database.url)
    for name in (SEND_JOB, ANSWER_JOB):
        jobs.register(name, _never)
    limits = TextLimits(user_per_day=1000, number_per_hour=1000, codes_per_hour=1000)
    try:
        inbox = InboxStore(opened, jobs, limits, sender_name="Parley")
        yield Bench(inbox, OutboxStore(opened, jobs), MessageStore(opened, jobs, limits), pool)
    finally:
        await opened.close()
        await pool.close()
        async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
            await connection.execute(UNAUDIT.encode())


async def _never(**_ids: object) -> None:
    raise AssertionError("nobody works here")


@dataclass
class Case:
    """One number, and all that happens to it at once."""

    bench: Bench
    number: str
    chance: random.Random
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    known: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.carrier = Carrier(self.chance)
        limits = SendLimits(tries=50, timeout_seconds=1, unknown_after_seconds=1)
        self.sending = Sending(self.bench.outbox, self.carrier, limits)

    async def say(self, text: str) -> None:
        incoming = IncomingText(f"SM{uuid.uuid4().hex}", self.number, text)
        await self.bench.inbox.receive(incoming)
        if self.chance.random() < 0.3:
            # The webhook comes again.
            assert not await self.bench.inbox.receive(incoming)

    async def write(self) -> None:
        new = NewText(phone_number=self.number, text="Hello", kind="text", user_id=self.user_id)
        try:
            made = await self.bench.messages.create(new, user_id=self.user_id, request_id=None, request_digest=b"")
        except ServiceError:
            return
        self.known.append(made.id)

    async def work(self) -> None:
        """What the jobs do, and do again."""
        queued = await self.bench.rows(
            "select id::text from messages where phone_number = %s and direction = 'outbound'", self.number
        )
        for (message_id,) in self.chance.sample(queued, k=min(2, len(queued))):
            await self.send(message_id)

    async def send(self, message_id: str) -> None:
        try:
            await self.sending.send(message_id)
        except ServiceError:
            await _pause(self.chance)

    async def retry(self) -> None:
        if self.known:
            await self.send(self.chance.choice(self.known))

    async def report(self) -> None:
        if self.carrier.taken:
            message_id = self.chance.choice(list(self.carrier.taken))
            status = self.chance.choice(("sent", "delivered", "undelivered", "failed"))
            code = "21610" if status == "failed" and self.chance.random() < 0.3 else ""
            await self.bench.outbox.report(DeliveryReport(f"SM{message_id}", status, code, message_id))

    async def run(self) -> None:
        acts: list[Callable[[], Awaitable[None]]] = [
            lambda: self.say(self.chance.choice(("STOP", "stop.", "Unsubscribe"))),
            lambda: self.say(self.chance.choice(("START", "unstop", "yes"))),
            lambda: self.say("Are you there?"),
            self.write, self.work, self.retry, self.report,
        ]  # fmt: skip
        weights = (3, 2, 1, 4, 5, 2, 2)
        chosen = self.chance.choices(acts, weights=weights, k=self.chance.randint(8, 16))
        async with asyncio.TaskGroup() as group:
            for act in chosen:
                group.create_task(self._at_some_time(act))
        await self._drain()

    async def _at_some_time(self, act: Callable[[], Awaitable[None]]) -> None:
        await _pause(self.chance)
        await act()

    async def _drain(self) -> None:
        """The jobs come to an end."""
        statement = "select id::text from messages where phone_number = %s and status = 'queued'"
        while queued := await self.bench.rows(statement, self.number):
            for (message_id,) in queued:
                await self.send(message_id)

    async def check(self) -> Counter[str]:
        told = await self.bench.rows(
            "select what, kind, message_id::text, epoch from audit where phone_number = %s order by id", self.number
        )
        opted_out, epoch = False, 0
        counted: Counter[str] = Counter()
        for what, kind, message_id, its_epoch in told:
            counted[what] += 1
            if what != "claim":
                opted_out, epoch = what == "stop", its_epoch
                continue
            if opted_out:
                assert (kind, its_epoch) == ("confirmation", epoch), (self.number, told)
                counted["confirmation"] += 1
            assert self.carrier.taken[message_id] <= 1
        await self._check_confirmations(told)
        return counted

    async def _check_confirmations(self, told: Sequence[tuple[Any, ...]]) -> None:
        """Each change by a word has one confirmation; that of the stop that holds has been given to the provider."""
        by_word = await self.bench.rows(
            "select distinct epoch from consent_events event"
            " where phone_number = %s and source = 'keyword' and change <> 'help' and epoch > 0"
            " and not exists (select from consent_events earlier where earlier.phone_number = event.phone_number"
            "  and earlier.epoch = event.epoch and earlier.id < event.id)",
            self.number,
        )
        made = await self.bench.rows(
            "select consent_epoch, status, id::text from messages where phone_number = %s and kind = 'confirmation'",
            self.number,
        )
        assert sorted(epoch for epoch, _, _ in made) == sorted(epoch for (epoch,) in by_word)
        current = await self.bench.rows(
            "select epoch, is_opted_out and source = 'keyword' from consents where phone_number = %s", self.number
        )
        for epoch, status, message_id in made:
            assert self.carrier.taken[message_id] <= 1
            if current == [(epoch, True)]:
                claimed = [one for one in told if one[0] == "claim" and one[2] == message_id]
                assert claimed, (status, told)
                assert status not in {"queued", "blocked"} or self.carrier.taken[message_id] == 1


async def test_no_send_follows_a_stop_and_each_stop_is_confirmed_once(bench: Bench) -> None:
    chance = random.Random(SEED)  # noqa: S311
    gate = asyncio.Semaphore(AT_ONCE)
    total: Counter[str] = Counter()

    async def one(index: int, seed: int) -> None:
        async with gate:
            case = Case(bench, f"+1{2_000_000_000 + index}", random.Random(seed))  # noqa: S311
            await case.run()
            total.update(await case.check())

    for begin in range(0, CASES, 500):
        async with asyncio.TaskGroup() as group:
            for index in range(begin, min(begin + 500, CASES)):
                group.create_task(one(index, chance.getrandbits(64)))
    print(f"{CASES} interleavings: {dict(total)}")  # noqa: T201
    # The cases are such that all of it happens.
    assert min(total[what] for what in ("stop", "start", "claim", "confirmation")) > CASES / 10
