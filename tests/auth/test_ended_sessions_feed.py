"""WatchEndedSessions: what ended is obeyed by others within a second, and silence means that auth is gone."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import grpc
import jwt
import psycopg
import pytest

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.ended_sessions import EndedSessions
from services.auth.session_store import SessionStore
from services.runtime.database import open_database
from services.runtime.duties import beside
from services.runtime.errors import ResourceExhausted, Unauthenticated, Unavailable, from_rpc_error
from services.runtime.identity import TokenVerifier
from services.runtime.peers import EndedSessionsFeed, RemoteKeys
from tests.auth.harness import PASSWORD, Person, RunningAuth, bearer, refusal
from tests.work import PATIENCE_SECONDS

StartAuth = Callable[..., Awaitable[RunningAuth]]
OBEYED_WITHIN_SECONDS = 1.0


@pytest.fixture
async def feed(auth: RunningAuth) -> AsyncIterator[EndedSessionsFeed]:
    """What the memory service would follow."""
    following = EndedSessionsFeed(auth.channel, auth.service_tokens("memory"), grace_seconds=60)
    async with beside(following.follow()):
        async with asyncio.timeout(5):
            while not following.is_current():  # noqa: ASYNC110 - the feed tells nobody that it is heard
                await asyncio.sleep(0.01)
        yield following


def sid_of(tokens: auth_pb2.TokenPair) -> str:
    return str(jwt.decode(tokens.access_token, options={"verify_signature": False})["sid"])


async def is_told(feed: EndedSessionsFeed, session_id: str, *, within_seconds: float = 5) -> bool:
    give_up = time.monotonic() + within_seconds
    while time.monotonic() < give_up:
        if feed.is_ended(session_id):
            return True
        await asyncio.sleep(0.01)
    return False


async def follow(auth: RunningAuth) -> AsyncGenerator[auth_pb2.WatchEndedSessionsResponse, None]:
    stub = auth_pb2_grpc.TokenServiceStub(auth.channel)
    metadata = await auth.as_service("chat")
    stream = stub.WatchEndedSessions(auth_pb2.WatchEndedSessionsRequest(), metadata=metadata, timeout=15)
    try:
        async for message in stream:
            yield message
    finally:
        stream.cancel()


async def test_another_services_verifier_obeys_a_logout_within_a_second(
    auth: RunningAuth, feed: EndedSessionsFeed, person: Person
) -> None:
    verifier = TokenVerifier(audience="memory", keys=RemoteKeys(auth.channel), ended=feed)
    metadata = dict(person.metadata)
    assert (await verifier.verify(metadata)).user_id == person.id
    await auth.auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)
    assert await is_told(feed, sid_of(person.tokens), within_seconds=OBEYED_WITHIN_SECONDS)
    with pytest.raises(Unauthenticated) as refused:
        await verifier.verify(metadata)
    assert refused.value.reason == reasons.ERROR_REASON_SESSION_ENDED


async def test_a_logout_at_another_process_is_told_and_obeyed_by_this_one(
    auth: RunningAuth, feed: EndedSessionsFeed, start_auth: StartAuth, person: Person
) -> None:
    second = await start_auth()
    await second.auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)
    assert await is_told(feed, sid_of(person.tokens))
    listing = auth.auth.ListSessions(auth_pb2.ListSessionsRequest(), metadata=person.metadata)
    assert (await refusal(listing)).reason == reasons.ERROR_REASON_SESSION_ENDED


async def test_every_way_to_end_a_session_is_told(auth: RunningAuth, feed: EndedSessionsFeed, person: Person) -> None:
    other = await auth.login(person.username)
    revoking = auth_pb2.RevokeSessionRequest(session_id=sid_of(other))
    await auth.auth.RevokeSession(revoking, metadata=person.metadata)
    assert await is_told(feed, sid_of(other))

    other = await auth.login(person.username)
    changing = auth_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password=PASSWORD)
    await auth.auth.ChangePassword(changing, metadata=person.metadata)
    assert await is_told(feed, sid_of(other))

    stolen = await auth.login(person.username)
    await auth.refresh((await auth.refresh(stolen.refresh_token)).refresh_token)
    await refusal(auth.refresh(stolen.refresh_token))
    assert await is_told(feed, sid_of(stolen))

    logging_out = auth_pb2.LogoutRequest(all_sessions=True)
    await auth.auth.Logout(logging_out, metadata=person.metadata)
    assert await is_told(feed, sid_of(person.tokens))


async def test_a_surplus_session_is_told(start_auth: StartAuth) -> None:
    auth = await start_auth(open_sessions_per_user=1)
    person = await auth.register()
    feed = EndedSessionsFeed(auth.channel, auth.service_tokens("chat"), grace_seconds=60)
    async with beside(feed.follow()):
        await auth.login(person.username)
        assert await is_told(feed, sid_of(person.tokens))


async def test_a_new_follower_is_first_told_what_ended_before(auth: RunningAuth, person: Person) -> None:
    await auth.auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)
    told: list[str] = []
    async with aclosing(follow(auth)) as messages:
        async for message in messages:
            if not message.session_ids:
                break
            told += message.session_ids
    assert sid_of(person.tokens) in told


async def test_a_process_that_starts_tells_what_ended_before_it(start_auth: StartAuth, person: Person) -> None:
    auth = await start_auth()
    await auth.auth.Logout(auth_pb2.LogoutRequest(), metadata=person.metadata)
    restarted = await start_auth()
    assert restarted.assembly.ended.is_ended(sid_of(person.tokens))


async def test_a_feed_without_news_is_heard_again_and_again(auth: RunningAuth) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(follow(auth)) as messages:
        for _ in range(8):
            await anext(messages)


async def test_an_end_that_is_committed_late_is_not_missed(
    auth: RunningAuth, feed: EndedSessionsFeed, person: Person
) -> None:
    async with await psycopg.AsyncConnection.connect(auth.database.url) as late:
        await late.execute("select set_config('parley.scope', 'service', true)")
        ending = b"update sessions set end_time = now(), end_cause = 'revoked' where user_id = %s"
        await late.execute(ending, (person.id,))
        await asyncio.sleep(1.5)  # several polls pass between the end and its commit
        assert not feed.is_ended(sid_of(person.tokens))
    assert await is_told(feed, sid_of(person.tokens))


async def test_lost_database_connections_are_survived(auth: RunningAuth, feed: EndedSessionsFeed, person: Person) -> None:
    role = auth.database.service_role.encode()
    async with await psycopg.AsyncConnection.connect(auth.database.url, autocommit=True) as connection:
        killing = b"select pg_terminate_backend(pid) from pg_stat_activity where usename = %s and pid <> pg_backend_pid()"
        await connection.execute(killing, (role.decode(),))
    await asyncio.sleep(0.3)
    await auth.execute("update sessions set end_time = now(), end_cause = 'revoked' where user_id = %s", person.id)
    assert await is_told(feed, sid_of(person.tokens))


async def test_without_a_database_nothing_is_current() -> None:
    database = open_database("postgresql://nobody:x@127.0.0.1:1/nothing")
    ended = EndedSessions(SessionStore(database), remember_seconds=960)
    polling = asyncio.create_task(ended.follow_database())
    await asyncio.sleep(0.7)
    assert not polling.done()
    assert not ended.is_current()
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)
    await database.close()


async def test_a_follower_that_does_not_read_is_cut(auth: RunningAuth) -> None:
    ended = auth.assembly.ended
    following = ended.follow()
    await anext(following)
    for _ in range(200):
        ended.note([str(uuid.uuid4())])
    with pytest.raises(ResourceExhausted) as cut:
        await anext(following)
    assert cut.value.reason == reasons.ERROR_REASON_READER_TOO_SLOW


async def test_many_ended_sessions_come_in_messages_of_bounded_size(start_auth: StartAuth) -> None:
    auth = await start_auth()
    ids = {str(uuid.uuid4()) for _ in range(2_500)}
    auth.assembly.ended.note(ids)
    told: set[str] = set()
    async with aclosing(follow(auth)) as messages:
        async for message in messages:
            assert len(message.session_ids) <= 1_000
            told.update(message.session_ids)
            if ids <= told:
                break


async def test_a_stopping_server_sends_its_followers_away_at_once(start_auth: StartAuth) -> None:
    auth = await start_auth()
    messages = follow(auth)
    await anext(messages)
    begin = time.monotonic()
    stopping = asyncio.create_task(auth.assembly.server.stop(wait_seconds=0, drain_seconds=300))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in messages:
            pass
    error = from_rpc_error(ended.value)
    assert isinstance(error, Unavailable)
    assert error.reason == reasons.ERROR_REASON_SERVICE_STOPPING
    await stopping
    assert time.monotonic() - begin < PATIENCE_SECONDS


async def test_a_follower_that_leaves_is_forgotten(start_auth: StartAuth) -> None:
    auth = await start_auth()
    async with aclosing(follow(auth)) as messages:
        await anext(messages)
        assert auth.assembly.ended.follower_count == 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        while auth.assembly.ended.follower_count:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)


async def test_logging_out_twice_at_once_is_no_error(auth: RunningAuth, person: Person) -> None:
    async def log_out() -> int:
        answer = await auth.auth.Logout(auth_pb2.LogoutRequest(), metadata=bearer(person.tokens.access_token))
        return answer.ended_sessions

    answers = await asyncio.gather(log_out(), log_out(), return_exceptions=True)
    assert 1 in answers
    # The other came before the end was known, or after.
    other = answers[1 - answers.index(1)]
    assert other == 0 or (
        isinstance(other, grpc.aio.AioRpcError) and from_rpc_error(other).reason == reasons.ERROR_REASON_SESSION_ENDED
    )
