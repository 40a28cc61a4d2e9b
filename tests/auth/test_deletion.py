"""The deletion of a user: at once here, by a job until every service has confirmed, and nothing is left."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from parley.auth.v1 import user_pb2, user_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import NotFound, ServiceError, Unauthenticated, Unavailable, from_rpc_error
from suite.databases import ServiceDatabase
from tests.auth.harness import CALL_SECONDS, Person, RunningAuth, bearer, make_settings, refusal, running_auth, until
from tests.auth.purge_peers import LateKeys, Peers, Purger, running_peers
from tests.auth.test_process import environment, start
from tests.work import PATIENCE_SECONDS

ALL = ("chat", "memory", "sms")


@dataclass
class Stand:
    """Auth on a database, and a queue, of its own, which `start` starts; and the services that it asks."""

    database: ServiceDatabase
    peers: Peers
    keys: LateKeys
    folder: Path

    @asynccontextmanager
    async def started(self, *services: str, **changes: Any) -> AsyncIterator[RunningAuth]:
        settings = make_settings(self.database, self.folder, **self.peers.settings(*(services or ALL[:2])), **changes)
        async with running_auth(self.database, settings) as auth, self.keys.of(auth.assembly):
            yield auth


@pytest.fixture
async def stand(own_database: ServiceDatabase, tmp_path: Path) -> AsyncIterator[Stand]:
    keys = LateKeys()
    async with running_peers(keys) as peers:
        yield Stand(own_database, peers, keys, tmp_path)


@pytest.fixture
async def auth(stand: Stand) -> AsyncIterator[RunningAuth]:
    async with stand.started(*ALL) as running:
        yield running


@pytest.fixture
def purgers(stand: Stand) -> Mapping[str, Purger]:
    return stand.peers.purgers


async def delete(auth: RunningAuth, user_id: str, *, by: Person) -> user_pb2.Deletion:
    request = user_pb2.DeleteUserRequest(user_id=user_id)
    return await auth.users.DeleteUser(request, metadata=by.metadata, timeout=CALL_SECONDS)


async def deletion(auth: RunningAuth, user_id: str, admin: Person) -> user_pb2.Deletion:
    request = user_pb2.GetDeletionRequest(user_id=user_id)
    return await auth.users.GetDeletion(request, metadata=admin.metadata, timeout=CALL_SECONDS)


async def completed(auth: RunningAuth, user_id: str, admin: Person) -> user_pb2.Deletion:
    async def done() -> user_pb2.Deletion | None:
        found = await deletion(auth, user_id, admin)
        return found if found.HasField("complete_time") else None

    found = await until(done, within_seconds=40)
    assert found is not None
    return found


async def asked(purger: Purger, user_id: str, *, times: int = 1) -> None:
    async def often() -> bool:
        return purger.asked.count(user_id) >= times

    await until(often)


async def everything_about(auth: RunningAuth, *canaries: str) -> list[tuple[str, str]]:
    """Every row of every table, jobs included, that holds one of these, but for the audit log and the deletions."""
    tables = await auth.execute(
        "select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
    )
    found = []
    for (table,) in tables:
        for canary in canaries:
            rows = await auth.execute(f"select t::text from {table} t where t::text like %s", f"%{canary}%")  # noqa: S608
            found += [(table, row) for (row,) in rows]
    return [one for one in found if one[0] not in {"audit_events", "deletions", "deletion_services"}]


async def test_an_account_goes_at_once_and_everywhere_by_and_by(auth: RunningAuth, purgers: Mapping[str, Purger]) -> None:
    admin, person = await auth.administrator(), await auth.register()
    asking = user_pb2.UpdatePreferencesRequest(
        user_id="me", preferences=user_pb2.Preferences(instructions=f"canary {person.username}")
    )
    await auth.users.UpdatePreferences(asking, metadata=person.metadata)
    purgers["memory"].refusals += [Unavailable("Not yet.", reasons.ERROR_REASON_PURGE_UNFINISHED)]
    begun = await delete(auth, "me", by=person)
    assert begun.user_id == person.id
    assert [one.service for one in begun.services] == ["chat", "memory", "sms"]
    assert not any(one.HasField("confirm_time") for one in begun.services)
    assert not await auth.is_signed_in(person.tokens.access_token)
    refused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID
    refused = await refusal(auth.login(person.username))
    assert refused.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    gone = user_pb2.GetUserRequest(user_id=person.id)
    assert isinstance(await refusal(auth.users.GetUser(gone, metadata=admin.metadata)), NotFound)
    done = await completed(auth, person.id, admin)
    assert all(one.HasField("confirm_time") for one in done.services)
    assert {one.service: one.attempts for one in done.services} == {"chat": 1, "memory": 2, "sms": 1}
    assert [purgers[name].confirmed for name in ("chat", "memory", "sms")] == [[person.id]] * 3
    assert await everything_about(auth, person.id, person.username) == []
    assert (await delete(auth, person.id, by=admin)).complete_time == done.complete_time
    assert (await auth.register(person.username)).id != person.id


async def test_what_was_noted_outlives_the_user_without_content(auth: RunningAuth) -> None:
    admin, person = await auth.administrator(), await auth.register()
    await delete(auth, person.id, by=admin)
    await completed(auth, person.id, admin)
    events = await auth.users.ListAuditEvents(user_pb2.ListAuditEventsRequest(user_id=person.id), metadata=admin.metadata)
    assert [one.kind for one in events.events] == ["deletion_completed", "user_deleted", "registered"]
    assert [one.actor_id for one in events.events] == ["", admin.id, ""]
    assert [one.address for one in events.events if one.kind == "registered"] == [""]
    assert person.username not in str(events)


async def test_what_a_sign_in_notes_late_says_nothing_of_where_either(
    auth: RunningAuth, purgers: Mapping[str, Purger]
) -> None:
    admin, person = await auth.administrator(), await auth.register()
    purgers["chat"].refusals += [Unavailable("Not yet.", reasons.ERROR_REASON_PURGE_UNFINISHED)]
    await delete(auth, person.id, by=admin)
    # Its password was being looked at when the account went.
    await auth.execute(
        "insert into audit_events (kind, user_id, address) values ('sign_in_refused', %s, '203.0.113.7')", person.id
    )
    await completed(auth, person.id, admin)
    query = "select kind from audit_events where user_id = %s and address is not null"
    assert await auth.execute(query, person.id) == [("user_deleted",)]


async def test_a_call_with_a_token_of_before_brings_nothing_back(auth: RunningAuth) -> None:
    admin, person = await auth.administrator(), await auth.register()
    tokens = auth.service_tokens("chat")
    on_behalf = (*await tokens.as_metadata("auth"), *bearer(await tokens.for_user(person.id, "auth")))
    stop = asyncio.Event()

    async def write() -> list[Exception]:
        raised = []
        while not stop.is_set():
            for name in ("one", "two"):
                request = user_pb2.UpdatePreferencesRequest(
                    user_id="me", preferences=user_pb2.Preferences(instructions=f"{person.username} {name}")
                )
                try:
                    await auth.users.UpdatePreferences(request, metadata=person.metadata)
                except Exception as error:  # noqa: BLE001 - looked at below
                    raised.append(error)
        return raised

    writers = [asyncio.create_task(write()) for _ in range(4)]
    await asyncio.sleep(0.2)
    await delete(auth, "me", by=person)
    done = await completed(auth, person.id, admin)
    stop.set()
    assert all(await asyncio.gather(*writers))
    assert await everything_about(auth, person.id, person.username) == []
    assert done.HasField("complete_time")
    refused = await refusal(auth.users.GetPreferences(user_pb2.GetPreferencesRequest(user_id="me"), metadata=on_behalf))
    assert isinstance(refused, Unauthenticated)
    with pytest.raises(NotFound):
        await auth.service_tokens("chat").for_user(person.id, "auth")


@pytest.fixture
async def impatient(stand: Stand) -> AsyncIterator[RunningAuth]:
    async with stand.started(purge_timeout_seconds=0.3) as running:
        yield running


async def test_a_silent_service_is_asked_until_it_confirms(impatient: RunningAuth, purgers: Mapping[str, Purger]) -> None:
    auth = impatient
    admin, person = await auth.administrator(), await auth.register()
    purgers["chat"].is_silent = True
    await delete(auth, "me", by=person)
    await asked(purgers["chat"], person.id, times=2)
    found = await deletion(auth, person.id, admin)
    assert not found.HasField("complete_time")
    states = {one.service: one for one in found.services}
    assert states["memory"].HasField("confirm_time")
    assert not states["chat"].HasField("confirm_time")
    assert states["chat"].last_reason in {"DEADLINE_PASSED", "DEPENDENCY_UNAVAILABLE"}
    assert purgers["memory"].asked == [person.id]
    purgers["chat"].is_silent = False
    assert (await completed(auth, person.id, admin)).services[0].last_reason == ""


async def test_deleting_again_and_deleting_nobody(auth: RunningAuth) -> None:
    admin, person = await auth.administrator(), await auth.register()
    answers = await asyncio.gather(*(delete(auth, person.id, by=admin) for _ in range(10)))
    assert len({one.request_time.ToNanoseconds() for one in answers}) == 1
    done = await completed(auth, person.id, admin)
    assert {one.attempts for one in done.services} == {1}
    for unknown in ("00000000-0000-4000-8000-000000000000", "nobody"):
        refused = await refusal(delete(auth, unknown, by=admin))
        assert refused.reason == reasons.ERROR_REASON_USER_NOT_FOUND
    missing = await refusal(deletion(auth, "00000000-0000-4000-8000-000000000000", admin))
    assert isinstance(missing, NotFound)


async def test_the_sessions_of_a_deleted_user_end_in_every_process(stand: Stand) -> None:
    async with stand.started() as first, stand.started() as second:
        person = await first.register()
        reading = user_pb2.GetPreferencesRequest(user_id="me")
        await second.users.GetPreferences(reading, metadata=person.metadata)
        await delete(first, "me", by=person)
        refused = await until(
            lambda: refused_or_none(second.users.GetPreferences(reading, metadata=person.metadata)),
            within_seconds=PATIENCE_SECONDS,
        )
        assert refused is not None
        assert refused.reason == reasons.ERROR_REASON_SESSION_ENDED


async def refused_or_none(call: Awaitable[Any]) -> ServiceError | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def test_a_deletion_survives_the_death_of_the_process(
    stand: Stand, purgers: Mapping[str, Purger], unused_port: int
) -> None:
    async with stand.started() as auth:
        person = await auth.register()
    purgers["chat"].is_silent = True
    env = environment(stand.database, stand.folder, LISTEN_ADDRESS=f"127.0.0.1:{unused_port}")
    env |= {name.upper(): target for name, target in stand.peers.settings("chat", "memory").items()}
    process = await start(environment=env)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_port}") as channel:
        users = user_pb2_grpc.UserServiceStub(channel)
        request = user_pb2.DeleteUserRequest(user_id="me")
        await users.DeleteUser(request, metadata=person.metadata, timeout=CALL_SECONDS, wait_for_ready=True)
        await asked(purgers["chat"], person.id)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert purgers["memory"].confirmed == []
    purgers["chat"].is_silent = False
    # The dead worker's job is put back once it has given no sign of life for its time.
    await auth.execute("update procrastinate_workers set last_heartbeat = now() - interval '1 hour'")
    other = await start(environment=env)
    try:
        await asked(purgers["memory"], person.id)

        async def nothing_is_left() -> bool:
            return not await everything_about(auth, person.id)

        await until(nothing_is_left)
    finally:
        other.terminate()
        await other.communicate()
    assert purgers["chat"].confirmed == [person.id]
