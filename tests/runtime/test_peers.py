"""What a service needs of auth, and what goes along with its calls to others, over real servers."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime import peers
from services.runtime.calls import Call, acting_for, current_call, current_metadata, current_request_id, enter, seconds_left
from services.runtime.channels import open_channel
from services.runtime.errors import DeadlineExceeded, PermissionDenied, ServiceError, Unauthenticated, Unavailable
from services.runtime.identity import TokenVerifier
from services.runtime.peers import EndedSessionsFeed, RemoteKeys, ServiceTokens, read_credential
from services.runtime.server import GrpcServer
from tests.issuer import Issuer
from tests.runtime import probe
from tests.runtime.auth_twin import CREDENTIAL, AuthTwin, auth_server
from tests.runtime.conftest import Serve
from tests.runtime.status import refused

USER = str(uuid.uuid4())


@dataclass
class Auth:
    """The twin, its server, and a channel to it."""

    twin: AuthTwin
    server: GrpcServer
    port: int
    channel: grpc.aio.Channel

    def tokens(self, credential: str = CREDENTIAL) -> ServiceTokens:
        return ServiceTokens(self.channel, workload="chat", credential=credential)

    async def go(self) -> None:
        await self.server.stop(wait_seconds=0, drain_seconds=0)

    async def come_back(self) -> None:
        self.server = auth_server(self.twin, f"127.0.0.1:{self.port}")
        await self.server.start()


@pytest.fixture
async def auth(trusted: Issuer) -> AsyncIterator[Auth]:
    twin = AuthTwin(trusted)
    server = auth_server(twin, "127.0.0.1:0")
    port = await server.start()
    async with open_channel(f"ipv4:127.0.0.1:{port}", audience="auth", tokens=None, timeout_seconds=5) as channel:
        made = Auth(twin, server, port, channel)
        yield made
        await made.go()


async def _until(condition: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


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
    await _until(lambda: auth.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY)
    assert await tokens.for_audience("auth")


class _Keys:
    """Keys that can be had, or not, and count who asks."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.error: ServiceError | None = None
        self.fetches = 0

    async def public_keys(self) -> Any:
        self.fetches += 1
        await asyncio.sleep(0.02)
        if self.error is not None:
            raise self.error
        return await self.issuer.public_keys()


