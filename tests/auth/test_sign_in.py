"""Login: names in any case, passwords of every age, and nothing told to who does not know the password."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import bcrypt
import grpc
import pytest

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import PermissionDenied, Unauthenticated, Unavailable, from_rpc_error
from tests.auth.harness import PASSWORD, Person, RunningAuth, bearer, new_name, refusal

StartAuth = Callable[..., Awaitable[RunningAuth]]


async def test_username_and_email_sign_in_whatever_their_case(auth: RunningAuth, person: Person) -> None:
    for name in (person.username, person.username.upper(), person.email, person.email.upper()):
        tokens = await auth.login(name)
        assert (await auth.me(tokens.access_token)).id == person.id


async def test_every_sign_in_is_a_session_of_its_own(auth: RunningAuth, person: Person) -> None:
    first, second = await asyncio.gather(auth.login(person.username), auth.login(person.username))
    await auth.auth.Logout(auth_pb2.LogoutRequest(), metadata=bearer(first.access_token))
    assert not await auth.is_signed_in(first.access_token)
    assert await auth.is_signed_in(second.access_token)


async def test_an_unknown_user_and_a_wrong_password_get_the_same_answer(auth: RunningAuth, person: Person) -> None:
    unknown = await refusal(auth.login(new_name()))
    wrong = await refusal(auth.login(person.username, "not the password"))
    assert isinstance(wrong, Unauthenticated)
    assert wrong.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    assert (unknown.code, unknown.reason, unknown.message) == (wrong.code, wrong.reason, wrong.message)
    assert (unknown.metadata, wrong.metadata) == ({}, {})


async def test_an_unknown_user_costs_what_a_wrong_password_costs(start_auth: StartAuth) -> None:
    auth = await start_auth(argon2_time_cost=4, argon2_memory_kib=32_768)
    person = await auth.register()

    async def cpu_seconds(name: str) -> float:
        begin = time.process_time()  # of every thread, whatever else the machine does
        await refusal(auth.login(name, "not the password"))
        return time.process_time() - begin

    pairs = [(await cpu_seconds(new_name()), await cpu_seconds(person.username)) for _ in range(4)]
    unknown, wrong = (min(costs) for costs in zip(*pairs, strict=True))
    # Without its hash, an unknown user costs a twentieth.
    assert 0.25 < unknown / wrong < 4


async def test_a_deactivated_user_learns_so_by_the_right_password_only(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update users set is_active = false where id = %s", person.id)
    right = await refusal(auth.login(person.username))
    assert isinstance(right, PermissionDenied)
    assert right.reason == reasons.ERROR_REASON_USER_INACTIVE
    wrong = await refusal(auth.login(person.username, "not the password"))
    assert wrong.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG


async def test_a_deactivated_user_has_no_account_to_ask_for_and_no_tokens_to_refresh(
    auth: RunningAuth, person: Person
) -> None:
    await auth.execute("update users set is_active = false where id = %s", person.id)
    assert (await refusal(auth.me(person.tokens.access_token))).reason == reasons.ERROR_REASON_USER_INACTIVE
    refused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
async def test_a_bcrypt_hash_signs_in_and_becomes_argon2id(auth: RunningAuth, person: Person, prefix: str) -> None:
    old_hash = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", prefix)
    await auth.execute("update users set password_hash = %s where id = %s", old_hash, person.id)
    refused = await refusal(auth.login(person.username, "not the password"))
    assert refused.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    assert await stored_hash(auth, person) == old_hash
    await auth.login(person.username)
    assert (await stored_hash(auth, person)).startswith("$argon2id$")
    await auth.login(person.username)


async def test_a_bcrypt_hash_of_a_long_password_still_signs_in(auth: RunningAuth, person: Person) -> None:
    password = "p" * 100
    old_hash = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    await auth.execute("update users set password_hash = %s where id = %s", old_hash, person.id)
    await auth.login(person.username, password)
    refused = await refusal(auth.login(person.username, "p" * 99))
    assert refused.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG


async def test_a_hash_of_weaker_parameters_is_made_anew(start_auth: StartAuth, auth: RunningAuth) -> None:
    person = await auth.register()
    stricter = await start_auth(argon2_time_cost=2)
    assert ",t=1," in await stored_hash(auth, person)
    await stricter.login(person.username)
    assert ",t=2," in await stored_hash(auth, person)


async def test_a_hash_of_no_known_kind_lets_nobody_in(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update users set password_hash = 'plain' where id = %s", person.id)
    refused = await refusal(auth.login(person.username, "plain"))
    assert refused.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG


async def test_the_least_used_session_ends_when_there_are_too_many(start_auth: StartAuth) -> None:
    auth = await start_auth(open_sessions_per_user=3)
    person = await auth.register()
    second, third = await auth.login(person.username), await auth.login(person.username)
    refreshed = await auth.refresh(person.tokens.refresh_token)
    fourth = await auth.login(person.username)
    assert not await auth.is_signed_in(second.access_token)
    for tokens in (refreshed, third, fourth):
        assert await auth.is_signed_in(tokens.access_token)


async def test_sign_ins_at_once_leave_no_more_sessions_open_than_allowed(start_auth: StartAuth) -> None:
    auth = await start_auth(open_sessions_per_user=3)
    person = await auth.register()
    await asyncio.gather(*(auth.login(person.username) for _ in range(12)))
    still_open = "select count(*) from sessions where user_id = %s and end_time is null"
    assert await auth.execute(still_open, person.id) == [(3,)]


async def test_sign_ins_beyond_the_queue_are_refused_with_a_retry_delay(start_auth: StartAuth) -> None:
    auth = await start_auth(password_hash_threads=1, password_hash_queue=1, argon2_time_cost=10, argon2_memory_kib=16_384)
    answers = await asyncio.gather(*(auth.login(new_name()) for _ in range(10)), return_exceptions=True)
    errors = [from_rpc_error(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(errors) == 10
    busy = [error for error in errors if isinstance(error, Unavailable)]
    assert busy
    assert (busy[0].reason, busy[0].retry_delay_seconds) == (reasons.ERROR_REASON_SERVICE_BUSY, 1)
    assert [error for error in errors if error.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG]


async def test_a_sign_in_waits_for_its_hash_no_longer_than_it_may(start_auth: StartAuth) -> None:
    auth = await start_auth(
        password_hash_threads=1, password_hash_wait_seconds=0.05, argon2_time_cost=20, argon2_memory_kib=16_384
    )
    answers = await asyncio.gather(*(auth.login(new_name()) for _ in range(10)), return_exceptions=True)
    told = [from_rpc_error(answer).reason for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert set(told) == {reasons.ERROR_REASON_CREDENTIALS_WRONG, reasons.ERROR_REASON_SERVICE_BUSY}
    again = await refusal(auth.login(new_name()))
    assert again.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG


async def stored_hash(auth: RunningAuth, person: Person) -> str:
    ((stored,),) = await auth.execute("select password_hash from users where id = %s", person.id)
    return str(stored)
