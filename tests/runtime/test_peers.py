"""What a service needs of auth: keys, tokens, and the feed of ended sessions, over real servers."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from services.runtime import peers
from services.runtime.calls import Call, enter
from services.runtime.duties import beside
from services.runtime.errors import PermissionDenied, Unauthenticated, Unavailable
from services.runtime.identity import TokenVerifier
from services.runtime.peers import EndedSessionsFeed, RemoteKeys, read_credential
from tests.issuer import Issuer
from tests.runtime.auth_twin import Auth
from tests.runtime.conftest import until
from tests.runtime.status import refused

USER = str(uuid.uuid4())


async def test_keys_are_those_of_auth_and_of_no_other_kind(auth: Auth, trusted: Issuer) -> None:
    keys = await RemoteKeys(auth.channel).public_keys()
    assert keys == await trusted.public_keys()


async def test_a_token_is_asked_for_once_whoever_waits_and_kept(auth: Auth) -> None:
    auth.twin.delay_seconds = 0.05
    tokens = auth.tokens()
    enter(Call("r-9"))
    many = await asyncio.gather(*(tokens.for_audience("memory") for _ in range(20)))
    assert (len(set(many)), auth.twin.calls["issue memory"]) == (1, 1)
    assert await tokens.for_audience("memory") == many[0]
    assert auth.twin.request_ids == ["r-9"]
    await tokens.for_audience("auth")
    assert auth.twin.calls["issue memory"] == auth.twin.calls["issue auth"] == 1


async def test_a_token_near_its_end_is_renewed(auth: Auth) -> None:
    auth.twin.lifetime_seconds = 31  # renewed 30 s before its end
    tokens = auth.tokens()
    first = await tokens.for_audience("memory")
    assert await tokens.for_audience("memory") == first
    await asyncio.sleep(1.1)
    assert await tokens.for_audience("memory") != first


async def test_one_waiting_caller_that_leaves_takes_no_token_from_the_others(auth: Auth) -> None:
    auth.twin.delay_seconds = 0.1
    tokens = auth.tokens()
    first, second = (asyncio.create_task(tokens.for_audience("memory")) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await second
    assert (first.cancelled(), auth.twin.calls["issue memory"]) == (True, 1)


async def test_tokens_for_users_are_exchanged_and_told_apart(auth: Auth) -> None:
    tokens = auth.tokens()
    ana, ben = await tokens.for_user(USER, "memory"), await tokens.for_user(str(uuid.uuid4()), "memory")
    assert ana != ben
    assert await tokens.for_user(USER, "memory") == ana
    assert auth.twin.calls["exchange memory"] == 2


async def test_what_auth_refuses_is_an_error_of_ours_and_is_not_kept(auth: Auth) -> None:
    with pytest.raises(Unauthenticated, match="Wrong credential"):
        await auth.tokens("a-wrong-one").for_audience("memory")
    tokens = auth.tokens()
    for _ in range(2):
        with pytest.raises(PermissionDenied):
            await tokens.for_user(USER, "forbidden")
    assert auth.twin.calls["exchange forbidden"] == 2


async def test_auth_gone_keys_and_tokens_go_on_and_new_ones_are_unavailable(auth: Auth, trusted: Issuer) -> None:
    tokens, verifier = auth.tokens(), TokenVerifier(audience="chat", keys=RemoteKeys(auth.channel), ended=trusted)
    kept = await tokens.for_audience("memory")
    assert (await verifier.verify(dict(trusted.as_user(USER)))).user_id == USER
    await auth.go()
    assert await tokens.for_audience("memory") == kept
    assert (await verifier.verify(dict(trusted.as_user(USER)))).user_id == USER
    with pytest.raises(Unavailable):
        await tokens.for_audience("auth")
    with pytest.raises(Unavailable):
        await TokenVerifier(audience="chat", keys=RemoteKeys(auth.channel), ended=trusted).verify(
            dict(trusted.as_user(USER))
        )
    await auth.come_back()
    await until(lambda: auth.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY)
    assert await tokens.for_audience("auth")


async def test_the_feed_learns_of_ended_sessions(auth: Auth) -> None:
    feed = EndedSessionsFeed(auth.channel, auth.tokens(), grace_seconds=60)
    async with beside(feed.follow()):
        assert not feed.is_current()
        auth.twin.sessions.put_nowait(["s-1", "s-2"])
        await until(lambda: feed.is_ended("s-2"))
        auth.twin.sessions.put_nowait([])
        assert (feed.is_current(), feed.is_ended("s-1"), feed.is_ended("s-3")) == (True, True, False)
    await until(lambda: auth.twin.followers == 0)


async def test_a_feed_that_breaks_is_followed_again_and_forgets_nothing(auth: Auth) -> None:
    feed = EndedSessionsFeed(auth.channel, auth.tokens(), grace_seconds=60)
    async with beside(feed.follow()):
        auth.twin.sessions.put_nowait(["before"])
        await until(lambda: feed.is_ended("before"))
        auth.twin.sessions.put_nowait(None)  # ends in order
        await until(lambda: auth.twin.calls["watch"] == 2)
        with capture_logs() as logs:
            await auth.go()
            await until(lambda: any(one["event"] == "identity.feed_lost" for one in logs))
        assert feed.is_current()
        await auth.come_back()
        auth.twin.sessions.put_nowait(["after"])
        await until(lambda: feed.is_ended("after"), 10)
        assert feed.is_ended("before")


async def test_a_silent_feed_is_left_and_its_knowledge_grows_old(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_FEED_SILENCE_SECONDS", 0.3)
    feed = EndedSessionsFeed(auth.channel, auth.tokens(), grace_seconds=0.6)
    async with beside(feed.follow()):
        auth.twin.sessions.put_nowait([])
        await until(feed.is_current)
        await until(lambda: auth.twin.calls["watch"] >= 2)  # silence ended the first
        await until(lambda: not feed.is_current(), 3)
        auth.twin.sessions.put_nowait([])
        await until(feed.is_current)
    await until(lambda: auth.twin.followers == 0)


def test_a_credential_is_read_without_its_line_end(tmp_path: Any) -> None:
    file = tmp_path / "credential"
    file.write_text("secret\n")
    assert read_credential(str(file)) == "secret"
    with pytest.raises(OSError, match="missing"):
        read_credential(str(tmp_path / "missing"))


async def test_the_twin_is_called_as_auth_is(auth: Auth) -> None:
    """The exchange needs a service token: the twin's server is the real one, with the contract's access rule."""
    stub = auth_pb2_grpc.TokenServiceStub(auth.channel)
    ask = auth_pb2.ExchangeForUserRequest(user_id=USER, audience="memory")
    assert (await refused(stub.ExchangeForUser(ask))).info.reason == "IDENTITY_MISSING"