@pytest.mark.parametrize("kind", [Unavailable, DeadlineExceeded])
async def test_keys_that_cannot_be_had_are_asked_for_once_a_second(trusted: Issuer, kind: type[ServiceError]) -> None:
    keys = _Keys(trusted)
    keys.error = kind("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
    verifier = TokenVerifier(audience="chat", keys=keys, ended=trusted)
    many = [verifier.verify(dict(trusted.as_user(USER))) for _ in range(20)]
    assert {type(one) for one in await asyncio.gather(*many, return_exceptions=True)} == {Unavailable}
    assert keys.fetches == 1
    keys.error = None
    await asyncio.sleep(1.05)
    assert (await verifier.verify(dict(trusted.as_user(USER)))).user_id == USER


async def test_made_up_key_ids_ask_for_keys_once_a_second_and_a_new_key_is_found(trusted: Issuer) -> None:
    keys = _Keys(trusted)
    verifier = TokenVerifier(audience="chat", keys=keys, ended=trusted)
    await verifier.verify(dict(trusted.as_user(USER)))
    for number in range(50):
        token = trusted.sign({"aud": "parley", "sub": USER, "sid": "s"}, kid=f"made-up-{number}")
        with pytest.raises(Unauthenticated):
            await verifier.verify({"authorization": f"Bearer {token}"})
    assert keys.fetches == 1
    trusted.key_id = "the-next-key"
    await asyncio.sleep(1.05)
    assert (await verifier.verify(dict(trusted.as_user(USER)))).user_id == USER
    assert keys.fetches == 2


async def test_a_new_key_while_auth_is_away_is_not_called_invalid(trusted: Issuer) -> None:
    keys = _Keys(trusted)
    verifier = TokenVerifier(audience="chat", keys=keys, ended=trusted)
    old = dict(trusted.as_user(USER))
    await verifier.verify(old)
    keys.error, trusted.key_id = Unavailable("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE), "the-next-key"
    await asyncio.sleep(1.05)
    with pytest.raises(Unavailable):
        await verifier.verify(dict(trusted.as_user(USER)))
    assert (await verifier.verify(old)).user_id == USER


async def test_the_feed_learns_of_ended_sessions(auth: Auth) -> None:
    async with EndedSessionsFeed(auth.channel, auth.tokens(), grace_seconds=60) as feed:
        assert not feed.is_current()
        auth.twin.sessions.put_nowait(["s-1", "s-2"])
        await _until(lambda: feed.is_ended("s-2"))
        auth.twin.sessions.put_nowait([])
        assert (feed.is_current(), feed.is_ended("s-1"), feed.is_ended("s-3")) == (True, True, False)
    await _until(lambda: auth.twin.followers == 0)


async def test_a_feed_that_breaks_is_followed_again_and_forgets_nothing(auth: Auth) -> None:
    async with EndedSessionsFeed(auth.channel, auth.tokens(), grace_seconds=60) as feed:
        auth.twin.sessions.put_nowait(["before"])
        await _until(lambda: feed.is_ended("before"))
        auth.twin.sessions.put_nowait(None)  # ends in order
        await _until(lambda: auth.twin.calls["watch"] == 2)
        with capture_logs() as logs:
            await auth.go()
            await _until(lambda: any(one["event"] == "identity.feed_lost" for one in logs))
        assert feed.is_current()
        await auth.come_back()
        auth.twin.sessions.put_nowait(["after"])
        await _until(lambda: feed.is_ended("after"), 10)
        assert feed.is_ended("before")


async def test_a_silent_feed_is_left_and_its_knowledge_grows_old(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_FEED_SILENCE_SECONDS", 0.3)
    async with EndedSessionsFeed(auth.channel, auth.tokens(), grace_seconds=0.6) as feed:
        auth.twin.sessions.put_nowait([])
        await _until(feed.is_current)
        await _until(lambda: auth.twin.calls["watch"] >= 2)  # silence ended the first
        await _until(lambda: not feed.is_current(), 3)
        auth.twin.sessions.put_nowait([])
        await _until(feed.is_current)
    await _until(lambda: auth.twin.followers == 0)


async def _what_came(_request: Any, _context: Any) -> Any:
    call = current_call()
    left = seconds_left()
    parts = (call.caller.user_id, call.caller.service, call.request_id, None if left is None else round(left, 1))
    return probe.reply(text="|".join(map(str, parts)))


@dataclass
class Outgoing:
    """A channel of ours to the probe."""

    channel: grpc.aio.Channel
    issuer: Issuer

    async def ask(self, seconds: float | None = None) -> list[str]:
        answer = await probe.Client(self.channel, self.issuer, 0).call("ForServices", probe.request(), timeout=seconds)
        return str(answer.text).split("|")


@pytest.fixture
async def outgoing(auth: Auth, serve: Serve, trusted: Issuer) -> AsyncIterator[Outgoing]:
    inner = await serve(probe.Probe(_what_came, _stream_until_cancelled))
    async with open_channel(
        f"ipv4:127.0.0.1:{inner.port}", audience="probe", tokens=auth.tokens(), timeout_seconds=5
    ) as channel:
        yield Outgoing(channel, trusted)


async def _stream_until_cancelled(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
    yield probe.reply(text=f"{current_request_id()}|{seconds_left()}")
    await asyncio.sleep(60)


async def _within(serve: Serve, answer: Any, seconds: float | None = 10, request_id: str = "r-1") -> str:
    """Runs `answer` as the handler of a call of the user."""
    outer = await serve(probe.Probe(answer))
    metadata = (*outer.issuer.as_user(USER), ("x-request-id", request_id))
    return str((await outer.call("ForUsers", probe.request(), metadata, timeout=seconds)).text)


async def test_a_call_forwards_user_service_request_id_and_the_time_left(serve: Serve, outgoing: Outgoing) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        return probe.reply(text="|".join(await outgoing.ask()))

    user_id, service, request_id, left = (await _within(serve, answer, 2)).split("|")
    assert (user_id, service, request_id) == (USER, "chat", "r-1")
    assert 1 < float(left) <= 2
    _, _, _, left = (await _within(serve, answer, None)).split("|")
    assert 4 < float(left) <= 5


async def test_a_calls_own_timeout_goes_first_but_not_beyond_the_callers(serve: Serve, outgoing: Outgoing) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        longer, shorter = await outgoing.ask(60), await outgoing.ask(1)
        return probe.reply(text=f"{longer[3]}|{shorter[3]}")

    longer, shorter = map(float, (await _within(serve, answer, 3)).split("|"))
    assert 2 < longer <= 3
    assert 0 < shorter <= 1
    longer, _ = map(float, (await _within(serve, answer, None)).split("|"))
    assert longer > 50


async def test_no_call_is_begun_when_no_time_is_left(outgoing: Outgoing) -> None:
    async def late() -> None:
        enter(Call("r-1", deadline=asyncio.get_running_loop().time() - 1))
        await outgoing.ask()

    with pytest.raises(DeadlineExceeded):
        await asyncio.create_task(late())


async def test_a_job_acts_for_its_user_by_an_exchanged_token(auth: Auth, outgoing: Outgoing) -> None:
    with acting_for(USER, request_id="job-7"):
        user_id, service, request_id, _ = await outgoing.ask()
    assert (user_id, service, request_id) == (USER, "chat", "job-7")
    assert auth.twin.calls["exchange probe"] == 1
    user_id, service, *_ = await outgoing.ask()
    assert (user_id, service) == ("None", "chat")


async def test_a_token_that_cannot_be_had_is_the_calls_error(auth: Auth, serve: Serve) -> None:
    inner = await serve()
    await auth.go()
    async with open_channel(
        f"ipv4:127.0.0.1:{inner.port}", audience="probe", tokens=auth.tokens(), timeout_seconds=5
    ) as channel:
        client = probe.Client(channel, inner.issuer, 0)
        with pytest.raises(Unavailable):
            await client.call("ForServices", probe.request())
        with pytest.raises(Unavailable):
            await anext(aiter(client.follow(probe.request())))

        async def answer(_request: Any, _context: Any) -> Any:
            return await client.call("ForServices", probe.request())

        outer = await serve(probe.Probe(answer))
        assert (await refused(outer.call("ForAnybody", probe.request()))).info.reason == "DEPENDENCY_UNAVAILABLE"


async def test_a_stream_forwards_too_has_no_bound_of_its_own_and_can_be_left(outgoing: Outgoing) -> None:
    def open_calls() -> float:
        return REGISTRY.get_sample_value("parley_rpc_open_calls", {"method": "/probe.v1.ProbeService/Follow"}) or 0

    with acting_for(USER, request_id="job-8"):
        call = probe.Client(outgoing.channel, outgoing.issuer, 0).follow(probe.request(), timeout=None)
        first = await anext(aiter(call))
    assert first.text == "job-8|None"
    assert open_calls() == 1
    call.cancel()
    await _until(lambda: open_calls() == 0)


async def test_a_service_that_is_away_fails_at_once(auth: Auth) -> None:
    async with open_channel("ipv4:127.0.0.1:1", audience="probe", tokens=auth.tokens(), timeout_seconds=5) as channel:
        begin = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await probe.Client(channel, auth.twin.issuer, 0).call("ForServices", probe.request(), timeout=None)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - begin < 3


async def test_calls_go_round_the_replicas_and_past_a_dead_one(auth: Auth, serve: Serve) -> None:
    seen: list[int] = []

    def noting(number: int) -> probe.Probe:
        async def answer(_request: Any, _context: Any) -> Any:
            seen.append(number)
            assert current_metadata()["x-parley-service-authorization"]
            return probe.reply()

        return probe.Probe(answer)

    ports = [(await serve(noting(number))).port for number in range(2)]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in [*ports, 1])
    async with open_channel(target, audience="probe", tokens=auth.tokens(), timeout_seconds=5) as channel:
        client = probe.Client(channel, auth.twin.issuer, 0)
        await client.call("ForServices", probe.request())
        await asyncio.sleep(0.3)
        for _ in range(20):
            await client.call("ForServices", probe.request())
    assert min(seen.count(0), seen.count(1)) >= 8


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
