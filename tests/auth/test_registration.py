"""Register: an account and its first session, under names that are unique whatever their case."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import AlreadyExists, from_rpc_error
from tests.auth.harness import PASSWORD, Person, RunningAuth, new_name, refusal

StartAuth = Callable[..., Awaitable[RunningAuth]]


def request(username: str, email: str | None = None) -> auth_pb2.RegisterRequest:
    return auth_pb2.RegisterRequest(username=username, email=email or f"{username}@example.com", password=PASSWORD)


async def test_registering_creates_an_active_account_and_signs_it_in(auth: RunningAuth) -> None:
    name = new_name()
    answer = await auth.auth.Register(request(name))
    assert (answer.user.username, answer.user.email) == (name, f"{name}@example.com")
    assert answer.user.is_active
    assert not answer.user.is_admin
    assert answer.user.create_time == answer.user.update_time
    assert answer.tokens.token_type == "Bearer"
    assert answer.tokens.expires_in == 900
    assert await auth.me(answer.tokens.access_token) == answer.user


async def test_a_username_is_taken_in_any_case(auth: RunningAuth, person: Person) -> None:
    taken = await refusal(auth.auth.Register(request(person.username.upper(), f"{new_name()}@example.com")))
    assert isinstance(taken, AlreadyExists)
    assert taken.reason == reasons.ERROR_REASON_USERNAME_TAKEN
    assert taken.metadata == {"username": person.username.upper()}


async def test_an_email_address_is_taken_in_any_case(auth: RunningAuth, person: Person) -> None:
    taken = await refusal(auth.auth.Register(request(new_name(), person.email.upper())))
    assert isinstance(taken, AlreadyExists)
    assert taken.reason == reasons.ERROR_REASON_EMAIL_TAKEN
    assert taken.metadata == {"email": person.email.upper()}


async def test_a_taken_name_costs_no_password_hash(auth: RunningAuth, person: Person) -> None:
    with auth.noted_statements() as statements:
        await refusal(auth.auth.Register(request(person.username)))
    assert len(statements) == 1
    assert statements[0][0].startswith("SELECT")


async def test_a_hundred_registrations_of_one_name_make_one_account(start_auth: StartAuth) -> None:
    # So many threads that many find the name free and only the database can tell.
    auth = await start_auth(password_hash_threads=16)
    name = new_name()
    spellings = [name.upper() if index % 2 else name for index in range(100)]
    answers = await asyncio.gather(
        *(auth.auth.Register(request(spelling, f"{new_name()}@example.com")) for spelling in spellings),
        return_exceptions=True,
    )
    refused = [from_rpc_error(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [error.reason for error in refused] == [reasons.ERROR_REASON_USERNAME_TAKEN] * 99
    assert sum(isinstance(answer, auth_pb2.RegisterResponse) for answer in answers) == 1
    assert await auth.execute("select count(*) from users where lower(username) = %s", name) == [(1,)]
