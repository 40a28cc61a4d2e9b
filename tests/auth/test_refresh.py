"""RefreshTokens: each token once, a short grace for a lost answer, the end of the family for a stolen one."""

import asyncio
from collections.abc import Awaitable, Callable

import jwt
import pytest

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unauthenticated
from tests.auth.harness import Person, RunningAuth, refusal

StartAuth = Callable[..., Awaitable[RunningAuth]]


def session_of(tokens: auth_pb2.TokenPair) -> str:
    return str(jwt.decode(tokens.access_token, options={"verify_signature": False})["sid"])


async def pass_grace(auth: RunningAuth, person: Person) -> None:
    """Makes the last refresh older than the grace time."""
    await auth.execute("update sessions set rotate_time = now() - interval '31 s' where user_id = %s", person.id)


async def test_a_refresh_gives_a_new_pair_of_the_same_session(auth: RunningAuth, person: Person) -> None:
    tokens = await auth.refresh(person.tokens.refresh_token)
    assert tokens.refresh_token != person.tokens.refresh_token
    assert session_of(tokens) == session_of(person.tokens)
    assert tokens.refresh_expire_time.ToNanoseconds() > person.tokens.refresh_expire_time.ToNanoseconds()
    assert (await auth.me(tokens.access_token)).id == person.id


async def test_a_chain_of_refreshes_keeps_the_session(auth: RunningAuth, person: Person) -> None:
    tokens = person.tokens
    for _ in range(5):
        tokens = await auth.refresh(tokens.refresh_token)
    assert session_of(tokens) == session_of(person.tokens)


async def test_a_client_that_lost_the_answer_may_ask_again(auth: RunningAuth, person: Person) -> None:
    lost = await auth.refresh(person.tokens.refresh_token)
    again = await auth.refresh(person.tokens.refresh_token)
    assert again.refresh_token != lost.refresh_token
    assert session_of(again) == session_of(lost)
    await pass_grace(auth, person)
    assert await auth.is_signed_in((await auth.refresh(again.refresh_token)).access_token)


async def test_a_hundred_refreshes_at_once_at_two_processes_keep_the_client_signed_in(
    auth: RunningAuth, start_auth: StartAuth, person: Person
) -> None:
    second = await start_auth()
    token = person.tokens.refresh_token
    pairs = await asyncio.gather(*(process.refresh(token) for process in (auth, second) for _ in range(50)))
    assert {session_of(pair) for pair in pairs} == {session_of(person.tokens)}
    assert len({pair.refresh_token for pair in pairs}) == 100
    assert await auth.is_signed_in(pairs[0].access_token)
    assert await auth.is_signed_in((await auth.refresh(pairs[99].refresh_token)).access_token)


async def test_a_token_reused_after_the_grace_time_ends_the_session_for_everybody(auth: RunningAuth, person: Person) -> None:
    tokens = await auth.refresh(person.tokens.refresh_token)
    await pass_grace(auth, person)
    reused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert isinstance(reused, Unauthenticated)
    assert reused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID
    assert not await auth.is_signed_in(tokens.access_token)
    newest = await refusal(auth.refresh(tokens.refresh_token))
    assert newest.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID


async def test_a_token_two_refreshes_old_has_no_grace(auth: RunningAuth, person: Person) -> None:
    tokens = await auth.refresh((await auth.refresh(person.tokens.refresh_token)).refresh_token)
    refused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID
    assert not await auth.is_signed_in(tokens.access_token)


async def test_reuse_ends_one_session_and_no_other(auth: RunningAuth, person: Person) -> None:
    other = await auth.login(person.username)
    await auth.refresh(person.tokens.refresh_token)
    await pass_grace(auth, person)
    await refusal(auth.refresh(person.tokens.refresh_token))
    assert await auth.is_signed_in(other.access_token)


async def test_without_a_grace_time_every_reuse_is_theft(start_auth: StartAuth) -> None:
    auth = await start_auth(refresh_grace_seconds=0)
    person = await auth.register()
    tokens = await auth.refresh(person.tokens.refresh_token)
    await refusal(auth.refresh(person.tokens.refresh_token))
    assert not await auth.is_signed_in(tokens.access_token)


@pytest.mark.parametrize("token", ["x", "a" * 200, "ünïcode"])
async def test_an_unknown_token_is_refused(auth: RunningAuth, token: str) -> None:
    assert (await refusal(auth.refresh(token))).reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID


async def test_an_expired_token_is_refused(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update refresh_tokens set expire_time = now() where user_id = %s", person.id)
    refused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID


async def test_an_expired_session_is_over(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update sessions set expire_time = now() where user_id = %s", person.id)
    refused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID
    assert not await auth.is_signed_in(person.tokens.access_token)


async def test_the_database_knows_no_refresh_token(auth: RunningAuth, person: Person) -> None:
    rows = await auth.execute("select t::text from refresh_tokens t where user_id = %s", person.id)
    assert len(rows) == 1
    assert person.tokens.refresh_token not in rows[0][0]
    assert person.tokens.refresh_token.encode().hex() not in rows[0][0]
